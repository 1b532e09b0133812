"""Checks for the "Your turn" cells: each tells the reader what is right, or where to look again.

Used by lessons: all.
"""

# Imported for what they register: each module has the checks of one lesson.
from course_utils.exercises import (  # noqa: F401
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
)
from course_utils.exercises.registry import Verdict, check, keys

__all__ = ["Verdict", "check", "keys"]
