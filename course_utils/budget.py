"""How much of a lesson's work a larger model can do in the same time.

Used by lessons: 00, 01, 03, 04, 05a, 05b, 06, 07, 08, 09, 11a, 12.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from course_utils import paths
from course_utils.models import BaseModel

VARIABLE = "COURSE_SHARE"  # sets the share by hand, for a first look or a slow machine
TOKENS = (4, 128)  # rows and tokens of the batch that is timed
PASSES = 4
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
        if self.slowness == 1:
            return f"{self.share:.0%} of the rows and steps are used, as {VARIABLE} says"
        return (
            f"a batch takes {self.slowness:.0f} times as long here as with the pocket model, so "
            f"about {self.share:.0%} of the rows and steps are used"
        )


def measure(base: BaseModel, patience: float = PATIENCE) -> Budget:
    """Return the share of a lesson's work with which it takes `patience` times the pocket's time.

    One training batch of both models is timed on this machine. With the pocket model, and on a
    GPU, all of the work is done. With another model the variable COURSE_SHARE sets the share.

    Raises:
        ValueError: if COURSE_SHARE is no number above 0 and up to 1.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given and not base.is_pocket:
        if not re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", given):
            raise ValueError(
                f"{VARIABLE} is {given!r}. Allowed is a number above 0 and up to 1, such as 0.1 "
                "for a tenth of the rows and steps. Without it the lesson measures what fits."
            )
        return Budget(float(given), 1.0)
    if base.is_pocket or torch.cuda.is_available():
        return Budget(1.0, 1.0)
    slowness = seconds_per_token(base.path) / seconds_per_token(str(paths.POCKET_MODEL))
    return Budget(min(1.0, patience / slowness), slowness)


def seconds_per_token(path: str) -> float:
    """Return the time that a token takes in training here: forward and backward, in float32.

    It is the fastest of a few passes over a small batch, since other work can only slow one down.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = torch.randint(0, model.config.get_text_config().vocab_size, TOKENS, device=model.device)
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        float(loss.detach())  # on a GPU this waits until all is done
        times.append(time.perf_counter() - start)
        model.zero_grad()
    return min(times) / ids.numel()
