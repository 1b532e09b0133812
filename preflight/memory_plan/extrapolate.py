"""From a model with a few layers to the same model with all of them, where that is exact.

A decoder's layers are alike. While one of them works, forward or backward, the memory of a step is
what the others hold plus what it does itself; the first grows by the same bytes with each layer,
the second does not change. So the highest level within *one* layer's work, counted from the bottom
or from the top of the stack, is a straight line in the number of layers, and among the layers
between it changes from one to the next by the same bytes. A phase's peak is the highest of these
lines, which is why they are drawn before the highest is taken: the peak itself moves from place to
place as layers are added, and is not a straight line.

The optimizer is not extrapolated: it runs over every parameter that the whole model trains.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from transformers import PretrainedConfig

from course_utils.memory.allocations import Region
from preflight.memory_plan.fake_model import build_base
from preflight.memory_plan.layers import are_alike, layers_of, with_layers
from preflight.memory_plan.options import StepOptions
from preflight.memory_plan.simulate import Levels, Pass, Trained, simulated_pass

FEW = 4  # two layers at the bottom and two at the top; the second pass has one more, between them
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


def extrapolate(config: PretrainedConfig, options: StepOptions) -> Pass:
    """Return a pass through all layers, made of two through a few of them.

    Raises:
        LayersDiffer: where that is not proven: where layers differ, or where those in the middle of
            the smaller models do not lie on the line between their neighbours, to the byte.
    """
    _check_config(config, options)
    count = config.get_text_config().num_hidden_layers
    small = simulated_pass(with_layers(config, FEW), options)
    large = simulated_pass(with_layers(config, FEW + 1), options)
    trained = _all_trained(small.trained, large.trained, count - FEW)
    at = {
        region: start.towards(end, count - FEW)
        for region, (start, end) in _lines(small.regions, large.regions).items()
    }
    parts = list(_in_order(at, count))
    return Pass(
        moments=[(phase, row) for phase, part in parts for row in (part.highest, part.last)],
        ended=parts[-2][1].last,
        freed=parts[-1][1].last,
        trained=trained,
    )


def _check_config(config: PretrainedConfig, options: StepOptions) -> None:
    """Raise LayersDiffer if the adapter's config names layers by number, or the layers differ."""
    adapter = options.peft_config
    named = [getattr(adapter, name, None) for name in ("target_modules", "exclude_modules")]
    digits = any(character.isdigit() for character in str(named))
    if digits or any(getattr(adapter, name, None) for name in PER_LAYER_OPTIONS):
        raise LayersDiffer("The adapter may treat layers differently")
    layers = layers_of(build_base(config, replace(options, quantization_config=None)))
    if layers is None or len(layers) != config.get_text_config().num_hidden_layers:
        raise LayersDiffer("The model has no list of layers as long as its config says")
    if not are_alike(layers):
        raise LayersDiffer("The layers differ")


def _lines(
    small: dict[Region, Levels], large: dict[Region, Levels]
) -> dict[Region, tuple[Levels, Levels]]:
    """Pair the regions of two passes: layers by their place from the bottom (0, 1) or the top
    (-1, -2).

    Raises:
        LayersDiffer: if they do not pair, or the layer in the middle is not between its neighbours.
    """
    lines: dict[Region, tuple[Levels, Levels]] = {}
    try:
        for phase, where in small:
            if isinstance(where, int):
                for place in range(-2, 2):
                    pair = small[phase, place % FEW], large[phase, place % (FEW + 1)]
                    lines[phase, place] = pair
            else:
                lines[phase, where] = small[phase, where], large[phase, where]
        for phase in ("forward", "backward"):
            below, middle, above = (large[phase, index] for index in (1, 2, 3))
            if not middle.is_between(below, above):
                raise LayersDiffer("The layers differ in the memory that they take")
    except KeyError as error:
        raise LayersDiffer("The layers differ in how they are called") from error
    return lines


def _in_order(at: dict[Region, Levels], count: int) -> Iterator[tuple[str, Levels]]:
    """Yield the phase and the levels of each region in order, with all layers: those in the middle
    are on the line between others."""

    def layers(phase: str) -> list[tuple[str, Levels]]:
        low, high = at[phase, 1], at[phase, -2]
        middle = [low.towards(high, Fraction(i - 1, count - 3)) for i in range(2, count - 2)]
        return [(phase, part) for part in (at[phase, 0], low, *middle, high, at[phase, -1])]

    def others(*regions: Region) -> list[tuple[str, Levels]]:
        return [(region[0], at[region]) for region in regions if region in at]

    yield from others(("load", "before"), ("forward", "before"))
    yield from layers("forward")
    yield from others(("forward", "after"), ("backward", "before"))
    yield from reversed(layers("backward"))
    yield from others(("backward", "after"), ("end", "before"))


def _all_trained(
    small: tuple[Trained, ...], large: tuple[Trained, ...], more: int
) -> tuple[Trained, ...]:
    """Return what the whole model trains: the small one's, and a layer's for each layer more."""
    if Counter(small) - Counter(large):
        raise LayersDiffer("The layers differ in what is trained of them")
    layer = Counter(large) - Counter(small)
    return small + tuple(layer.elements()) * more
