"""What a training step takes: measured as it runs, or predicted without the hardware.

``predict(config, "qlora", length=2048)`` simulates a step; ``measure(model, optimizer)`` and
``MeterCallback()`` measure a real one. All give a `StepMemory`. ``fits(config)`` says which GPUs
have the memory, and ``sharded`` what several that share the model need.
"""

from course_utils.memory.fit import Fit, Fits, fits, plan_text
from course_utils.memory.gpus import GPU, GPUS, GPUTable, find_gpu
from course_utils.memory.measure import Measurement, MeterCallback, measure
from course_utils.memory.meter import MemoryMeter
from course_utils.memory.optimizers import OPTIMIZERS
from course_utils.memory.plan import METHODS
from course_utils.memory.predict import predict
from course_utils.memory.search import Change, Overhead, largest
from course_utils.memory.sharding import Units, sharded, units
from course_utils.memory.table import CATEGORIES, PHASES, Sample, StepMemory

__all__ = [
    "CATEGORIES",
    "GPU",
    "GPUS",
    "METHODS",
    "OPTIMIZERS",
    "PHASES",
    "Change",
    "Fit",
    "Fits",
    "GPUTable",
    "Measurement",
    "MemoryMeter",
    "MeterCallback",
    "Overhead",
    "Sample",
    "StepMemory",
    "Units",
    "find_gpu",
    "fits",
    "largest",
    "measure",
    "plan_text",
    "predict",
    "sharded",
    "units",
]
