"""A model's decoder layers: find them, take fewer, mark where each works, hold them together.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from course_utils.memory.measure import unwrapped
from course_utils.memory.meter import MemoryMeter, in_backward, tensors_in


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """Return a model's decoder layers: the largest list, of those as long as its config says.

    Where none is as long, the largest of all; None where there is no list.
    """
    model = unwrapped(model)
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    size = {id(m): sum(p.numel() for p in m.parameters()) for m in lists}
    return max(lists, key=lambda m: (len(m) == count, size[id(m)]), default=None)


def with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """Return a copy of a config with the first `count` of its layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return config


def mark_layers(meter: MemoryMeter, layers: nn.ModuleList) -> None:
    """Mark in the meter's allocations where each layer's work starts, forward and backward."""
    last = len(layers) - 1

    def start(phase: str, where: str | int) -> None:
        meter.allocations.start_region((phase, where))

    def before(index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        if in_backward():
            return
        start("forward", index)
        hidden = next(tensors_in((args, kwargs)), None)
        if index == 0 and hidden is not None and hidden.requires_grad:
            hidden.register_hook(lambda _: start("backward", "after"))

    def after(index: int, output: Any) -> None:
        if in_backward():
            return
        if index == last:
            start("forward", "after")
        hidden = next(tensors_in(output), None)
        if hidden is not None and hidden.requires_grad:
            hidden.register_hook(lambda _: start("backward", index))

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: before(index, args, kwargs), with_kwargs=True
        )
        layer.register_forward_hook(lambda _, args, output, index=index: after(index, output))


def are_alike(layers: nn.ModuleList) -> bool:
    """Return whether layers use memory alike, and none shares a tensor with another."""
    own = [id(p) for layer in layers for p in layer.parameters()]
    return len({_signature(layer) for layer in layers}) == 1 and len(own) == len(set(own))


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what decides how a layer uses memory: its modules, their settings and tensors."""
    rows = []
    for name, module in layer.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | None) and "idx" not in key
        )
        tensors = tuple(
            (key, tuple(tensor.shape), tensor.dtype)
            for key, tensor in {**module._parameters, **module._buffers}.items()
            if tensor is not None
        )
        rows.append((name, type(module), settings, tensors))
    return tuple(rows)
