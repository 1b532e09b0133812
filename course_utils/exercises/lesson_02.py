"""The checks of lesson 02, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def adamw(answer: float, per_parameter: dict[str, float]) -> tuple[bool, str]:
    if math.isclose(answer, round(sum(per_parameter.values())), rel_tol=0.02):
        return True, "10⁹ parameters of that many bytes each are that many GB, before any text."
    return False, "add up the three numbers of bytes that were measured for each parameter."


def largest(answer: str, at_peak: Mapping[str, int]) -> tuple[bool, str]:
    if answer in at_peak and at_peak[answer] == max(at_peak.values()):
        return True, f"{answer} take {at_peak[answer] / sum(at_peak.values()):.0%} of the peak."
    return False, f"find the largest value in step.at_peak; categories: {', '.join(at_peak)}."


def gpu(answer: str, where: Any) -> tuple[bool, str]:
    enough = [row.gpu for row in where.rows if row.method == "lora" and row.fits]
    smallest = min(enough, key=lambda gpu: gpu.memory)
    if answer == smallest.name:
        return True, f"it gives a program {smallest.memory:.1f} GiB."
    return False, "look at the rows of the method lora that fit, and compare the memory they have."
