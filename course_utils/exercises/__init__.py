"""Checks for the "Your turn" cells: each tells the reader what is right, or where to look again."""

# Imported for what they register: each module has the checks of some lessons.
from course_utils.exercises import foundations, methods, scaling, shipping  # noqa: F401
from course_utils.exercises.registry import Verdict, check, keys

__all__ = ["Verdict", "check", "keys"]
