"""The checks of lesson 04, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def rank(answer: int, config: Any) -> tuple[bool, str]:
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


def alpha(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 128):
        return True, "16/√64 = 2 is the scale, and 128/64 is the same."
    return False, "find the scale that rsLoRA applies, then the alpha whose alpha/r gives it."


def targets(answer: Sequence[str], config: Any) -> tuple[bool, str]:
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
