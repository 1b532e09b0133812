"""What LoRA can target in a model, and whether a list of names hits it."""

from course_utils.target_modules.answers import CheckedName, Suggestion, TargetCheck
from course_utils.target_modules.choice import check_targets, suggest
from course_utils.target_modules.discovery import discover
from course_utils.target_modules.table import Rest, Target, TargetTable

__all__ = [
    "CheckedName",
    "Rest",
    "Suggestion",
    "Target",
    "TargetCheck",
    "TargetTable",
    "check_targets",
    "discover",
    "suggest",
]
