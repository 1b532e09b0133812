"""Gathers a model's layers into the table of what LoRA can target.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from peft.tuners.lora import LoraModel
from torch import nn
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from course_utils.setting_checks import matching
from preflight.lora_targets.adapters import ALL_LINEAR, make_adapters, replaced_by
from preflight.lora_targets.layers import Layer, find_layers, without_numbers
from preflight.lora_targets.table import Rest, Target, TargetTable

Model = nn.Module | PretrainedConfig | str | Path

# Last parts of names that say nothing without the part before them.
GENERIC = re.compile(r"\d+|linear|layer|weight")


def discover(model: Model, r: int = 8) -> TargetTable:
    """Return what LoRA can target in a model, with the size of adapters of rank `r`.

    `model` is a model, also one quantized by bitsandbytes, its config, or what
    `configs.load_config` takes; from a config it is built on the meta device, so nothing is
    downloaded but the config. Parameters of an adapter are r (d_in + d_out) for each matrix (LoRA
    paper, arXiv 2106.09685, section 4). What its default and "all-linear" adapt, peft itself says.

    Raises:
        ValueError: if the model has an adapter already, or the rank is not a whole number above 0.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    label, model = open_model(model)
    table = list_targets(label, model, r)
    default, all_linear = make_adapters(model, None, r=r), make_adapters(model, ALL_LINEAR, r=r)
    names = LoraModel.target_module_mapping.get(label)
    targets = (
        replace(
            target,
            in_default=sum(layer in default for layer in target.layers),
            in_all_linear=sum(layer in all_linear for layer in target.layers),
        )
        for target in table
    )
    return replace(
        table,
        targets=tuple(targets),
        default=tuple(names) if isinstance(names, list) else names,
        default_error=default.error,
        default_adapter=default.parameters,
        all_linear_error=all_linear.error,
        all_linear_adapter=all_linear.parameters,
    )


def open_model(model: Model) -> tuple[str, nn.Module]:
    """Return a name for people and the model, without weights where a config is given."""
    if not isinstance(model, nn.Module):
        model = build_empty(load_config(model))
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind or type(model).__name__, model


def list_targets(label: str, model: nn.Module, r: int) -> TargetTable:
    """Return the table of a model called `label`, without what peft's own choices adapt."""
    if type(r) is not int or r < 1:
        raise ValueError(f"r={r!r} was given. A rank is a whole number of at least 1, such as 8.")
    layers = find_layers(model)
    if not layers:
        raise ValueError(
            f"{label} has no layer that LoRA can adapt. It takes torch's Linear, Embedding and "
            "convolutions, and transformers' Conv1D. Check that this is the model you meant."
        )
    # Of layers that share a weight the first has its size: a head can be said to be smaller.
    known = {layer.weight: layer.parameters for layer in reversed(layers)}
    rest = _rest(model, set(known), {layer.name for layer in layers})
    targets = []
    owner: dict[int, str] = {}
    for name, group in _named_groups(model, layers):
        targets.append(_target(model, name, group, owner.get(group[0].weight), r))
        owner |= {layer.weight: name for layer in group if layer.weight not in owner}
    return TargetTable(
        model=label,
        rank=r,
        parameters=sum(known.values()) + sum(one.parameters for one in rest),
        targets=tuple(targets),
        rest=rest,
    )


def target_regex(names: Sequence[str]) -> str:
    """Return a regular expression for the layers of some targets' names; "*" is a number."""
    each = [re.escape(name).replace(r"\*", r"\d+") for name in names]
    return rf"(.*\.)?({'|'.join(each)})"


def _named_groups(model: nn.Module, layers: Sequence[Layer]) -> Iterator[tuple[str, list[Layer]]]:
    """Yield the layers that are one target, with the shortest name that selects no others."""
    modules = [name for name, _ in model.named_modules()]
    tensors = [layer.name for layer in layers if layer.is_parameter]

    def selects(ending: str, group: Sequence[Layer]) -> bool:
        rule = target_regex([ending]) if "*" in ending else [ending]
        found = matching(rule, tensors if group[0].is_parameter else modules)
        return set(found) == {layer.name for layer in group}

    groups: dict[tuple[str, ...], list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[_short_name(layer), layer.kind, layer.type].append(layer)
    for (short, _, _), group in groups.items():
        if selects(short, group):
            yield short, group
            continue
        patterns: dict[str, list[Layer]] = defaultdict(list)
        for layer in group:
            patterns[without_numbers(layer.name)].append(layer)
        for pattern, members in patterns.items():
            parts = pattern.split(".")
            endings = (".".join(parts[i:]) for i in reversed(range(len(parts))))
            yield next((e for e in endings if selects(e, members)), pattern), members


def _target(
    model: nn.Module, name: str, group: Sequence[Layer], shared: str | None, r: int
) -> Target:
    """Return the target of some layers; `shared` names one that has the same weight."""
    first = group[0]
    notes, as_parameter, refused = [first.note], "", ""
    if first.is_parameter:
        as_parameter = name
    elif replaced := replaced_by(model, first.name.rpartition(".")[2]):
        as_parameter = f"{name}.weight"
        notes.append(f"as a target module peft takes it for {', '.join(sorted(replaced))}")
    elif first.kind in ("state-space", "convolution"):  # the kinds of which peft refuses some
        refused = make_adapters(model, [first.name], r=r).error
        if refused.startswith("peft refuses"):
            notes.append("peft refuses it")
    if shared:
        notes.append(f"its weight is that of {shared}")
    sizes = [layer.adapter(r) for layer in group]
    return Target(
        name=name,
        kind=first.kind,
        type=first.type,
        count=len(group),
        shapes=tuple(dict.fromkeys(layer.shape for layer in group)),
        parameters=sum({layer.weight: layer.parameters for layer in group}.values()),
        adapter=None if None in sizes else sum(sizes),
        as_parameter=as_parameter,
        refused=bool(refused) or None in sizes,
        note="; ".join(filter(None, notes)),
        layers=tuple(layer.name for layer in group),
    )


def _short_name(layer: Layer) -> str:
    """Return the last part of a layer's name, with the part before it where it says too little."""
    parts = without_numbers(layer.name).split(".")
    two = layer.is_parameter or GENERIC.fullmatch(parts[-1])
    return ".".join(parts[-2:] if two else parts[-1:])


def _rest(model: nn.Module, weights: set[int], layers: set[str]) -> tuple[Rest, ...]:
    """Return the parameters that are no layer's weight, by the reason why LoRA leaves them."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        made, is_part, _ = name.partition(".parametrizations.weight.")
        if id(parameter) in weights or (is_part and made in layers):
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
        groups[why].append((without_numbers(name), parameter))
    return tuple(
        Rest(
            why,
            len(found),
            sum(parameter.numel() for _, parameter in found),
            tuple(dict.fromkeys(".".join(name.split(".")[-2:]) for name, _ in found))[:3],
        )
        for why, found in groups.items()
    )
