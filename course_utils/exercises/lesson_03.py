"""The checks of lesson 03, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from typing import Any


def bits(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 4 + 8 / 128 + 32 / (128 * 256), abs_tol=5e-4):
        return (
            True,
            "the scales now cost a sixteenth of a bit, and their own scales next to nothing.",
        )
    if math.isclose(answer, 4 + 32 / 128, abs_tol=5e-4):
        return False, "that is without double quantization: the scales have 8 bits each, not 32."
    return False, "add the bits of a code, of a scale over 128 weights, and of a scale of scales."


def config(answer: Any) -> tuple[bool, str]:
    wanted = {
        "load_in_4bit": "True",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": "True",
        "bnb_4bit_compute_dtype": "torch.bfloat16",
    }
    wrong = [name for name, value in wanted.items() if str(getattr(answer, name)) != value]
    if wrong:
        return False, f"look at {', '.join(wrong)}; the table above has the names and their values."
    return True, "all four have to be said: each has another default."


def levels(answer: str, weights: Any) -> tuple[bool, str]:
    from course_utils import quantization

    entropies = {}
    for kind in ("nf4", "fp4", "int4"):
        codes = quantization.quantize(weights, kind).codes
        shares = codes.long().bincount() / codes.numel()
        entropies[kind] = float(-(shares * shares.clamp(min=1e-12).log2()).sum())
    worth = ", ".join(f"{kind} {bits:.2f}" for kind, bits in entropies.items())
    if answer == min(entropies, key=lambda kind: entropies[kind]):
        error, other = (quantization.explore(weights, kind).relative for kind in (answer, "fp4"))
        return (
            True,
            f"bits of entropy: {worth}. Yet its error is {error:.1%}, and FP4's {other:.1%}.",
        )
    if answer == max(entropies, key=lambda kind: entropies[kind]):
        return False, "that one spreads its codes most evenly; the entropy is the largest then."
    return False, "count the codes with torch.bincount; the entropy is -sum(share * log2(share))."
