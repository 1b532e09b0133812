"""What one more layer adds to a pass, from passes through two and through five.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from course_utils.memory.allocations import Region
from preflight.memory_plan.simulate import Pass, Trained

FIRST_AND_LAST = 2
WITH_MIDDLE = 5  # two layers at the bottom, two at the top, one between them


@dataclass(frozen=True)
class Layer:
    """What one more layer adds.

    Bytes by category: at `load`, when the passes `begin`, and in `gradients` once its own backward
    pass is done. `more` are its trained parameters, `trained` all of a model of four. All of it is
    so at any batch and length if it is `steady`: if what it keeps in the forward pass is there
    in the backward pass too (autocast's copies of weights are not). At its highest, a layer in the
    middle does as the first (`like` is 0) or as the last (1); None: as neither.
    """

    load: np.ndarray
    begin: np.ndarray
    gradients: np.ndarray
    trained: tuple[Trained, ...]
    more: tuple[Trained, ...]
    steady: bool
    like: int | None = None

    def trained_of(self, count: int) -> tuple[Trained, ...]:
        """Return what is trained of a model with `count` layers."""
        return self.trained + self.more * (count - WITH_MIDDLE + 1)

    def through(self, large: Pass, count: int) -> dict[Region, np.ndarray]:
        """Return the levels of each region with `count` layers, from a pass through five.

        Of the layers, those of the two at the bottom (0, 1) and at the top (-2, -1).
        """
        kept = _kept(large.regions, 1, 2)
        later = large.regions["backward", 2][-1] - large.regions["backward", 1][-1]
        return self._raised(large.regions, WITH_MIDDLE, count, kept, later + self.gradients)

    def highest(self, two: Pass, count: int) -> dict[Region, np.ndarray]:
        """Return the same from a pass through two, where only the first row of each is proven."""
        regions, more, like = two.regions, count - FIRST_AND_LAST, self.like
        before = 0 if like else "before"
        kept = _kept(regions, before, like)
        at = self._raised(regions, FIRST_AND_LAST, count, kept, kept)
        for phase in ("forward", "backward"):
            for place in (1, -2):
                index = place % count
                rows = regions[phase, like] + more * self.begin + (index - like) * kept
                above = more - index + like  # more layers above it than above the one it is like
                done = above if phase == "backward" else 0
                at[phase, place] = rows + done * self.gradients
        return at

    def _raised(
        self,
        regions: dict[Region, np.ndarray],
        size: int,
        count: int,
        kept: np.ndarray,
        later: np.ndarray,
    ) -> dict[Region, np.ndarray]:
        """Return the levels of regions of `size` layers when others make them `count`.

        Each of these keeps some bytes in the forward pass, and those `later` in the backward pass.
        """
        at = {}
        for (phase, where), rows in regions.items():
            of_layer = isinstance(where, int)
            bottom, top = of_layer and where < size // 2, of_layer and where >= -(-size // 2)
            forward = phase == "forward"
            if phase == "load":
                rise = self.load
            elif forward and (bottom or where == "before"):
                rise = self.begin
            elif forward and top:
                rise = self.begin + kept
            elif forward:  # with the loss, where autocast ends
                rise = self.begin + np.array([kept, later])
            elif top or (phase, where) == ("backward", "before"):
                rise = self.begin + later
            else:
                rise = self.begin + self.gradients
            if bottom or top or not of_layer:
                at[phase, where - size if top else where] = rows + (count - size) * rise
        return at


def each_adds(two: Pass, large: Pass) -> Layer | None:
    """Return what each layer adds; None if the smaller model does not say what the larger does."""
    steps = WITH_MIDDLE - FIRST_AND_LAST
    added = Counter(large.trained) - Counter(two.trained)
    if Counter(two.trained) - Counter(large.trained) or any(n % steps for n in added.values()):
        return None

    def rise(*region: str) -> np.ndarray:
        return (large.regions[region][-1] - two.regions[region][-1]) // steps

    regions = large.regions
    try:
        begin = rise("forward", "before")
        gradients = rise("end", "before") - begin
        kept = _kept(regions, 1, 2)
        later = regions["backward", 2][-1] - regions["backward", 1][-1] + gradients
        more = tuple(t for t, n in added.items() for _ in range(n // steps))
        layer = Layer(
            load=rise("load", "before"),
            begin=begin,
            gradients=gradients,
            trained=_without(large.trained, more),
            more=more,
            steady=bool((kept == later).all()),
        )
        ends = layer._raised(two.regions, FIRST_AND_LAST, WITH_MIDDLE, kept, later)
        if not (_on_a_line(regions) and _same(ends, regions, rows=2)):
            return None
        for like in (0, 1) if layer.steady else ():
            alike = replace(layer, like=like)
            if _same(alike.highest(two, WITH_MIDDLE), regions, rows=1):
                return alike
    except KeyError:  # layers that are not called once each have no such regions
        return None
    return layer


def _without(trained: tuple[Trained, ...], more: tuple[Trained, ...]) -> tuple[Trained, ...]:
    """Return what is trained but for one layer, in the same order."""
    taken, left = Counter(more), []
    for one in reversed(trained):
        if taken[one]:
            taken[one] -= 1
        else:
            left.append(one)
    return tuple(reversed(left))


def _kept(regions: dict[Region, np.ndarray], before: int | str, after: int) -> np.ndarray:
    """Return what the layer `after` another keeps for its backward pass."""
    return regions["forward", after][-1] - regions["forward", before][-1]


def _on_a_line(regions: dict[Region, np.ndarray]) -> bool:
    """Return whether the layers in the middle of five add the same, forward and backward."""
    for phase in ("forward", "backward"):
        below, middle, above = (regions[phase, index] for index in (1, 2, 3))
        step = middle[-1] - below[-1]
        if (middle - below != step).any() or (above - middle != step).any():
            return False
    return True


def _same(made: dict[Region, np.ndarray], found: dict[Region, np.ndarray], rows: int) -> bool:
    """Return whether levels made for five layers are those found, in the first rows of each."""
    names = {region for region in found if isinstance(region[1], str)}
    return names <= made.keys() and all(
        (levels[:rows] == found[_from_below(region)][:rows]).all()
        for region, levels in made.items()
    )


def _from_below(region: Region) -> Region:
    """Return a region of five layers by its number from the bottom."""
    phase, where = region
    return phase, where % WITH_MIDDLE if isinstance(where, int) else where
