"""Checks for the "Your turn" cells: each tells the reader what is right, or where to look again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Verdict:
    """The outcome: `status` is "unanswered", "right" or "not yet"; `message` says why."""

    status: str
    message: str

    def __repr__(self) -> str:
        start = {"unanswered": "Not answered yet", "right": "Right", "not yet": "Not yet"}
        return f"{start[self.status]}: {self.message}"


Check = Callable[..., tuple[bool, str]]
_CHECKS: dict[str, Check] = {}


def _exercise(key: str) -> Callable[[Check], Check]:
    """Register the decorated function as the check of one exercise.

    It takes the answer, and as keywords what the lesson's own run measured; it returns whether the
    answer is right, and either why it is right or a hint.
    """

    def register(function: Check) -> Check:
        _CHECKS[key] = function
        return function

    return register


def keys() -> list[str]:
    """Return the keys of all exercises, such as "00-trainable", in the order of the lessons."""
    return sorted(_CHECKS)


def check(key: str, answer: Any, **measured: Any) -> Verdict:
    """Return the verdict on an answer; `...` counts as not answered yet.

    `measured` are values from the lesson that the check compares with, named in the lesson's cell.

    Raises:
        ValueError: if there is no exercise of that key.
    """
    if key not in _CHECKS:
        raise ValueError(
            f"There is no exercise {key!r}. The exercises are: {', '.join(keys())}. "
            "Use the key that stands in the lesson's cell."
        )
    if answer is ...:
        return Verdict("unanswered", "put your answer in place of the three dots and run the cell.")
    try:
        right, message = _CHECKS[key](answer, **measured)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        # An answer of another kind than asked for, such as a word where a number is wanted.
        kind = type(answer).__name__
        return Verdict(
            "not yet", f"the answer is of type {kind}, which does not fit. Read the task again."
        )
    return Verdict("right" if right else "not yet", message)


@_exercise("00-rank")
def _rank(answer: int, trainable: int) -> tuple[bool, str]:
    if answer == 2 * trainable:
        return True, "both matrices grow with the rank, so twice the rank trains twice as many."
    return False, f"r=8 trains {trainable:,} parameters, and both matrices grow with the rank."


@_exercise("00-field")
def _field(answer: str, accuracy: pd.Series) -> tuple[bool, str]:
    if answer in accuracy.index and accuracy[answer] == accuracy.min():
        return True, f"{answer} is right in only {accuracy.min():.1%} of the unseen messages."
    return (
        False,
        f"find the smallest number in the column 'unseen'; fields: {', '.join(accuracy.index)}.",
    )


@_exercise("00-speed")
def _speed(answer: float, metrics: dict[str, float], rows: int) -> tuple[bool, str]:
    seconds = metrics["train_runtime"] / (rows * metrics["epoch"])
    if math.isclose(answer, seconds, rel_tol=0.05):
        return True, f"{seconds * 1000:.1f} milliseconds a row, forward and backward."
    return False, "divide train_runtime, in seconds, by rows times epochs."


@_exercise("01-trained")
def _trained(answer: int, labels: Iterable[int]) -> tuple[bool, str]:
    count = sum(int(label) != -100 for label in labels)
    if answer == count:
        return True, "a label of -100 carries no loss; all others do."
    return False, "count the labels that are not -100."


@_exercise("01-length")
def _length(answer: int, lengths: Sequence[int]) -> tuple[bool, str]:
    longest = int(max(lengths))
    if answer == longest + 1:
        return True, "the longest row and the end-of-text token that the trainer adds."
    if answer == longest:
        return False, "nearly: the trainer adds a token at the end of each row."
    return False, "find the longest row, and think of what the trainer adds."


@_exercise("01-rename")
def _rename(answer: dict[str, str]) -> tuple[bool, str]:
    if answer == {"question": "prompt", "reply": "completion"}:
        return True, "rename_columns takes old names as keys and new names as values."
    return False, "old names are the keys; the trainer knows the names prompt and completion."
