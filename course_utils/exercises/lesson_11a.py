"""The checks of lesson 11a, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math


def first(answer: float) -> tuple[bool, str]:
    if abs(answer - math.log(2)) < 1e-3:
        return True, "beta multiplies a margin of 0, whatever beta is."
    return False, "what is the margin before the first step, and what does beta do to it?"


def reward(answer: float, beta: float, before: float, after: float) -> tuple[bool, str]:
    right = beta * (after - before)
    if math.isclose(answer, right, rel_tol=1e-3, abs_tol=1e-4):
        return True, "less likely than for the reference, so below 0: chosen is no praise."
    if math.isclose(answer, -right, rel_tol=1e-3, abs_tol=1e-4):
        return False, "the other way round: the policy's less the reference's."
    return False, "beta times the policy's log-probability less the reference's."


def passes(answer: int, pairs: int) -> tuple[bool, str]:
    if answer == 4 * pairs:
        return True, "two answers a pair, and each is read by the policy and by the reference."
    if answer == 2 * pairs:
        return False, "that is what one of the two models reads."
    return False, "count the answers of a pair, and the models that read each."
