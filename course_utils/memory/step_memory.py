"""What a training step takes, by phase and by category: the table of meter and prediction.

Used by lessons: 02, 04, 05a, 06, 07, 08, 10, 11a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from course_utils.display import Result

CATEGORIES = (
    "weights",
    "adapters",
    "gradients",
    "optimizer state",
    "activations",
    "logits and loss",
    "temporaries",
)
PHASES = ("load", "forward", "backward", "clip", "optimizer")
# What steps of DPO and GRPO have next to these, without gradients: completions that the model
# writes with a cache, and log-probabilities, the reference's for example.
ALL_PHASES = ("load", "generate", "score", *PHASES[1:])
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SCHEMA = 1


def size_text(size: int) -> str:
    """Return a number of bytes for people, in MiB below a GiB."""
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**30 else f"{size / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Sample:
    """One point in the life of a step: its phase, and the bytes that live there by category."""

    phase: str
    bytes: Mapping[str, int]


@dataclass(frozen=True)
class StepMemory(Result):
    """The memory of one training step, in bytes, each phase at its own peak.

    `phases` has, for each phase, the bytes of every category at that phase's peak. "generate" (with
    the cache of keys and values among the temporaries) and "score" (passes without gradients, such
    as the reference's in DPO) are there where a step has them:

    - *weights*: the model's parameters and buffers, with the scales of quantized ones, and those of
      a reference model that is a copy;
    - *adapters*: the parameters that PEFT added;
    - *gradients*: what is in `.grad`; *optimizer state*: what the optimizer keeps between steps;
    - *activations*: what the forward pass keeps for the backward pass, with the batch itself and
      what gradient checkpointing computes a second time;
    - *logits and loss*: all between the last hidden state and its gradient;
    - *temporaries*: what is needed in passing.

    `host` is what a paged optimizer keeps in the host's memory; it is in no phase. `timeline` has
    samples of one step in order. `allocator` is CUDA's own figure for each phase
    (`torch.cuda.max_memory_allocated`), where there is one. `device` is "cuda" or "cpu": where the
    step ran, or on which it was simulated. `settings` says what was measured or predicted.
    """

    phases: Mapping[str, Mapping[str, int]]
    host: int = 0
    timeline: tuple[Sample, ...] = ()
    allocator: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def total(self, phase: str) -> int:
        """Return the bytes that live at a phase's peak.

        Raises:
            ValueError: if there is no such phase.
        """
        if phase not in self.phases:
            raise ValueError(
                f"There is no phase {phase!r}. Allowed are {', '.join(self.phases)}. Ask for one "
                "of these."
            )
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase in which the step takes most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """The most bytes that live at any moment of the step."""
        return self.total(self.peak_phase)

    @property
    def at_peak(self) -> Mapping[str, int]:
        """The bytes of each category at the peak."""
        return self.phases[self.peak_phase]

    def to_frame(self, unit: str = "MiB") -> pd.DataFrame:
        """Return a table: a row a phase, a column a category, and their sum.

        Raises:
            ValueError: if the unit is unknown.
        """
        if unit not in UNITS:
            raise ValueError(
                f"unit={unit!r} is unknown. Allowed are {', '.join(UNITS)}. Choose one of these."
            )
        frame = pd.DataFrame.from_dict(self.phases, orient="index", columns=list(CATEGORIES))
        frame["sum"] = frame.sum(axis=1)
        frame.index.name = "phase"
        return frame if unit == "B" else frame / UNITS[unit]  # bytes stay whole numbers

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in bytes; the timeline is left out."""
        data = asdict(self)
        del data["timeline"]
        return {"schema": SCHEMA, "peak": self.peak, "peak_phase": self.peak_phase, **data}

    def headers(self) -> tuple[str, ...]:
        return ("MiB", *self.phases)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text: a row a category that is used, a column a phase."""
        found = {name: [row[name] for row in self.phases.values()] for name in CATEGORIES}
        found = {name: sizes for name, sizes in found.items() if any(sizes)}
        found["sum"] = [self.total(phase) for phase in self.phases]
        if self.allocator:
            found["CUDA allocated"] = [self.allocator.get(phase) for phase in self.phases]
        return [
            (name, *("" if size is None else f"{size / 2**20:,.1f}" for size in sizes))
            for name, sizes in found.items()
        ]

    def summary(self) -> str:
        """Return the peak in one sentence."""
        host = f", and {size_text(self.host)} on the host" if self.host else ""
        largest = max(self.at_peak, key=self.at_peak.get)
        return (
            f"Peak {size_text(self.peak)} in the {self.peak_phase} phase{host}; the largest part "
            f"is {largest} ({size_text(self.at_peak[largest])})."
        )

    def __repr__(self) -> str:
        return str(self)
