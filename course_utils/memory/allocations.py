"""The books of a training step: when each storage came, when it went, and what it was for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.memory.step_memory import CATEGORIES, PHASES, Sample

SAMPLES = 400
# What runs at a moment. "recompute" is gradient checkpointing's second forward pass, which is a
# part of the backward phase.
PHASE_OF = {"recompute": "backward"}

Region = tuple[str, str | int]


@dataclass(slots=True)
class Entry:
    """A storage: its bytes, when it came and went (as numbers of events), and what it is for.

    `category` is None where it follows from the rest: what was allocated in a pass forward and
    outlives it is an activation, else it is temporary. `run` is the pass in which it came.
    """

    bytes: int
    category: str | None
    run: int
    died: int | None = None


class Ledger:
    """Entries and the events (an entry comes, an entry goes) in order, with marks between them.

    A *run* is a stretch of one kind of work ("begin", where what earlier steps left is booked,
    "forward", "backward", "recompute", "clip", "optimizer", "end"). A *region* is a finer stretch,
    which the extrapolation reads: a phase, and a decoder layer's number, or what comes "before" or
    "after" the layers.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.events: list[tuple[int, int]] = []  # the number of an entry, +1 or -1
        self.runs: list[tuple[int, str]] = [(0, "load")]  # the event at which it starts, its kind
        self.regions: list[tuple[int, Region]] = [(0, ("load", "before"))]

    @property
    def kind(self) -> str:
        """What runs now."""
        return self.runs[-1][1]

    def start_run(self, kind: str) -> None:
        """Say that another kind of work starts now."""
        if PHASE_OF.get(kind, kind) != PHASE_OF.get(self.kind, self.kind):
            self.start_region((kind, "before"))
        self.runs.append((len(self.events), kind))

    def start_region(self, region: Region) -> None:
        """Say that another region starts now."""
        self.regions.append((len(self.events), region))

    def born(self, size: int, category: str | None) -> int:
        """Book a storage of `size` bytes; return its number."""
        number = len(self.entries)
        self.entries.append(Entry(size, category, len(self.runs) - 1))
        self.events.append((number, 1))
        return number

    def died(self, number: int) -> None:
        """Book that a storage was freed."""
        self.entries[number].died = len(self.events)
        self.events.append((number, -1))

    def category(self, entry: Entry) -> str:
        """Return what a storage was for, now that its end is known."""
        if entry.category is not None:
            return entry.category
        if self.runs[entry.run][1] not in ("forward", "recompute"):
            return "temporaries"
        end = self.runs[entry.run + 1][0] if entry.run + 1 < len(self.runs) else len(self.events)
        outlives = entry.died is None or entry.died >= end
        return "activations" if outlives else "temporaries"

    def levels(self) -> np.ndarray:
        """Return the bytes that live after each event: a row an event (0: before all), a column a
        category."""
        changes = np.zeros((len(self.events) + 1, len(CATEGORIES)), dtype=np.int64)
        columns = [CATEGORIES.index(self.category(entry)) for entry in self.entries]
        for row, (number, sign) in enumerate(self.events, start=1):
            changes[row, columns[number]] += sign * self.entries[number].bytes
        return changes.cumsum(axis=0)

    def stretches(self, marks: list[tuple[int, Any]]) -> Iterator[tuple[Any, slice]]:
        """Yield each stretch between marks with its rows of `levels`, the level before it first."""
        ends = [start for start, _ in marks[1:]] + [len(self.events)]
        for (start, name), end in zip(marks, ends, strict=True):
            yield name, slice(start, end + 1)


def peaks(ledger: Ledger, levels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the categories' bytes at the highest moment of each phase."""
    found: dict[str, np.ndarray] = {}
    for kind, rows in ledger.stretches(ledger.runs):
        phase, top = PHASE_OF.get(kind, kind), highest(levels[rows])
        if phase not in found or top.sum() > found[phase].sum():
            found[phase] = top
    return {phase: found[phase] for phase in PHASES if phase in found}


def highest(levels: np.ndarray) -> np.ndarray:
    """Return the row with the largest sum."""
    return levels[levels.sum(axis=1).argmax()]


def as_dict(row: np.ndarray) -> dict[str, int]:
    """Return a row of `levels` by the categories' names."""
    return dict(zip(CATEGORIES, map(int, row), strict=True))


def samples(ledger: Ledger, levels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return some 400 moments of a step in order: a phase and a row of levels, the highest of its
    stretch."""
    found = []
    for kind, rows in ledger.stretches(ledger.runs):
        part, phase = levels[rows], PHASE_OF.get(kind, kind)
        count = max(1, round(SAMPLES * len(part) / len(levels)))
        for piece in np.array_split(part, min(count, len(part))):
            found.append((phase, highest(piece)))
    return found


def timeline(moments: list[tuple[str, np.ndarray]]) -> tuple[Sample, ...]:
    """Return moments as a table's samples; what comes before the step is left out."""
    return tuple(Sample(phase, as_dict(row)) for phase, row in moments if phase in PHASES[1:])
