"""Explorers of plans: controls over functions that a cell can call without them.

`lora_explorer` is over `lora_summary`, `memory_plan.predict` and `lora_training`, and
`memory_planner` over `plan_fits`.

Used by lessons: 02, 04.
"""

from preflight.explorers.lora import LoraSummary, lora_explorer, lora_summary, lora_training
from preflight.explorers.planner import memory_planner, plan_code, plan_fits

__all__ = [
    "LoraSummary",
    "lora_explorer",
    "lora_summary",
    "lora_training",
    "memory_planner",
    "plan_code",
    "plan_fits",
]
