"""Optimizers by the names of `TrainingArguments.optim`, as the trainers set them up.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer, TrainingArguments

from preflight.memory_plan.library_patches import ready_for_fake

# Those of TrainingArguments.optim that need no further package. Without paged AdEMAMix, which
# bitsandbytes cannot make where there is no GPU.
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
)


def make_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    in_32_bits: list[torch.nn.Parameter],
    fake: FakeTensorMode,
    device: str,
) -> torch.optim.Optimizer:
    """Return the optimizer that a trainer makes of a name, for fake parameters on the CPU.

    On a GPU, torch works on all parameters at once (`foreach`) where no other way is asked for.
    `in_32_bits` are parameters of embeddings, whose state the trainers keep so with bitsandbytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, optim=name, report_to="none", use_cpu=True)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    plain_torch = kind.__module__.startswith("torch.optim") and not options.get("fused")
    if device == "cuda" and plain_torch:
        options["foreach"] = True
    if "bitsandbytes" not in kind.__module__:
        with fake:  # Adagrad makes its state here
            return kind(groups, **options)
    optimizer = kind(groups, **options)  # its code books are made of values
    ready_for_fake(optimizer, fake, in_32_bits)
    return optimizer
