"""Schedules of the learning rate: its value at each step, by the scheduler a trainer would make.

Used by lessons: 02, 03, 04, 06.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from course_utils.display import CallResult

# These two follow the evaluation loss, so nothing can be said of them before a training.
FOLLOW_THE_LOSS = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = tuple(s.value for s in SchedulerType if s.value not in FOLLOW_THE_LOSS)
IGNORES_WARMUP = "constant"
# What a schedule takes of its own: each argument, and the setting of `own_arguments` it follows.
OWN = {
    "cosine_with_restarts": {"num_cycles": "cycles"},
    "polynomial": {"lr_end": "lowest"},
    "cosine_with_min_lr": {"min_lr_rate": "lowest"},
    "cosine_warmup_with_min_lr": {"min_lr_rate": "lowest"},
    "warmup_stable_decay": {"num_decay_steps": "decay", "min_lr_ratio": "lowest"},
}


@dataclass(frozen=True)
class Schedule(CallResult):
    """What these arguments of TrainingArguments make of the learning rate.

    `rates` has the learning rate of each step, counted from 1, as a trainer logs it;
    `warmup` is the number of steps asked for, whether the schedule heeds it or not.
    """

    function = "TrainingArguments"
    arguments: Mapping[str, Any]
    rates: pd.Series
    warmup: int

    @property
    def name(self) -> str:
        """The schedule's name."""
        return self.arguments["lr_scheduler_type"]

    def rows(self) -> list[tuple[str, str]]:
        """Return ``(what, value)`` for a table."""
        rates, ignored = self.rates, self.name == IGNORES_WARMUP and self.warmup > 0
        return [
            ("schedule", self.name),
            ("steps of warm-up", f"{self.warmup}{' asked for, and ignored' if ignored else ''}"),
            ("first step", f"{rates.iloc[0]:.3g}"),
            ("highest", f"{rates.max():.3g} at step {rates.idxmax()}"),
            ("last step", f"{rates.iloc[-1]:.3g}"),
            (
                "mean, of the learning rate set",
                f"{rates.mean() / self.arguments['learning_rate']:.0%}",
            ),
        ]

    def summary(self) -> str:
        """Return what the curve shows in one line of text."""
        rates = self.rates
        return (
            f"{self.name}: {rates.iloc[0]:.3g} at step 1, highest {rates.max():.3g} at step "
            f"{rates.idxmax()}, {rates.iloc[-1]:.3g} at step {rates.index[-1]}."
        )


def schedule_summary(
    lr_scheduler_type: str = "linear",
    learning_rate: float = 2e-4,
    max_steps: int = 100,
    warmup_steps: float = 0,
    lr_scheduler_kwargs: Mapping[str, Any] | None = None,
) -> Schedule:
    """Return the learning rate of each step, from the scheduler that a trainer would make.

    The arguments are those of TrainingArguments: `warmup_steps` below 1 is a share of the steps.

    Raises:
        ValueError: if an argument is out of its range, the schedule is none of `SCHEDULES`, or its
            own arguments do not fit it.
    """
    if lr_scheduler_type not in SCHEDULES:
        why = (
            "It follows the evaluation loss, which only a training has"
            if lr_scheduler_type in FOLLOW_THE_LOSS
            else "There is no such schedule"
        )
        raise ValueError(
            f"lr_scheduler_type={lr_scheduler_type!r} was given. {why}. Choose one of "
            f"{', '.join(SCHEDULES)}."
        )
    numbers = all(isinstance(n, int | float) for n in (learning_rate, warmup_steps))
    whole = isinstance(max_steps, int) and max_steps >= 1
    if not (numbers and whole and 0 < learning_rate < math.inf and 0 <= warmup_steps <= max_steps):
        raise ValueError(
            f"learning_rate={learning_rate!r}, max_steps={max_steps!r} and "
            f"warmup_steps={warmup_steps!r} were given. The learning rate is above 0, max_steps a "
            "whole number from 1 on, and the warm-up between 0 and max_steps (below 1: a share). "
            "Correct the one that is not."
        )
    arguments = {
        "learning_rate": learning_rate,
        "lr_scheduler_type": lr_scheduler_type,
        "warmup_steps": warmup_steps,
        "max_steps": max_steps,
    }
    if lr_scheduler_kwargs:
        arguments["lr_scheduler_kwargs"] = dict(lr_scheduler_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        made = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", **arguments)
    warmup = made.get_warmup_steps(max_steps)
    return Schedule(arguments, _rates(made, warmup), warmup)


def _rates(made: TrainingArguments, warmup: int) -> pd.Series:
    """Return the learning rate of each step by the library's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=made.learning_rate)
    try:
        scheduler = get_scheduler(
            made.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=made.max_steps,
            scheduler_specific_kwargs=made.lr_scheduler_kwargs or {},
        )
        rates = []
        for _ in range(made.max_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={made.lr_scheduler_kwargs!r} was given for "
            f"{made.lr_scheduler_type.value!r}, and its scheduler says: {error}. Pass the "
            "arguments that this scheduler takes."
        ) from error
    return pd.Series(rates, index=range(1, made.max_steps + 1), name="learning rate")


def own_arguments(
    lr_scheduler_type: str,
    learning_rate: float,
    max_steps: int,
    lowest: float = 0.1,
    cycles: int = 3,
    decay: float = 0.2,
) -> dict[str, Any]:
    """Return the `lr_scheduler_kwargs` of a schedule, by the names that its scheduler has.

    `lowest` and `decay` are shares: of the learning rate, and of the steps. What a schedule does
    not take is left out.
    """
    if lr_scheduler_type == "polynomial":  # which takes the rate itself
        lowest *= learning_rate
    values = {"lowest": lowest, "cycles": cycles, "decay": max(1, round(decay * max_steps))}
    return {name: values[setting] for name, setting in OWN.get(lr_scheduler_type, {}).items()}
