"""What a training step allocates: when each storage came, when it was freed, and what it is for.

Used by lessons: 02, 04, 05a, 06, 07, 08, 10, 11a.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.memory.step_memory import ALL_PHASES, CATEGORIES, Sample

SAMPLES = 400
# What runs at a moment. "recompute" is gradient checkpointing's second forward pass, which is a
# part of the backward phase.
PHASE_OF = {"recompute": "backward"}

Region = tuple[str, str | int]
# A phase, and the bytes in use at one moment of it: a number a category, in their order.
Moment = tuple[str, np.ndarray]


@dataclass(slots=True)
class Allocation:
    """A storage: its bytes, what it is for, the run in which it came, and the event that freed it.

    `category` is None where it follows from the rest: what was allocated in a pass forward and
    outlives it is an activation, else it is temporary.
    """

    bytes: int
    category: str | None
    run: int
    freed_at: int | None = None


class Allocations:
    """Storages and the events (one is allocated, one is freed) in order, with marks between them.

    A *run* lasts as long as one kind of work ("begin", where what earlier steps left is counted,
    "forward", "backward", "recompute", "clip", "optimizer", "end", and without gradients
    "generate" and "score"). A *region* is finer, for the
    extrapolation: a phase, and a decoder layer's number, or what comes "before" or "after" the
    layers.
    """

    def __init__(self) -> None:
        self.storages: list[Allocation] = []
        self.events: list[tuple[int, int]] = []  # the number of a storage, +1 or -1
        self.runs: list[tuple[int, str]] = [(0, "load")]  # the event at which it starts, its kind
        self.regions: list[tuple[int, Region]] = [(0, ("load", "before"))]

    @property
    def kind(self) -> str:
        """What runs now."""
        return self.runs[-1][1]

    def start_run(self, kind: str) -> None:
        """Note that another kind of work starts now."""
        if PHASE_OF.get(kind, kind) != PHASE_OF.get(self.kind, self.kind):
            self.start_region((kind, "before"))
        self.runs.append((len(self.events), kind))

    def start_region(self, region: Region) -> None:
        """Note that another region starts now."""
        self.regions.append((len(self.events), region))

    def allocated(self, size: int, category: str | None) -> int:
        """Note that a storage of `size` bytes was allocated; return its number."""
        number = len(self.storages)
        self.storages.append(Allocation(size, category, len(self.runs) - 1))
        self.events.append((number, 1))
        return number

    def freed(self, number: int) -> None:
        """Note that a storage was freed."""
        self.storages[number].freed_at = len(self.events)
        self.events.append((number, -1))

    def category(self, storage: Allocation) -> str:
        """Return what a storage was for, now that its end is known."""
        if storage.category is not None:
            return storage.category
        if self.runs[storage.run][1] not in ("forward", "recompute"):
            return "temporaries"
        last = storage.run + 1 == len(self.runs)
        end = len(self.events) if last else self.runs[storage.run + 1][0]
        outlives = storage.freed_at is None or storage.freed_at >= end
        return "activations" if outlives else "temporaries"

    def levels(self) -> np.ndarray:
        """Return the bytes in use after each event: a row an event (0: before all), a column a
        category."""
        changes = np.zeros((len(self.events) + 1, len(CATEGORIES)), dtype=np.int64)
        columns = [CATEGORIES.index(self.category(storage)) for storage in self.storages]
        for row, (number, sign) in enumerate(self.events, start=1):
            changes[row, columns[number]] += sign * self.storages[number].bytes
        return changes.cumsum(axis=0)

    def between(self, marks: list[tuple[int, Any]]) -> Iterator[tuple[Any, slice]]:
        """Yield each mark's name with the rows of `levels` up to the next mark, the level before
        it first."""
        ends = [start for start, _ in marks[1:]] + [len(self.events)]
        for (start, name), end in zip(marks, ends, strict=True):
            yield name, slice(start, end + 1)

    def moments(self, levels: np.ndarray) -> list[Moment]:
        """Return some 400 moments in order, each the highest of its part of a run."""
        found = []
        for kind, rows in self.between(self.runs):
            part, phase = levels[rows], PHASE_OF.get(kind, kind)
            count = max(1, round(SAMPLES * len(part) / len(levels)))
            for piece in np.array_split(part, min(count, len(part))):
                found.append((phase, highest(piece)))
        return found


def highest(levels: np.ndarray) -> np.ndarray:
    """Return the row with the largest sum."""
    return levels[levels.sum(axis=1).argmax()]


def phases_and_timeline(
    moments: list[Moment],
) -> tuple[dict[str, dict[str, int]], tuple[Sample, ...]]:
    """Return each phase's highest moment, and all moments in order but for those of loading."""
    peaks = {
        phase: highest(np.array([row for name, row in moments if name == phase]))
        for phase in ALL_PHASES
        if any(name == phase for name, _ in moments)
    }
    steps = ALL_PHASES[1:]
    timeline = tuple(Sample(phase, _by_name(row)) for phase, row in moments if phase in steps)
    return {phase: _by_name(row) for phase, row in peaks.items()}, timeline


def _by_name(row: np.ndarray) -> dict[str, int]:
    return dict(zip(CATEGORIES, map(int, row), strict=True))
