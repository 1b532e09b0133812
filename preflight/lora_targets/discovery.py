"""Gathers a model's layers into the table of what LoRA can target."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from preflight.lora_targets.layers import Layer, find_layers
from preflight.lora_targets.peft_rules import (
    ALL_LINEAR,
    MAMBA_LAYERS,
    MAMBA_TYPES,
    Reach,
    default_targets,
    matches,
    reach,
    rewritten,
)
from preflight.lora_targets.target_table import Rest, Target, TargetTable

Model = nn.Module | PretrainedConfig | str | Path

# Last parts of names that say nothing without the part before them.
GENERIC = re.compile(r"\d+|linear|layer|weight")


def discover(model: Model, r: int = 8) -> TargetTable:
    """Return what LoRA can target in a model, with the size of adapters of rank `r`.

    `model` is a model, also one quantized by bitsandbytes, its config, or what
    `configs.load_config` takes; from a config it is built on the meta device, so nothing is
    downloaded but the config. Parameters of an adapter are r (d_in + d_out) for each matrix (LoRA
    paper, arXiv 2106.09685, section 4). What peft's default and "all-linear" reach follows the
    installed peft's rules.

    Raises:
        ValueError: if the model has an adapter already, or the rank is not a whole number above 0.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    return survey(*open_model(model), r)


def open_model(model: Model) -> tuple[str, nn.Module]:
    """Return a name for people and the model, without weights where a config is given."""
    if not isinstance(model, nn.Module):
        model = build_empty(load_config(model))
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind or type(model).__name__, model


def survey(label: str, model: nn.Module, r: int) -> TargetTable:
    """Return the table for a model; `label` names it in the table."""
    if type(r) is not int or r < 1:
        raise ValueError(f"r={r!r} was given. A rank is a whole number of at least 1, such as 8.")
    layers = find_layers(model)
    if not layers:
        raise ValueError(
            f"{label} has no layer that LoRA can adapt. It takes torch's Linear, Embedding and "
            "convolutions, and transformers' Conv1D. Check that this is the model you meant."
        )
    default, everything = reach(model, None, r=r), reach(model, ALL_LINEAR, r=r)
    targets = _targets(model, layers, (default, everything), r)
    known = {layer.weight: layer.parameters for layer in layers}
    rest = _rest(model, set(known), {layer.name for layer in layers})
    return TargetTable(
        model=label,
        rank=r,
        parameters=sum(known.values()) + sum(one.parameters for one in rest),
        targets=targets,
        rest=rest,
        default=default_targets(model),
        default_error=default.error,
        default_adapter=adapter_size(layers, default, r),
        all_linear_error=everything.error,
        all_linear_adapter=adapter_size(layers, everything, r),
    )


def adapter_size(layers: Iterable[Layer], reached: Reach, r: int) -> int:
    """Return how many parameters peft's adapters have on all that is reached."""
    total = 0
    for layer in layers:
        for name in (layer.name, f"{layer.name}.weight"):
            if name in reached.names:
                total += layer.adapter(reached.ranks.get(name, r)) or 0
    return total


def is_reached(layer: str, reached: Reach) -> bool:
    """Return whether a layer is adapted, as a module or by its weight."""
    return layer in reached.names or f"{layer}.weight" in reached.parameters


def target_regex(names: Sequence[str]) -> str:
    """Return a regular expression for the layers of some targets' names; "*" is a number."""
    each = [re.escape(name).replace(r"\*", r"\d+") for name in names]
    return rf"(.*\.)?({'|'.join(each)})"


def _targets(
    model: nn.Module, layers: Sequence[Layer], reached: tuple[Reach, Reach], r: int
) -> tuple[Target, ...]:
    names = {False: [n for n, _ in model.named_modules() if n], True: []}
    names[True] = [layer.name for layer in layers if layer.is_parameter]
    groups: dict[tuple[str, ...], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[_short(layer), layer.kind, layer.type].append(layer)
    named = []
    for (short, _, _), group in groups.items():
        if _selects(short, group, names):
            named.append((short, group))
            continue
        patterns: dict[str, list[Layer]] = defaultdict(list)
        for layer in group:
            patterns[_pattern(layer.name)].append(layer)
        for pattern, members in patterns.items():
            parts = pattern.split(".")
            endings = (".".join(parts[i:]) for i in reversed(range(len(parts))))
            exact = (ending for ending in endings if _selects(ending, members, names))
            named.append((next(exact, pattern), members))

    kind = getattr(getattr(model, "config", None), "model_type", None)
    owner: dict[int, str] = {}
    targets = []
    for name, group in named:
        first, leaf = group[0], group[0].name.rpartition(".")[2]
        notes, as_parameter = [first.note] if first.note else [], ""
        if first.is_parameter:
            as_parameter = name
        elif replaced := rewritten(model, leaf):
            as_parameter = f"{name}.weight"
            notes.append(f"as a target module peft takes it for {', '.join(sorted(replaced))}")
        mamba = kind in MAMBA_TYPES and leaf in MAMBA_LAYERS
        if mamba:
            notes.append("peft refuses it: Mamba's kernel reads the weight past the adapter")
        shared = owner.get(first.weight)
        if shared:
            notes.append(f"its weight is that of {shared}")
        owner |= {layer.weight: name for layer in group if layer.weight not in owner}
        sizes = [layer.adapter(r) for layer in group]
        targets.append(
            Target(
                name=name,
                kind=first.kind,
                type=first.type,
                count=len(group),
                shapes=tuple(dict.fromkeys(layer.shape for layer in group)),
                parameters=sum({layer.weight: layer.parameters for layer in group}.values()),
                adapter=None if None in sizes else sum(sizes),
                in_default=sum(is_reached(layer.name, reached[0]) for layer in group),
                in_all_linear=sum(is_reached(layer.name, reached[1]) for layer in group),
                as_parameter=as_parameter,
                refused=mamba or None in sizes,
                note="; ".join(notes),
                layers=tuple(layer.name for layer in group),
            )
        )
    return tuple(targets)


def _short(layer: Layer) -> str:
    """Return the last part of a layer's name, with the part before it where it says too little."""
    parts = _pattern(layer.name).split(".")
    two = layer.is_parameter or GENERIC.fullmatch(parts[-1])
    return ".".join(parts[-2:] if two else parts[-1:])


def _pattern(name: str) -> str:
    """Return a layer's name with "*" for each number but one at its end."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _selects(ending: str, group: Sequence[Layer], names: dict[bool, list[str]]) -> bool:
    """Return whether an ending fits the names of a group and no others."""
    rule = target_regex([ending]) if "*" in ending else {ending}
    found = {name for name in names[group[0].is_parameter] if matches(rule, name)}
    return found == {layer.name for layer in group}


def _rest(model: nn.Module, weights: set[int], layers: set[str]) -> tuple[Rest, ...]:
    """Return the parameters that are no layer's weight, by the reason why LoRA leaves them."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if id(parameter) in weights:
            continue
        owner, _, leaf = name.rpartition(".")
        if "bias" in leaf and owner in layers:
            why = "a bias of a layer above: LoraConfig(bias='all') trains it"
        elif parameter.dim() < 2:
            why = "a vector or number, such as a norm's scale: modules_to_save trains it whole"
        elif parameter.dim() < 4:
            why = "a bare tensor that may be no product's matrix: test target_parameters on it"
        else:
            why = "a bare tensor of four or more dimensions"
        groups[why].append((_pattern(name), parameter))
    return tuple(
        Rest(
            why,
            len(found),
            sum(parameter.numel() for _, parameter in found),
            tuple(dict.fromkeys(".".join(name.split(".")[-2:]) for name, _ in found))[:3],
        )
        for why, found in groups.items()
    )
