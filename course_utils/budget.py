"""How much of a lesson's work a larger model can do in the same time.

Used by lessons: none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from course_utils import paths
from course_utils.models import BaseModel

TOKENS = (4, 128)  # rows and tokens of the batch that is timed
PATIENCE = 6.0  # a lesson may take so many times as long as with the pocket model


@dataclass(frozen=True)
class Budget:
    """What share of a lesson's rows and steps is done: 1 is all of it."""

    share: float
    slowness: float  # times the pocket model's time for a batch

    def rows(self, dataset: Dataset, at_least: int = 32) -> Dataset:
        """Return evenly spread rows of a dataset: the share, but no fewer than `at_least`."""
        count = min(len(dataset), max(at_least, round(len(dataset) * self.share)))
        if count == len(dataset):
            return dataset
        return dataset.select([i * len(dataset) // count for i in range(count)])

    def steps(self, steps: int, at_least: int = 4) -> int:
        """Return the share of a number of steps, but no fewer than `at_least`."""
        return min(steps, max(at_least, round(steps * self.share)))

    def __str__(self) -> str:
        if self.share == 1:
            return "all rows and steps"
        return (
            f"a batch takes {self.slowness:.0f} times as long here as with the pocket model, so "
            f"about {self.share:.0%} of the rows and steps are used"
        )


def measure(base: BaseModel, patience: float = PATIENCE) -> Budget:
    """Return the share of a lesson's work with which it takes `patience` times the pocket's time.

    One training batch of both models is timed on this machine. With the pocket model, and on a
    GPU, all of the work is done.
    """
    if base.is_pocket or torch.cuda.is_available():
        return Budget(1.0, 1.0)
    slowness = _seconds(base.path) / _seconds(str(paths.POCKET_MODEL))
    return Budget(min(1.0, patience / slowness), slowness)


def _seconds(path: str) -> float:
    """Return the time of a forward and a backward pass: the faster of two."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.randint(0, model.config.vocab_size, TOKENS)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        times.append(time.perf_counter() - start)
        model.zero_grad()
    return min(times)
