"""The schedule explorer: how the learning rate goes over a training, by the library's scheduler."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets
import pandas as pd
import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from course_utils import plots
from course_utils.display import html_table, text_table
from course_utils.widgets.explorer import Explorer, before_and_now, call, code, control

# These two follow the evaluation loss, so nothing can be said of them before a training.
FOLLOW_THE_LOSS = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = tuple(s.value for s in SchedulerType if s.value not in FOLLOW_THE_LOSS)
IGNORES_WARMUP = "constant"
TRAINING = ("lr_scheduler_type", "learning_rate", "max_steps", "warmup_steps")
# Which of the explorer's three further controls a schedule takes.
_OWN = {
    "cosine_with_restarts": ("cycles",),
    "polynomial": ("lowest",),
    "cosine_with_min_lr": ("lowest",),
    "cosine_warmup_with_min_lr": ("lowest",),
    "warmup_stable_decay": ("lowest", "decay"),
}


@dataclass(frozen=True)
class Schedule:
    """What these arguments of TrainingArguments make of the learning rate.

    `rates` has the learning rate of each step, counted from 1, as a trainer logs it;
    `warmup` is the number of steps asked for, whether the schedule heeds it or not.
    """

    arguments: Mapping[str, Any]
    rates: pd.Series
    warmup: int

    @property
    def name(self) -> str:
        """The schedule's name."""
        return self.arguments["lr_scheduler_type"]

    @property
    def code(self) -> str:
        """The arguments as Python text."""
        return call("TrainingArguments", self.arguments)

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

    def table(self) -> str:
        """Return the numbers as an HTML table, without the code."""
        return html_table(self.rows(), ("", "value"))

    def __str__(self) -> str:
        return f"{text_table(self.rows(), ('', 'value'))}\n\n{self.code}"

    def _repr_html_(self) -> str:
        return self.table() + code(self.code)


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


class ScheduleExplorer(Explorer):
    """The schedule explorer; `now` is what it shows."""

    def __init__(self, learning_rate: float, max_steps: int) -> None:
        self.now: Schedule | None = None
        slider, menu = ipywidgets.SelectionSlider, ipywidgets.Dropdown
        share, whole = ipywidgets.FloatSlider, ipywidgets.IntSlider
        peaks = sorted({1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, learning_rate})
        controls = {
            "lr_scheduler_type": control(menu, "schedule", "cosine", SCHEDULES),
            "learning_rate": control(slider, "learning rate", learning_rate, peaks),
            "max_steps": control(
                whole, "steps", max_steps, min=min(10, max_steps), max=max(500, max_steps), step=10
            ),
            "warmup_steps": control(share, "warm-up (share)", 0.1, min=0, max=0.5, step=0.01),
            "lowest": control(share, "lowest (share)", 0.1, min=0, max=0.9, step=0.05),
            "cycles": control(whole, "cycles", 3, min=1, max=6),
            "decay": control(share, "decay (share)", 0.2, min=0.05, max=0.5, step=0.05),
        }
        super().__init__(controls)

    def show(self, settings: Mapping[str, Any]) -> None:
        own = own_arguments(**settings)
        for name in ("lowest", "cycles", "decay"):
            self.controls[name].disabled = name not in _OWN.get(settings["lr_scheduler_type"], ())
        common = {name: settings[name] for name in TRAINING}
        before, self.now = self.now, schedule_summary(**common, lr_scheduler_kwargs=own)
        self.tell(self.now.table(), self.now.code)
        shown = before_and_now(self.now, before)
        curves = {f"{when}: {one.name}": one.rates for when, one in shown.items()}
        figure = plots.loss_curves(curves, "Learning rate", ylabel="learning rate")
        self.draw(figure, " ".join(f"{when}: {one.summary()}" for when, one in shown.items()))


def own_arguments(
    lr_scheduler_type: str,
    learning_rate: float,
    max_steps: int,
    lowest: float = 0.1,
    cycles: int = 3,
    decay: float = 0.2,
    **others: Any,
) -> dict[str, Any]:
    """Return the `lr_scheduler_kwargs` of a schedule, by the names that its scheduler has.

    `lowest` and `decay` are shares: of the learning rate, and of the steps. What a schedule does
    not take is left out.
    """
    values = {
        "cosine_with_restarts": {"num_cycles": cycles},
        "polynomial": {"lr_end": lowest * learning_rate},
        "cosine_with_min_lr": {"min_lr_rate": lowest},
        "cosine_warmup_with_min_lr": {"min_lr_rate": lowest},
        "warmup_stable_decay": {
            "num_decay_steps": max(1, round(decay * max_steps)),
            "min_lr_ratio": lowest,
        },
    }
    return values.get(lr_scheduler_type, {})


def schedule_explorer(learning_rate: float = 2e-4, max_steps: int = 100) -> ScheduleExplorer:
    """Return controls for a schedule, with its curve and the arguments to copy, as a widget.

    It shows what `schedule_summary` returns for the controls' values, and the setting before it.

    Raises:
        ValueError: as `schedule_summary`.
    """
    schedule_summary("cosine", learning_rate, max_steps)
    return ScheduleExplorer(learning_rate, max_steps)
