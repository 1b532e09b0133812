"""What a PEFT config means on its model other than it seems to: rules that need no weights.

>>> list(rule_findings(config, model))  # an adapter's config, and its base: weights or none

Used by lessons: none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import nn

from course_utils.setting_checks import matching
from preflight.dataset_check import Finding
from preflight.training_check.report import finding


@dataclass(frozen=True)
class Adapter:
    """A config of peft, its model without an adapter, and the modules that it adapts there."""

    config: PeftConfig
    model: nn.Module
    layers: tuple[str, ...]


def rule_findings(config: PeftConfig, model: nn.Module) -> Iterator[Finding]:
    """Yield what a config means on its model other than it seems to.

    `model` has no adapter yet; it may lie on the meta device, as `build_empty` makes it. Neither is
    changed.
    """
    config = copy.deepcopy(config)
    adapter = Adapter(config, model, _adapted(config, model))
    for rule in RULES:
        yield from rule(adapter)


def _adapted(config: PeftConfig, model: nn.Module) -> tuple[str, ...]:
    targets = getattr(config, "target_modules", None)
    return tuple(matching(targets, dict(model.named_modules()))) if targets else ()


def _pattern_order(adapter: Adapter) -> Iterator[Finding]:
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(adapter.config, name, None) or {}
        moved = [
            (layer, first, other)
            for layer in adapter.layers
            if (first := get_pattern_key(pattern, layer))
            != (other := get_pattern_key(sorted(pattern), layer))
            and pattern[first] != pattern[other]
        ]
        if moved:
            layer, first, other = moved[0]
            yield finding(
                name,
                f"{name} has two keys for {len(moved)} layers, such as {layer}: {first!r} holds "
                f"now ({pattern[first]}), and {other!r} ({pattern[other]}) once the adapter is "
                "saved and loaded: the first that matches holds, and saving sorts the keys. "
                "Allowed is one key for a layer, or keys that agree.",
                "Write the keys so that only one fits each layer.",
            )


def _no_layers(adapter: Adapter) -> Iterator[Finding]:
    if getattr(adapter.config, "layers_to_transform", None) == []:
        yield finding(
            "layers_to_transform",
            f"layers_to_transform is []: peft takes it for all layers, and adapts "
            f"{len(adapter.layers)} modules. Allowed are numbers of layers, or None for all.",
            "Give the numbers, or leave it out.",
        )


RULES: tuple[Callable[[Adapter], Iterator[Finding]], ...] = (_pattern_order, _no_layers)
