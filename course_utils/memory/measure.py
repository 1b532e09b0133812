"""Measure a training step as it runs: around a few lines, or inside a trainer.

Hooks tell the meter what the model is doing: which phase, and whose gradient.

Used by lessons: 02, 04, 05a, 06, 07, 08, 10, 11a.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from course_utils.memory.allocations import phases_and_timeline
from course_utils.memory.meter import MemoryMeter, in_backward, static_tensors, tensors_in
from course_utils.memory.step_memory import StepMemory

# bitsandbytes pages a parameter's state from this many elements on (optim/optimizer.py).
PAGED_FROM = 100_000


@contextmanager
def attached(
    meter: MemoryMeter,
    model: nn.Module,
    optimizer: Any = None,
    reference: nn.Module | None = None,
) -> Iterator[None]:
    """Count what a model holds, and follow its passes and its optimizer until the context ends.

    A `reference` that is a model of its own is counted and followed too. Nothing that the hooks do
    changes a value.
    """
    models = [model] if reference is None else [model, reference]
    for category, tensor in (held for one in models for held in static_tensors(one)):
        meter.add(tensor, category)
    with ExitStack() as stack:

        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        for one in models:
            # `generate` of a model that PEFT wraps calls the one inside.
            for part in {one, unwrapped(one)}:
                hook(
                    part.register_forward_pre_hook(
                        lambda _, args, options: _start_forward(meter, options), with_kwargs=True
                    )
                )
            body = body_of(one)
            if body is not None:
                hook(body.register_forward_hook(lambda *call: _start_head(meter, call[-1])))

        def note_gradient(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:  # a layer can give none: experts in FP8, say
                meter.add(parameter.grad, "gradients")

        for parameter in model.parameters():
            if parameter.requires_grad:
                hook(parameter.register_post_accumulate_grad_hook(note_gradient))
        step = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        if hasattr(step, "register_step_pre_hook"):
            hook(step.register_step_pre_hook(lambda *_: meter.start("optimizer")))
        yield


def _start_forward(meter: MemoryMeter, options: dict[str, Any]) -> None:
    """A pass starts; without gradients it writes a token, with a cache, or scores what is there."""
    if not in_backward():
        meter.in_head = False
        without = "generate" if options.get("use_cache") else "score"
        meter.start("forward" if torch.is_grad_enabled() else without)


def _start_head(meter: MemoryMeter, output: Any) -> None:
    """The last hidden state is there: what follows is the head and the loss, until its gradient."""
    if in_backward():
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


def count_states(meter: MemoryMeter, optimizer: Any) -> int:
    """Count what an optimizer keeps between steps; return the bytes of it that lie on the host.

    On the host live paged states (bitsandbytes pages on GPUs only), and the step counters of
    torch's optimizers that are not fused, which are no pages and too small to count.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
    paged = getattr(optimizer, "is_paged", False)
    counters = not any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    host = 0
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                continue
            large = name in ("state1", "state2") and parameter.numel() >= PAGED_FROM
            away = (paged and large) or (counters and name == "step")
            if away and meter.simulated == "cuda":
                meter.leave_out(value)
                host += value.nbytes if value.dim() else 0
            else:
                meter.add(value, "optimizer state")
    return host


@dataclass
class Measurement:
    """A step being measured; `memory` is there when the `with` block of `measure` has ended."""

    memory: StepMemory | None = None


@contextmanager
def measure(
    model: nn.Module, optimizer: Any = None, reference: nn.Module | None = None
) -> Iterator[Measurement]:
    """Measure the training step in the `with` block; it must run the model forward and backward.

    Forward, backward, clipping and the optimizer's step are told apart by themselves::

        with measure(model, optimizer) as measurement:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        measurement.memory

    The first step of an optimizer that makes its state on the way is lower than the others:
    measure the second. `reference` is a second model that the step asks, such as `ref_model` of
    DPOTrainer in full fine-tuning.
    """
    measurement, host = Measurement(), 0
    meter = MemoryMeter(next(model.parameters()).device.type)
    allocations = meter.allocations
    with attached(meter, model, optimizer, reference):
        # What lies there from earlier steps is no part of loading, and does not come with forward.
        allocations.start_run("begin")
        for parameter in model.parameters():
            if parameter.grad is not None:
                meter.add(parameter.grad, "gradients")
        if optimizer is not None:
            count_states(meter, optimizer)
        meter.start("forward")
        with meter:
            yield measurement
    meter.read_allocator()
    if optimizer is not None:
        host = count_states(meter, optimizer)
    phases, timeline = phases_and_timeline(allocations.moments(allocations.levels()))
    settings = {"model": type(model).__name__}
    measurement.memory = StepMemory(phases, host, timeline, meter.allocator, meter.device, settings)


class MeterCallback(TrainerCallback):
    """Measures one step of Trainer, SFTTrainer or another trainer of that family.

    `step` is the number of the step, counted from 1; `memory` has the table afterwards. All other
    steps run without the meter. The second step is the first in which the optimizer has its state.
    `reference` is a model of its own that the trainer compares with (`trainer.ref_model`); a
    callback that needs it is added once the trainer is there, by `trainer.add_callback`.
    A step that is broken off, by an error or by Ctrl-C in a notebook, ends without a table.
    """

    _measuring: ClassVar[set[MeterCallback]] = set()

    def __init__(self, step: int = 2, reference: nn.Module | None = None) -> None:
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"step={step!r}. Allowed is a whole number from 1 on.")
        self.step, self.reference = step, reference
        self.memory: StepMemory | None = None
        self._running = ExitStack()
        self._measurement = Measurement()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A trainer tells no callback that it ends by an error: the meter would run for ever.
        for callback in tuple(self._measuring):
            callback.stop()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self.step:
            self._measuring.add(self)
            events = _events_of_notebook()
            if events is not None:  # a cell that has ended runs no more steps
                events.register("post_run_cell", self.stop)
                self._running.callback(events.unregister, "post_run_cell", self.stop)
            step = measure(kwargs["model"], kwargs["optimizer"], self.reference)
            self._measurement = self._running.enter_context(step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self in self._measuring:
            self.stop()
            self.memory = self._measurement.memory

    def stop(self, cell: object = None) -> None:
        """Stop to measure, if a step is being measured; there is no table then.

        A notebook does so by itself. A script whose trainer may end by an error, and that goes on,
        has to call it: a trainer tells no callback of an error.
        """
        self._measuring.discard(self)
        self._running.close()


def _events_of_notebook() -> Any:
    """Return IPython's events, None outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return None if shell is None else shell.events
