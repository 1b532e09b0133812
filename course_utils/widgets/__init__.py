"""Explorers: sliders over functions that a cell can call without them.

`lora_explorer` is over `lora_summary`, `memory.predict` and `lora_training`,
`quantization_explorer` over `quantization.explore`, `schedule_explorer` over `schedule_summary`,
and `memory_planner` over `plan_fits`.
"""

from course_utils.widgets.adapter import LoraSummary, lora_summary
from course_utils.widgets.lora import lora_explorer, lora_training
from course_utils.widgets.planner import memory_planner, plan_code, plan_fits
from course_utils.widgets.quantization import quantization_code, quantization_explorer
from course_utils.widgets.schedule import Schedule, schedule_explorer, schedule_summary

__all__ = [
    "LoraSummary",
    "Schedule",
    "lora_explorer",
    "lora_summary",
    "lora_training",
    "memory_planner",
    "plan_code",
    "plan_fits",
    "quantization_code",
    "quantization_explorer",
    "schedule_explorer",
    "schedule_summary",
]
