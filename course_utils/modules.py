"""What LoRA can target in a model: every layer's name, kind and size, a check of names, a list.

>>> table = modules.discover(model)  # or a config, a folder, a hub id
>>> modules.check_targets(model, ["q_proj", "v_porj"])
>>> LoraConfig(r=8, **modules.suggest(model, "attention"))
"""

from __future__ import annotations

from course_utils.target_modules import (
    CheckedName,
    Rest,
    Suggestion,
    Target,
    TargetCheck,
    TargetTable,
    check_targets,
    discover,
    suggest,
)

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
