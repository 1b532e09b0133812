"""The checks of lesson 06, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from typing import Any


def steps(answer: int) -> tuple[bool, str]:
    batches = math.ceil(1200 / 4)
    if answer == 3 * math.ceil(batches / 8):
        return True, "38 an epoch: what is left at its end makes an update of its own."
    if answer == 3 * (batches // 8):
        return False, "nearly: 300 batches do not divide by 8, and those left over count too."
    return False, "count the batches of an epoch, then the updates that they make, then the epochs."


def warmup(answer: int) -> tuple[bool, str]:
    warmup = math.ceil(0.05 * 200)
    if answer == warmup + 1:
        return True, "ten steps of warm-up, of which the first has a learning rate of 0."
    if answer == warmup:
        return False, "nearly: the first step of a warm-up has a learning rate of 0."
    return False, "a warmup_steps below 1 is a share of the steps."


def translate(answer: Any) -> tuple[bool, str]:
    wanted = {
        "eval_strategy": "steps",
        "warmup_steps": 0.1,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
    }
    wrong = [name for name, value in wanted.items() if getattr(answer, name) != value]
    if wrong:
        return False, f"look at {', '.join(wrong)}; the table of names has their old ones."
    return True, "four old names, four new ones, and the same training."
