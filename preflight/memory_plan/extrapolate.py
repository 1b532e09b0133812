"""From a model with a few layers to the same model with all of them, where that is exact.

A decoder's layers are alike. While one of them works, forward or backward, the memory of a step is
what the others hold plus what it does itself; the first grows by the same bytes with each layer,
the second does not change. So the highest level within *one* layer's work, counted from the bottom
or from the top of the stack, is a straight line in the number of layers, and among the layers
between it changes from one to the next by the same bytes. A phase's peak is the highest of these
lines, which is why they are drawn before the highest is taken: the peak itself moves from place to
place as layers are added, and is not a straight line.

The lines are drawn from two layers to five, where the two say what the five do: in the first and
the last layer, and before and after them. Else from four to five. What a layer adds at load and in
gradients does not depend on the batch or the length: at a second size one model is enough.

The optimizer is not extrapolated: it runs over every parameter that the whole model trains.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from transformers import PretrainedConfig

from course_utils.memory.allocations import Region
from preflight.memory_plan.fake_model import build_base
from preflight.memory_plan.layer import FIRST_AND_LAST, WITH_MIDDLE, Layer, each_adds
from preflight.memory_plan.options import SEVERAL_PASSES, StepOptions
from preflight.memory_plan.simulate import Pass, Trained, layers_of, simulated_pass

FEW = 4  # two layers at the bottom and two at the top
PER_LAYER_OPTIONS = (
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
)


class LayersDiffer(Exception):
    """Layers that have to be simulated one by one; the message says why, as half a sentence."""


class Layers:
    """The layers of one plan, and what passes at one size have shown for those at another.

    Either method may be asked for any batch and length, while the rest of the options stays.
    `simulated` has the layers of each pass that the last answer is from.
    """

    def __init__(self) -> None:
        self.each: Layer | None = None
        self.simulated: list[int] = []

    def all(self, config: PretrainedConfig, options: StepOptions) -> Pass:
        """Return a pass through all layers, made of those through a few of them.

        Raises:
            LayersDiffer: where that is not proven: where layers differ, or where those in the
                middle of the smaller models do not lie on the line between their neighbours, to
                the byte.
        """
        count = config.get_text_config().num_hidden_layers
        known = self.each is not None and self.each.steady
        if self.each is None:
            _check_config(config, options)
        # Of a step with one pass forward and one backward alone two layers tell what five do.
        several = options.trainer in SEVERAL_PASSES
        large = simulated_pass(_with_layers(config, WITH_MIDDLE), options)
        if not known and not several and FEW not in self.simulated:
            two = simulated_pass(_with_layers(config, FIRST_AND_LAST), options)
            self.each = each_adds(two, large)
        if self.each is not None:
            self.simulated = [WITH_MIDDLE] if known else [FIRST_AND_LAST, WITH_MIDDLE]
            at = self.each.through(large, count)
            return _joined(at, count, large, self.each.trained_of(count))
        self.simulated = [FEW, WITH_MIDDLE]
        small = simulated_pass(_with_layers(config, FEW), options)
        trained = _all_trained(small.trained, large.trained, count - FEW)
        return _joined(_levels(small.regions, large.regions, count), count, large, trained)

    def highest(self, config: PretrainedConfig, options: StepOptions) -> Pass:
        """Return a pass through all layers that has less moments where two layers tell the highest.

        Raises:
            LayersDiffer: as `all` does.
        """
        if self.each is None or self.each.like is None:
            return self.all(config, options)
        count = config.get_text_config().num_hidden_layers
        two = simulated_pass(_with_layers(config, FIRST_AND_LAST), options)
        self.simulated = [FIRST_AND_LAST]
        at = self.each.highest(two, count)
        return _joined(at, count, two, self.each.trained_of(count), rows=1)


def _joined(
    at: dict[Region, np.ndarray], count: int, few: Pass, trained: tuple[Trained, ...], rows: int = 2
) -> Pass:
    """Return the pass whose regions have the levels `at`, with the first rows of each.

    What no gradient reaches is the same in all layers, so it is that of a pass through a few.
    """
    parts = list(_in_order(at, count))
    return Pass(
        moments=[(phase.partition(" ")[0], row) for phase, part in parts for row in part[:rows]],
        ended=parts[-2][1][-1],
        freed=parts[-1][1][-1],
        trained=trained,
        idle=few.idle,
    )


def _check_config(config: PretrainedConfig, options: StepOptions) -> None:
    """Raise LayersDiffer if the adapter's config names layers by number, or the layers differ."""
    adapter = options.peft_config
    named = [getattr(adapter, name, None) for name in ("target_modules", "exclude_modules")]
    digits = any(character.isdigit() for character in str(named))
    if digits or any(getattr(adapter, name, None) for name in PER_LAYER_OPTIONS):
        raise LayersDiffer("The adapter may treat layers differently")
    layers = layers_of(build_base(config, options))
    if layers is None or len(layers) != config.get_text_config().num_hidden_layers:
        raise LayersDiffer("The model has no list of layers as long as its config says")
    if not _are_alike(layers):
        raise LayersDiffer("The layers differ")


def _with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """Return a copy of a config with the first `count` of its layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return config


def _are_alike(layers: nn.ModuleList) -> bool:
    """Return whether layers use memory alike, and none shares a tensor with another."""
    own = [id(p) for layer in layers for p in layer.parameters()]
    return len({_signature(layer) for layer in layers}) == 1 and len(own) == len(set(own))


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return what decides how a layer uses memory: its modules, their settings and tensors."""
    rows = []
    for name, module in layer.named_modules():
        settings = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | None) and "idx" not in key
        )
        tensors = tuple(
            (key, tuple(tensor.shape), tensor.dtype)
            for key, tensor in {**module._parameters, **module._buffers}.items()
            if tensor is not None
        )
        rows.append((name, type(module), settings, tensors))
    return tuple(rows)


def _levels(
    small: dict[Region, np.ndarray], large: dict[Region, np.ndarray], count: int
) -> dict[Region, np.ndarray]:
    """Return the levels of each region with all layers: of the two layers at the bottom (0, 1) and
    at the top (-2, -1), and of what comes before and after them.

    Raises:
        LayersDiffer: if the regions do not pair, or the layer in the middle is not between its
            neighbours.
    """
    pairs = {}
    try:
        for phase in dict.fromkeys(phase for phase, _ in small):
            for where in ("before", "after"):
                if (phase, where) in small:
                    pairs[phase, where] = small[phase, where], large[phase, where]
            if (phase, 0) not in small:
                continue
            for place in (0, 1, -2, -1):
                pairs[phase, place] = small[phase, place % FEW], large[phase, place % WITH_MIDDLE]
            below, middle, above = (large[phase, index] for index in (1, 2, 3))
            if (below + above != 2 * middle).any():
                raise LayersDiffer("The layers differ in the memory that they take")
    except KeyError as error:
        raise LayersDiffer("The layers differ in how they are called") from error
    return {name: _towards(start, end, count - FEW) for name, (start, end) in pairs.items()}


def _towards(start: np.ndarray, end: np.ndarray, steps: int, whole: int = 1) -> np.ndarray:
    """Return the levels that lie `steps` / `whole` of the way from some to others."""
    return start + (end - start) * steps // whole


def _in_order(at: dict[Region, np.ndarray], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the phase and the levels of each region in order, with all layers: those in the middle
    are on the line between others."""

    def layers(phase: str) -> list[tuple[str, np.ndarray]]:
        low, high = at[phase, 1], at[phase, -2]
        middle = [_towards(low, high, i - 1, count - 3) for i in range(2, count - 2)]
        return [(phase, part) for part in (at[phase, 0], low, *middle, high, at[phase, -1])]

    def others(*regions: Region) -> list[tuple[str, np.ndarray]]:
        return [(region[0], at[region]) for region in regions if region in at]

    for phase in dict.fromkeys(phase for phase, _ in at):
        yield from others((phase, "before"))
        if (phase, 0) in at:
            yield from reversed(layers(phase)) if phase == "backward" else layers(phase)
        yield from others((phase, "after"))


def _all_trained(
    small: tuple[Trained, ...], large: tuple[Trained, ...], more: int
) -> tuple[Trained, ...]:
    """Return what the whole model trains: the small one's, and a layer's for each layer more."""
    if Counter(small) - Counter(large):
        raise LayersDiffer("The layers differ in what is trained of them")
    layer = Counter(large) - Counter(small)
    return small + tuple(layer.elements()) * more
