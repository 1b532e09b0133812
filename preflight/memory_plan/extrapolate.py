"""From a model with a few layers to the same model with all of them, where that is exact.

A decoder's layers are alike. While one of them works, forward or backward, the memory of a step is
what the others hold plus what it does itself; the first grows by the same bytes with each layer,
the second does not change. So the highest level within *one* layer's work, counted from the bottom
or from the top of the stack, is a straight line in the number of layers, and among the layers
between it changes from one to the next by the same bytes. A phase's peak is the highest of these
lines, which is why they are drawn before the highest is taken: the peak itself moves from place to
place as layers are added, and is not a straight line.

The optimizer is not extrapolated: it runs over every parameter that the whole model trains.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from course_utils.memory.allocations import highest
from course_utils.memory.hooks import layers_of
from preflight.memory_plan.fake_model import build_base, with_layers
from preflight.memory_plan.options import Plan
from preflight.memory_plan.simulate import Pass, Trained, simulated_pass

FEW = 4  # two layers at the bottom and two at the top; the second pass has one more, between them
PER_LAYER_OPTIONS = (
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
)
Where = tuple[str, str | int]


@dataclass(frozen=True)
class Stretch:
    """A stretch of a pass: the levels at its highest moment and at its end."""

    phase: str
    peak: np.ndarray
    last: np.ndarray


def extrapolate(
    config: PretrainedConfig, plan: Plan
) -> tuple[list[Stretch], tuple[Trained, ...]] | None:
    """Return the stretches of a pass through all layers, and what it trains, from few layers.

    None where that is not proven: where layers differ, or where the layers in the middle of the
    smaller models do not lie on the line between their neighbours, to the byte.
    """
    count = config.get_text_config().num_hidden_layers
    if count <= FEW + 2 or not _treats_alike(plan.peft_config) or not is_uniform(config, plan):
        return None
    small = simulated_pass(with_layers(config, FEW), plan)
    large = simulated_pass(with_layers(config, FEW + 1), plan)
    trained = _all_trained(small.trained, large.trained, count - FEW)
    lines = _lines(_stretches(small), _stretches(large))
    if trained is None or lines is None:
        return None
    at = {where: _along(start, end, count - FEW) for where, (start, end) in lines.items()}
    return _whole_pass(at, count), trained


def _whole_pass(at: dict[Where, Stretch], count: int) -> list[Stretch]:
    """Return the stretches of all layers in order, those in the middle on the line between."""
    forward: list[Stretch] = [at["forward", 0], at["forward", 1]]
    backward: list[Stretch] = [at["backward", 0], at["backward", 1]]
    for phase, found in (("forward", forward), ("backward", backward)):
        low, high = at[phase, 1], at[phase, -2]
        for index in range(2, count - 2):
            share = Fraction(index - 1, count - 3)
            found.append(_along(low, high, share))
        found += [high, at[phase, -1]]
    ends = [at[key] for key in (("backward", "after"), ("end", "before")) if key in at]
    return [
        at["load", "before"],
        at["forward", "before"],
        *forward,
        at["forward", "after"],
        at["backward", "before"],
        *reversed(backward),
        *ends,
    ]


def _along(start: Stretch, end: Stretch, steps: int | Fraction) -> Stretch:
    """Return the stretch that lies `steps` times the way from one to another."""

    def go(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        return np.array([int(x + (y - x) * steps) for x, y in pairs])

    return Stretch(start.phase, go(start.peak, end.peak), go(start.last, end.last))


def _stretches(result: Pass) -> dict[Where, Stretch]:
    """Return the stretches of a pass forward and backward; empty if one came twice."""
    found: dict[Where, Stretch] = {}
    for where, rows in result.ledger.stretches(result.ledger.regions):
        if where in found:
            return {}
        levels = result.levels[rows]
        found[where] = Stretch(where[0], highest(levels), levels[-1])
    return found


def _lines(
    small: dict[Where, Stretch], large: dict[Where, Stretch]
) -> dict[Where, tuple[Stretch, Stretch]] | None:
    """Pair the stretches of two passes: layers by their place from the bottom (0, 1) or the top
    (-1, -2). None if they do not pair, or if the layer in the middle is not between its neighbours.
    """
    lines: dict[Where, tuple[Stretch, Stretch]] = {}
    for phase, where in small:
        if isinstance(where, int):
            for place in range(-2, 2):
                keys = [(phase, place % n) for n in (FEW, FEW + 1)]
                if keys[0] not in small or keys[1] not in large:
                    return None
                lines[phase, place] = (small[keys[0]], large[keys[1]])
        elif (phase, where) in large:
            lines[phase, where] = (small[phase, where], large[phase, where])
        else:
            return None
    for phase in ("forward", "backward"):
        if (phase, 0) not in lines:
            return None
        below, middle, above = (large[phase, index] for index in (1, 2, 3))
        for name in ("peak", "last"):
            ends = getattr(below, name) + getattr(above, name)
            if (ends != 2 * getattr(middle, name)).any():
                return None
    return lines


def _all_trained(
    small: tuple[Trained, ...], large: tuple[Trained, ...], more: int
) -> tuple[Trained, ...] | None:
    """Return what the whole model trains: the small one's, and a layer's for each layer more."""
    if Counter(small) - Counter(large):
        return None
    layer = Counter(large) - Counter(small)
    return small + tuple(layer.elements()) * more


def is_uniform(config: PretrainedConfig, plan: Plan) -> bool:
    """Say whether a model's layers are all alike, and none shares a tensor with another."""
    layers = layers_of(build_base(config, replace(plan, quantization_config=None)))
    if layers is None:
        return False
    own = [id(p) for layer in layers for p in layer.parameters()]
    return len({_signature(layer) for layer in layers}) == 1 and len(own) == len(set(own))


def _treats_alike(adapter: PeftConfig | None) -> bool:
    """Say whether an adapter's config names no layer by its number."""
    named = [getattr(adapter, name, None) for name in ("target_modules", "exclude_modules")]
    digits = any(character.isdigit() for character in str(named))
    return not digits and not any(getattr(adapter, name, None) for name in PER_LAYER_OPTIONS)


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
