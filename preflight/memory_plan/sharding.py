"""A training step's memory on each of several GPUs that share the model (FSDP, ZeRO stage 3).

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from course_utils.memory.step_memory import Sample, StepMemory
from preflight.memory_plan.simulate import layers_of

DIVIDED = ("weights", "adapters", "gradients", "optimizer state")
# fully_shard gathers the next layer while one computes: torch, docs/notes/fsdp, "implicit
# prefetching" (2025).
LAYERS_AT_ONCE = 2


@dataclass(frozen=True)
class Units:
    """What fully sharded training gathers as a whole: `outside` the layers, and one `layer`.

    Both are parts of the model's parameters, between 0 and 1.
    """

    parameters: int
    outside: float
    layer: float


def units(model: str | Path | PretrainedConfig) -> Units:
    """Return how a model's parameters are divided into what is gathered at one time.

    Each layer is a unit; embeddings, head and the rest are another, as accelerate wraps a model
    (`fsdp2_prepare_model`, 1.15). The model is built without its weights.

    Raises:
        ValueError: if the model has no list of layers.
    """
    config = load_config(model)
    empty = build_empty(config)
    layers = layers_of(empty)
    if layers is None:
        raise ValueError(
            f"A model of type {config.model_type!r} has no list of layers, by which sharded "
            "training divides it. Give a transformer that stacks its layers in a ModuleList."
        )
    total = _count(empty)
    sizes = [_count(layer) for layer in layers]
    return Units(total, (total - sum(sizes)) / total, max(sizes) / total)


def check_degree(degree: int) -> None:
    """Raise a ValueError if `degree` is not a number of GPUs."""
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
        raise ValueError(
            f"A sharding degree of {degree!r} was given. It has to be a whole number of at least "
            "1: how many GPUs share the model. Give 1 for a single GPU."
        )


def sharded(
    step: StepMemory, model: str | Path | PretrainedConfig | Units, degree: int
) -> StepMemory:
    """Return the memory of a step on one of `degree` GPUs that share the model.

    Weights, adapters, gradients and optimizer state are divided by the degree; activations, logits
    and temporaries are not, as each GPU has a batch of its own (ZeRO, arXiv 1910.02054, section 5,
    stage 3). While it computes, a GPU holds more than its part, whole (PyTorch FSDP, arXiv
    2304.11277, section 3.2): here embeddings and head for all of forward and backward, the weights
    of two layers, as the next is gathered ahead, and the gradients of one unit until they are
    summed. These are counted as temporaries. It is an upper estimate: with mixed precision what is
    gathered may be in half the bytes, and the copies in half precision that autocast keeps of
    float32 weights, which sharded training does not make, are still in it (plan with
    `mixed_precision="no"` to leave them out). Buffers for communication (NCCL) are not in it.
    `model` is the one that was predicted, or its `units`.

    Raises:
        ValueError: if the degree is not a whole number of at least 1.
    """
    check_degree(degree)
    if degree == 1:
        return step
    parts = model if isinstance(model, Units) else units(model)
    load = step.phases["load"]
    outside = _outside_bytes(step, parts)
    # What is not outside is in the layers; a layer's part of that is the same in any precision.
    share = parts.layer / (1 - parts.outside)
    layer = share * (load["weights"] - outside + load["adapters"])
    # Adapters are in the layers; full training also has the gradients of what is outside.
    summed = share if load["adapters"] else max(parts.layer, parts.outside)

    def on_one(phase: str, alone: Mapping[str, int]) -> dict[str, int]:
        held = {k: -(-n // degree) if k in DIVIDED else n for k, n in alone.items()}
        if phase in ("forward", "backward"):
            gathered = outside + min(LAYERS_AT_ONCE * layer, load["weights"] - outside)
            if phase == "backward":
                gathered += summed * alone["gradients"]
            # No more than what the GPU does not hold anyway.
            held["temporaries"] += int(gathered * (degree - 1) / degree)
        return held

    timeline = tuple(Sample(s.phase, on_one(s.phase, s.bytes)) for s in step.timeline)
    phases = {}
    for phase, alone in step.phases.items():
        # Divided unequally, another moment of the phase can be its largest.
        moments = [on_one(phase, alone), *(s.bytes for s in timeline if s.phase == phase)]
        phases[phase] = max(moments, key=lambda held: sum(held.values()))
    return replace(
        step,
        phases=phases,
        host=-(-step.host // degree),
        timeline=timeline,
        allocator={},
        settings={**step.settings, "shards": degree},
    )


def _outside_bytes(step: StepMemory, parts: Units) -> int:
    """Return the bytes of the weights outside the layers, which are never quantized."""
    dtype = getattr(torch, str(step.settings.get("dtype", "bfloat16")).removeprefix("torch."))
    size = 4 if step.settings.get("prepare_for_kbit") else dtype.itemsize
    return min(int(parts.parameters * parts.outside) * size, step.phases["load"]["weights"])


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
