"""Measure a training step as it runs: around a few lines, or inside a trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from course_utils.memory.allocations import as_dict, peaks, samples, timeline
from course_utils.memory.hooks import attached
from course_utils.memory.meter import CUDA_BLOCK, MemoryMeter
from course_utils.memory.optimizer_states import states
from course_utils.memory.step_memory import PHASES, StepMemory


class Measurement:
    """A step being measured; `memory` is there when the `with` block of `measure` has ended."""

    def __init__(self, model: nn.Module, optimizer: Any = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = next(model.parameters()).device.type
        self.meter = MemoryMeter(self.device, CUDA_BLOCK if self.device == "cuda" else 1)
        self.memory: StepMemory | None = None
        self._stack = ExitStack()

    def phase(self, name: str) -> None:
        """Say that a phase starts; needed only for an optimizer that is not one of torch's kind.

        Raises:
            ValueError: if there is no such phase.
        """
        if name not in PHASES[1:]:
            raise ValueError(f"There is no phase {name!r}. Allowed are {', '.join(PHASES[1:])}.")
        self.meter.start(name)

    def begin(self) -> None:
        """Start to measure."""
        self._stack.enter_context(attached(self.meter, self.model, self.optimizer))
        # What lies there from earlier steps is no part of loading, and does not come with forward.
        self.meter.ledger.start_run("begin")
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self.meter.add(parameter.grad, "gradients")
        self._book_states()
        self.meter.start("forward")
        self._stack.enter_context(self.meter)

    def end(self, **settings: Any) -> None:
        """Stop, and make the table."""
        self._stack.close()
        self.meter.read_allocator()
        host = self._book_states()
        ledger = self.meter.ledger
        levels = ledger.levels()
        self.memory = StepMemory(
            phases={phase: as_dict(row) for phase, row in peaks(ledger, levels).items()},
            host=host,
            timeline=timeline(samples(ledger, levels)),
            allocator=dict(self.meter.allocator),
            device=self.device,
            settings=settings,
        )

    def abandon(self) -> None:
        """Stop without a table."""
        self._stack.close()

    def _book_states(self) -> int:
        """Book what the optimizer keeps; return the bytes of it that lie on the host."""
        host = 0
        if self.optimizer is not None:
            for value, place in states(self.optimizer, self.device):
                if place == "host":
                    host += value.nbytes if value.dim() else 0
                else:
                    self.meter.add(value, "optimizer state")
        return host


@contextmanager
def measure(model: nn.Module, optimizer: Any = None) -> Iterator[Measurement]:
    """Measure the training step in the `with` block; it must run the model forward and backward.

    Forward, backward, clipping and the optimizer's step are told apart by themselves::

        with measure(model, optimizer) as measurement:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        measurement.memory

    The first step of an optimizer that makes its state on the way is lower than the others:
    measure the second.
    """
    measurement = Measurement(model, optimizer)
    measurement.begin()
    try:
        yield measurement
    except BaseException:
        measurement.abandon()
        raise
    measurement.end(model=type(model).__name__)


class MeterCallback(TrainerCallback):
    """Measures one step of Trainer, SFTTrainer or another trainer of that family.

    `step` is the number of the step, counted from 1; `memory` has the table afterwards. All other
    steps run without the meter. The second step is the first in which the optimizer has its state.
    A step that is broken off, by an error or by Ctrl-C in a notebook, is let go of without a table.
    """

    _measuring: ClassVar[set[MeterCallback]] = set()

    def __init__(self, step: int = 2) -> None:
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"step={step!r}. Allowed is a whole number from 1 on.")
        self.step = step
        self.memory: StepMemory | None = None
        self._running: Measurement | None = None
        self._events: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        # A trainer tells no callback that it ends by an error: the meter would run for ever.
        for callback in tuple(self._measuring):
            callback.let_go()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step + 1 == self.step and model is not None:
            self._running = Measurement(model, optimizer)
            self._measuring.add(self)
            self._events = _events_of_notebook()
            if self._events is not None:  # a cell that has ended runs no more steps
                self._events.register("post_run_cell", self.let_go)
            self._running.begin()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._running is not None:
            self._running.end(trainer_step=self.step, optimizer=str(args.optim))
            self.memory = self._running.memory
            self.let_go()

    def let_go(self, cell: object = None) -> None:
        """Stop to measure, if a step is being measured; there is no table then.

        A notebook does so by itself. A script whose trainer may end by an error, and that goes on,
        has to call it: a trainer tells no callback of an error.
        """
        if self._running is not None:
            self._running.abandon()
            self._running = None
            self._measuring.remove(self)
            if self._events is not None:
                self._events.unregister("post_run_cell", self.let_go)


def _events_of_notebook() -> Any:
    """Return IPython's events, None outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return None if shell is None else shell.events
