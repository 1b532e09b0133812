"""The clock of steps, in a real training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import CALM
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from course_utils.paths import POCKET_MODEL
from course_utils.timing import StepClock

PAUSE = 0.2  # seconds


class Pause(TrainerCallback):
    """Sleeps at one moment of each step."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self._sleep)

    def _sleep(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(PAUSE)


def clocks(folder: Path, *callbacks: TrainerCallback) -> tuple[StepClock, StepClock]:
    """Return the clock of the step and of the optimizer, after three steps of two batches."""
    step, optimizer = StepClock(), StepClock("optimizer")
    rows = {"input_ids": [[5, 6, 7, 8]] * 8, "labels": [[5, 6, 7, 8]] * 8}
    Trainer(
        AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        TrainingArguments(
            str(folder), max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=2,
            **CALM,
        ),
        train_dataset=Dataset.from_dict(rows),
        callbacks=[step, optimizer, *callbacks],
    ).train()  # fmt: skip
    return step, optimizer


def test_a_time_for_each_update(tmp_path: Path) -> None:
    """An update of several batches is one step, and the optimizer is a part of it."""
    step, optimizer = clocks(tmp_path)
    pairs = list(zip(step.seconds, optimizer.seconds, strict=True))
    assert len(pairs) == 3
    assert all(0 < part < whole for whole, part in pairs)
    assert step.median == sorted(step.seconds)[1]


def test_only_its_own_part_counts(tmp_path: Path) -> None:
    """What is waited for outside the optimizer, or between two steps, is left out."""
    step, optimizer = clocks(tmp_path, Pause("on_substep_end"))
    pairs = list(zip(step.seconds, optimizer.seconds, strict=True))
    assert all(whole - part >= PAUSE for whole, part in pairs)
    started = time.perf_counter()
    step, _ = clocks(tmp_path, Pause("on_step_end"))
    assert sum(step.seconds) <= time.perf_counter() - started - 3 * PAUSE


def test_a_wrong_part_and_no_step() -> None:
    with pytest.raises(ValueError, match='Allowed are "step" and "optimizer"'):
        StepClock("backward")
    with pytest.raises(ValueError, match=r"No step has been timed yet.*train\(\)"):
        _ = StepClock().median
