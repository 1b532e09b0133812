"""What LoRA can target in a model, and whether a list of names hits it."""

from preflight.lora_targets.choice import check_targets, suggest
from preflight.lora_targets.discovery import discover
from preflight.lora_targets.results import CheckedName, Suggestion, TargetCheck
from preflight.lora_targets.target_table import Rest, Target, TargetTable

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
