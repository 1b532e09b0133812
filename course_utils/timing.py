"""How long the steps of a training take.

Used by lessons: 05a, 06, 07.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Literal

import torch
from transformers import TrainerCallback

# Part -> the trainer's events at its beginning and its end.
PARTS = {
    "step": ("on_step_begin", "on_step_end"),
    "optimizer": ("on_pre_optimizer_step", "on_optimizer_step"),
}


class StepClock(TrainerCallback):
    """Times each step of Trainer, SFTTrainer or another trainer of that family.

    `part` is "step", with forward, backward and optimizer of all batches that make one update, or
    "optimizer", its own part alone. `seconds` has them in order. A GPU works on after Python has
    gone on, so the clock waits for it before it reads the time.

    Raises:
        ValueError: for another part.
    """

    def __init__(self, part: Literal["step", "optimizer"] = "step") -> None:
        if part not in PARTS:
            raise ValueError(f'part={part!r}. Allowed are "step" and "optimizer".')
        self.seconds: list[float] = []
        self._started = 0.0
        for event, note in zip(PARTS[part], (self._start, self._stop), strict=True):
            setattr(self, event, note)

    @property
    def median(self) -> float:
        """The median in seconds: unlike the mean it is not moved by one slow step.

        Raises:
            ValueError: before the first step has ended.
        """
        if not self.seconds:
            raise ValueError("No step has been timed yet. Give the clock to a trainer and train().")
        return statistics.median(self.seconds)

    def _start(self, *args: Any, **kwargs: Any) -> None:
        self._started = _now()

    def _stop(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(_now() - self._started)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
