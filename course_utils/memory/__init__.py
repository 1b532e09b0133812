"""What a training step takes, measured as it runs.

``measure(model, optimizer)`` is put around the lines of a step, ``MeterCallback()`` is given to a
trainer; both give a `StepMemory`. ``preflight.memory_plan`` predicts the same table.

Used by lessons: 02, 04, 06, 07, 08, 10, 11a.
"""

from course_utils.memory.measure import Measurement, MeterCallback, measure
from course_utils.memory.meter import MemoryMeter
from course_utils.memory.step_memory import CATEGORIES, PHASES, Sample, StepMemory

__all__ = [
    "CATEGORIES",
    "PHASES",
    "Measurement",
    "MemoryMeter",
    "MeterCallback",
    "Sample",
    "StepMemory",
    "measure",
]
