"""The checks of lesson 01, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def trained(answer: int, labels: Iterable[int]) -> tuple[bool, str]:
    count = sum(int(label) != -100 for label in labels)
    if answer == count:
        return True, "a label of -100 carries no loss; all others do."
    return False, "count the labels that are not -100."


def length(answer: int, lengths: Sequence[int]) -> tuple[bool, str]:
    longest = int(max(lengths))
    if answer == longest + 1:
        return True, "the longest row and the end-of-text token that the trainer adds."
    if answer == longest:
        return False, "nearly: the trainer adds a token at the end of each row."
    return False, "find the longest row, and think of what the trainer adds."


def rename(answer: dict[str, str]) -> tuple[bool, str]:
    if answer == {"question": "prompt", "reply": "completion"}:
        return True, "rename_columns takes old names as keys and new names as values."
    return False, "old names are the keys; the trainer knows the names prompt and completion."
