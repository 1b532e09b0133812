"""What LoRA can target in a model, and whether a list of names hits it.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from preflight.lora_targets.adapters import Adapters, make_adapters, refused_names
from preflight.lora_targets.check import CheckedName, TargetCheck, check_targets
from preflight.lora_targets.discovery import discover
from preflight.lora_targets.suggestion import Suggestion, suggest
from preflight.lora_targets.table import Rest, Target, TargetTable

__all__ = [
    "Adapters",
    "CheckedName",
    "Rest",
    "Suggestion",
    "Target",
    "TargetCheck",
    "TargetTable",
    "check_targets",
    "discover",
    "make_adapters",
    "refused_names",
    "suggest",
]
