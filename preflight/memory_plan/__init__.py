"""What a training step will take, without its hardware: predicted, and held against GPUs.

``predict(config, "qlora", length=2048)`` simulates a step and gives a `StepMemory`, as
a meter does. ``fit_gpus(config)`` says which GPUs have the memory, and ``sharded`` what several
that share the model need. From a config to the predicted peak::

    config, options
        |  1  check the options, and the libraries          options, library_patches
        v
    model of fake tensors: shapes without values
        |  2  build it, quantized and with its adapter      fake_model
        v
    forward and backward, by the libraries' own code
        |  3  as on a GPU, followed by the meter            simulate, library_patches
        |  4  with 2 and with 5 layers, from there to all;  extrapolate, layer
        |     where layers differ, with all of them
        v
    levels of the passes          what is trained
        |                             |  5  clipping and the optimizer's second step,
        |                             |     alone, with its state   simulate
        v                             v
        +--------------+--------------+
                       |  6  the optimizer's state on top of the passes, and what
                       |     the passes leave under the optimizer's step      predict
                       v
    each phase at its highest moment, by category
                       |  7  the highest phase is the peak  StepMemory
                       v
                     peak

The rule of step 6: the passes run as if the optimizer had no state. It is of the same size all
through the step, so it comes on top of every moment of theirs, and the few layers of step 4 need
none. What the passes leave once their graph is freed lies under every moment of clipping and of the
optimizer's step, but for the gradients, which that step counts itself.

Of DPO and GRPO, step 3 has more passes than two: the reference's, and a generation's first token
and last (trl_steps). The levels of each are extrapolated in the same way, from four layers to five.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from preflight.memory_plan.advice import Change, Overhead, largest
from preflight.memory_plan.default_adapter import default_adapter
from preflight.memory_plan.gpu_fit import GPUFit, GPUFitTable, fit_gpus, plan_text
from preflight.memory_plan.gpus import GPU, GPUS, find_gpu, gpu_table
from preflight.memory_plan.options import GENERATIONS, METHODS, OPTIMIZERS
from preflight.memory_plan.predict import Shared, predict
from preflight.memory_plan.sharding import Units, sharded, units
from preflight.memory_plan.throughput import flops_per_token, tokens_per_second

__all__ = [
    "GENERATIONS",
    "GPU",
    "GPUS",
    "METHODS",
    "OPTIMIZERS",
    "Change",
    "GPUFit",
    "GPUFitTable",
    "Overhead",
    "Shared",
    "Units",
    "default_adapter",
    "find_gpu",
    "fit_gpus",
    "flops_per_token",
    "gpu_table",
    "largest",
    "plan_text",
    "predict",
    "sharded",
    "tokens_per_second",
    "units",
]
