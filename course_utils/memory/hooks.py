"""Tells a meter what a model is doing: which phase, which layer, whose gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from course_utils.memory.meter import MemoryMeter, static_tensors, tensors_in


@contextmanager
def attached(meter: MemoryMeter, model: nn.Module, optimizer: Any = None) -> Iterator[None]:
    """Book what a model holds, and follow its passes and its optimizer until the context ends.

    Nothing that the hooks do changes a value.
    """
    for category, tensor in static_tensors(model):
        meter.add(tensor, category)
    with ExitStack() as stack:

        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        hook(model.register_forward_pre_hook(lambda *_: _start_forward(meter)))
        body = body_of(model)
        if body is not None:
            hook(body.register_forward_hook(lambda *call: _start_head(meter, call[-1])))
        for parameter in model.parameters():
            if parameter.requires_grad:
                hook(
                    parameter.register_post_accumulate_grad_hook(
                        lambda p: meter.add(p.grad, "gradients")
                    )
                )
        step = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        if hasattr(step, "register_step_pre_hook"):
            hook(step.register_step_pre_hook(lambda *_: meter.start("optimizer")))
        yield


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _start_forward(meter: MemoryMeter) -> None:
    if not _in_backward():
        meter.in_head = False
        meter.start("forward")


def _start_head(meter: MemoryMeter, output: Any) -> None:
    """The last hidden state is there: what follows is the head and the loss, until its gradient."""
    if _in_backward():
        return
    meter.in_head = True

    def leave(_: torch.Tensor) -> None:
        meter.in_head = False

    hidden = next(tensors_in(output), None)
    if hidden is not None and hidden.requires_grad:
        hidden.register_hook(leave)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that PEFT wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: nn.Module) -> nn.Module | None:
    """Return the part of a model of transformers that gives the last hidden state."""
    model = unwrapped(model)
    body = getattr(model, "base_model", None)
    if body is None or body is model:
        body = model.get_decoder() if hasattr(model, "get_decoder") else None
    return None if body is model else body


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """Return a model's decoder layers: of the lists as long as its config says, the largest."""
    model = unwrapped(model)
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    size = {id(m): sum(p.numel() for p in m.parameters()) for m in lists}
    return max(lists, key=lambda m: size[id(m)], default=None)


def mark_layers(meter: MemoryMeter, layers: nn.ModuleList) -> None:
    """Mark in the meter's ledger where each layer's work starts, forward and backward."""
    last = len(layers) - 1

    def start(phase: str, where: str | int) -> None:
        meter.ledger.start_region((phase, where))

    def before(index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        if _in_backward():
            return
        start("forward", index)
        hidden = next(tensors_in((args, kwargs)), None)
        if index == 0 and hidden is not None and hidden.requires_grad:
            hidden.register_hook(lambda _: start("backward", "after"))

    def after(index: int, output: Any) -> None:
        if _in_backward():
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
