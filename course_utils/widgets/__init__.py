"""Explorers: sliders over functions that a cell can call without them.

`quantization_explorer` is over `quantization.explore`, `schedule_explorer` over `schedule_summary`.
"""

from course_utils.widgets.quantization import quantization_code, quantization_explorer
from course_utils.widgets.schedule import Schedule, schedule_explorer, schedule_summary

__all__ = [
    "Schedule",
    "quantization_code",
    "quantization_explorer",
    "schedule_explorer",
    "schedule_summary",
]
