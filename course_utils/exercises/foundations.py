"""The checks of lessons 00 to 04."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from course_utils.exercises.registry import exercise


@exercise("00-rank")
def _rank(answer: int, trainable: int) -> tuple[bool, str]:
    if answer == 2 * trainable:
        return True, "both matrices grow with the rank, so twice the rank trains twice as many."
    return False, f"r=8 trains {trainable:,} parameters, and both matrices grow with the rank."


@exercise("00-field")
def _field(answer: str, accuracy: pd.Series) -> tuple[bool, str]:
    if answer in accuracy.index and accuracy[answer] == accuracy.min():
        return True, f"{answer} is right in only {accuracy.min():.1%} of the unseen messages."
    return (
        False,
        f"find the smallest number in the column 'unseen'; fields: {', '.join(accuracy.index)}.",
    )


@exercise("00-speed")
def _speed(answer: float, metrics: dict[str, float], rows: int) -> tuple[bool, str]:
    seconds = metrics["train_runtime"] / (rows * metrics["epoch"])
    if math.isclose(answer, seconds, rel_tol=0.05):
        return True, f"{seconds * 1000:.1f} milliseconds a row, forward and backward."
    return False, "divide train_runtime, in seconds, by rows times epochs."


@exercise("01-trained")
def _trained(answer: int, labels: Iterable[int]) -> tuple[bool, str]:
    count = sum(int(label) != -100 for label in labels)
    if answer == count:
        return True, "a label of -100 carries no loss; all others do."
    return False, "count the labels that are not -100."


@exercise("01-length")
def _length(answer: int, lengths: Sequence[int]) -> tuple[bool, str]:
    longest = int(max(lengths))
    if answer == longest + 1:
        return True, "the longest row and the end-of-text token that the trainer adds."
    if answer == longest:
        return False, "nearly: the trainer adds a token at the end of each row."
    return False, "find the longest row, and think of what the trainer adds."


@exercise("01-rename")
def _rename(answer: dict[str, str]) -> tuple[bool, str]:
    if answer == {"question": "prompt", "reply": "completion"}:
        return True, "rename_columns takes old names as keys and new names as values."
    return False, "old names are the keys; the trainer knows the names prompt and completion."


@exercise("02-adamw")
def _adamw(answer: float, per_parameter: dict[str, float]) -> tuple[bool, str]:
    if math.isclose(answer, round(sum(per_parameter.values())), rel_tol=0.02):
        return True, "10⁹ parameters of that many bytes each are that many GB, before any text."
    return False, "add up the three numbers of bytes that were measured for each parameter."


@exercise("02-largest")
def _largest(answer: str, at_peak: Mapping[str, int]) -> tuple[bool, str]:
    if answer in at_peak and at_peak[answer] == max(at_peak.values()):
        return True, f"{answer} take {at_peak[answer] / sum(at_peak.values()):.0%} of the peak."
    return False, f"find the largest value in step.at_peak; categories: {', '.join(at_peak)}."


@exercise("02-gpu")
def _gpu(answer: str, where: Any) -> tuple[bool, str]:
    enough = [row.gpu for row in where.rows if row.method == "lora" and row.fits]
    smallest = min(enough, key=lambda gpu: gpu.memory)
    if answer == smallest.name:
        return True, f"it gives a program {smallest.memory:.1f} GiB."
    return False, "look at the rows of the method lora that fit, and compare the memory they have."


@exercise("03-bits")
def _bits(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 4 + 8 / 128 + 32 / (128 * 256), abs_tol=5e-4):
        return (
            True,
            "the scales now cost a sixteenth of a bit, and their own scales next to nothing.",
        )
    if math.isclose(answer, 4 + 32 / 128, abs_tol=5e-4):
        return False, "that is without double quantization: the scales have 8 bits each, not 32."
    return False, "add the bits of a code, of a scale over 128 weights, and of a scale of scales."


@exercise("03-config")
def _config(answer: Any) -> tuple[bool, str]:
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


@exercise("03-levels")
def _levels(answer: str, weights: Any) -> tuple[bool, str]:
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


@exercise("04-rank")
def _adapter_parameters(answer: int, config: Any) -> tuple[bool, str]:
    hidden, layers = config.hidden_size, config.num_hidden_layers
    values = config.num_key_value_heads * config.head_dim
    per_rank = layers * ((hidden + hidden) + (hidden + values))
    if answer == 16 * per_rank:
        return True, "r · (inputs + outputs) for each target, times the number of layers."
    if answer == per_rank:
        return False, "that is rank 1. What does the rank do?"
    return (
        False,
        f"q has {hidden:,} inputs and outputs; v has {hidden:,} inputs, {values:,} outputs.",
    )


@exercise("04-alpha")
def _same_alpha(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 128):
        return True, "16/√64 = 2 is the scale, and 128/64 is the same."
    return False, "find the scale that rsLoRA applies, then the alpha whose alpha/r gives it."


@exercise("04-targets")
def _targets(answer: Sequence[str], config: Any) -> tuple[bool, str]:
    from torch import nn

    from course_utils.configs import build_empty

    given = {answer} if isinstance(answer, str) else {*answer}
    model = build_empty(config)
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    every = {name.rpartition(".")[2] for name in linear}
    if given == every:
        return True, "two of its four names stand for several matrices that were fused into one."
    if given - every:
        return False, f"the model has no linear layer called {', '.join(sorted(given - every))}."
    return False, f"{len(every - given)} kinds of linear layer are missing."
