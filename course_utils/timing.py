"""How long the steps of a training take.

Used by lessons: 05a, 06, 07.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepClock(TrainerCallback):
    """Times each step of Trainer, SFTTrainer or another trainer of that family.

    `part` is "step", with forward, backward and optimizer of all batches that make one update, or
    "optimizer", its own part alone. `seconds` has them in order. A GPU works on after Python has
    gone on, so the clock waits for it before it reads the time.

    Raises:
        ValueError: for another part.
    """

    def __init__(self, part: Literal["step", "optimizer"] = "step") -> None:
        if part not in ("step", "optimizer"):
            raise ValueError(f'part={part!r}. Allowed are "step" and "optimizer".')
        self.part = part
        self.seconds: list[float] = []
        self._started = 0.0

    @property
    def median(self) -> float:
        """The median in seconds: unlike the mean it is not moved by one slow step.

        Raises:
            ValueError: before the first step has ended.
        """
        if not self.seconds:
            raise ValueError("No step has been timed yet. Give the clock to a trainer and train().")
        return statistics.median(self.seconds)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.part == "step":
            self._started = _now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.part == "step":
            self.seconds.append(_now() - self._started)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.part == "optimizer":
            self._started = _now()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.part == "optimizer":
            self.seconds.append(_now() - self._started)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
