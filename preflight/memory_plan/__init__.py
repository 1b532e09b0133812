"""What a training step will take, without its hardware: predicted, and held against GPUs.

``predict(config, "qlora", length=2048)`` simulates a step and gives a `StepMemory`, as
a meter does. ``fit_gpus(config)`` says which GPUs have the memory, and ``sharded`` what several
that share the model need.
"""

from preflight.memory_plan.advice import Change, Overhead, largest
from preflight.memory_plan.gpu_fit import GPUFit, GPUFitTable, fit_gpus, plan_text
from preflight.memory_plan.gpus import GPU, GPUS, GPUTable, find_gpu
from preflight.memory_plan.optimizers import OPTIMIZERS
from preflight.memory_plan.options import METHODS
from preflight.memory_plan.predict import predict
from preflight.memory_plan.sharding import Units, sharded, units
from preflight.memory_plan.throughput import flops_per_token, tokens_per_second

__all__ = [
    "GPU",
    "GPUS",
    "METHODS",
    "OPTIMIZERS",
    "Change",
    "GPUFit",
    "GPUFitTable",
    "GPUTable",
    "Overhead",
    "Units",
    "find_gpu",
    "fit_gpus",
    "flops_per_token",
    "largest",
    "plan_text",
    "predict",
    "sharded",
    "tokens_per_second",
    "units",
]
