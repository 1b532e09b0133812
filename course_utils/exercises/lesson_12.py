"""The checks of lesson 12, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

from math import isclose


def weak(answer: float) -> tuple[bool, str]:
    if isclose(answer, 8):
        return True, "the root of the rank; as_plain_lora puts it into the matrices."
    if isclose(answer, 1 / 8):
        return False, "the other way round: how many times too weakly?"
    return False, "peft divides alpha by the root of the rank, llama.cpp by the rank."


def megabytes(answer: float, bits: float) -> tuple[bool, str]:
    right = 8e9 * bits / 8 / 1e6
    if isclose(answer, right, rel_tol=0.01):
        return True, f"{answer:,.0f} MB, more than the 8,000 of 8 bits: the scales take room, too."
    if isclose(answer, right * 8, rel_tol=0.01):
        return False, "those are megabits: a byte has eight bits."
    return False, "weights times bits, divided by 8 for bytes and by a million for megabytes."


def rank(answer: int) -> tuple[bool, str]:
    if answer == 64:
        return True, "the smallest that is allowed and large enough; more would cost memory."
    if answer == 48:
        return False, "that one is not in its list; look at the numbers in the cell above."
    return False, "the smallest number of the list that is not below 48."
