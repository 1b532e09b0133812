"""Checks for the "Your turn" cells: each tells the reader what is right, or where to look again.

The check of the exercise "04-rank" is the function `rank` of the module `lesson_04`; that of
"11-first" is in `lesson_11a`, since 11 has two parts. It takes the answer, and as keywords what the
lesson's own run measured; it returns whether the answer is right, and either why it is right or a
hint.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getmembers, isfunction, signature
from typing import Any

from course_utils.exercises import (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
    lesson_11a,
    lesson_12,
)

_LESSONS = (
    lesson_00, lesson_01, lesson_02, lesson_03, lesson_04, lesson_05,
    lesson_06, lesson_07, lesson_08, lesson_09, lesson_10, lesson_11a,
    lesson_12,
)  # fmt: skip
_CHECKS: dict[str, Callable[..., tuple[bool, str]]] = {
    f"{lesson.__name__.rpartition('_')[2][:2]}-{name}": function
    for lesson in _LESSONS
    for name, function in getmembers(lesson, isfunction)
}


@dataclass(frozen=True)
class Verdict:
    """The outcome: `status` is "unanswered", "right" or "not yet"; `message` says why."""

    status: str
    message: str

    def __repr__(self) -> str:
        start = {"unanswered": "Not answered yet", "right": "Right", "not yet": "Not yet"}
        return f"{start[self.status]}: {self.message}"


def keys() -> list[str]:
    """Return the keys of all exercises, such as "00-rank", in the order of the lessons."""
    return sorted(_CHECKS)


def check(key: str, answer: Any, **measured: Any) -> Verdict:
    """Return the verdict on an answer; `...` counts as not answered yet.

    `measured` are values from the lesson that the check compares with, named in the lesson's cell.

    Raises:
        ValueError: if there is no exercise of that key, or `measured` are not what its check takes.
    """
    if key not in _CHECKS:
        raise ValueError(
            f"There is no exercise {key!r}. The exercises are: {', '.join(keys())}. "
            "Use the key that stands in the lesson's cell."
        )
    takes = signature(_CHECKS[key])
    try:
        takes.bind(answer, **measured)
    except TypeError as error:  # the cell's fault, which must not look like a wrong answer
        names = ", ".join(list(takes.parameters)[1:])
        raise ValueError(
            f"check({key!r}, ...) was given {', '.join(measured) or 'nothing'} with the answer; "
            f"it takes {names or 'nothing'}. Write this call as it stands in the lesson's cell."
        ) from error
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
