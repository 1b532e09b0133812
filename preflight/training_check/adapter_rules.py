"""What a PEFT config means on its model other than it seems to: rules that need no weights.

>>> list(rule_findings(config, model))  # an adapter's config, and its base: weights or none

Used by lessons: 04, 05a, 06, 09, 12.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from course_utils.setting_checks import matching
from preflight.findings import Finding, finding
from preflight.lora_targets.adapters import copy_modules
from preflight.training_check.method_rules import method_findings

# A number in a regular expression, as a whole part of a name, with nothing after it that counts.
NUMBER = re.compile(r"(?<=[.(|])\d+(?![\d\[{?*+\\])")
IN_THE_CACHE = (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)  # where these have their tokens
WRAPPERS = (".base_layer", ".token_adapter", ".original_module")


@dataclass(frozen=True)
class Adapter:
    """A config of peft on its model: the modules and the bare parameters that it adapts.

    The model may have the adapter, or none. The names are whole, and those of the bare model.
    """

    config: PeftConfig
    model: nn.Module
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


def rule_findings(config: PeftConfig, model: nn.Module) -> Iterator[Finding]:
    """Yield what a config means on its model other than it seems to.

    `model` has the adapter of this config, or none yet; then it may lie on the meta device, as
    `build_empty` makes it. Neither is changed.
    """
    yield from method_findings(config)
    if isinstance(model, PeftModel):
        adapter = _of(model, config)
    else:
        adapter = _made(config, model)
    for rule in RULES:
        yield from rule(adapter)


def _of(model: PeftModel, config: PeftConfig) -> Adapter:
    names = (getattr(model, f"targeted_{kind}_names", ()) for kind in ("module", "parameter"))
    return Adapter(config, model.get_base_model(), *map(tuple, names))


def empty_adapter(config: PeftConfig, model: nn.Module) -> PeftModel:
    """Return a model with the adapter that peft makes of a config, without a weight of its own.

    The model is changed, the config is not. A start that needs weights or data is left out. Raises
    what peft does where it cannot make the adapter.
    """
    config = copy.deepcopy(config)
    if getattr(config, "init_lora_weights", None):
        config.init_lora_weights = True
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # they are meant for a model that is used
        return get_peft_model(model, config, low_cpu_mem_usage=True)


def _made(config: PeftConfig, model: nn.Module) -> Adapter:
    """Return the adapter that peft makes of a config, in a copy of the model."""
    try:
        return _of(empty_adapter(config, copy_modules(model)), config)
    except Exception:  # what peft refuses is said elsewhere, and some methods need weights
        targets = getattr(config, "target_modules", None) or []
        return Adapter(config, model, tuple(matching(targets, dict(model.named_modules()))))


def _pattern_order(adapter: Adapter) -> Iterator[Finding]:
    for name, pattern in vars(adapter.config).items():
        if not name.endswith("_pattern") or not isinstance(pattern, dict):
            continue
        moved = [
            (layer, first, other)
            for layer in (*adapter.modules, *adapter.tensors)
            if (first := get_pattern_key(pattern, layer))
            != (other := get_pattern_key(sorted(pattern), layer))
            and pattern[first] != pattern[other]
        ]
        if moved:
            layer, first, other = moved[0]
            yield finding(
                name,
                f"{name} has two keys for {len(moved)} of the layers. In {layer} {first!r} holds "
                f"now ({pattern[first]}), and once saved and loaded {other!r} ({pattern[other]}): "
                "the first that matches holds, and saving sorts them. So another model comes back, "
                "or an error of sizes. Allowed are keys of which one fits each layer.",
                f"Write {first!r} so that it does not fit {layer}, or leave one of the two out.",
            )


def _no_layers(adapter: Adapter) -> Iterator[Finding]:
    if getattr(adapter.config, "layers_to_transform", None) == []:
        yield finding(
            "layers_to_transform",
            "layers_to_transform is []: peft takes that for all layers, and adapts "
            f"{len(adapter.modules)} modules. Allowed are numbers of layers, or None for all.",
            "Give the numbers, or leave it out.",
        )


def _not_left_out(adapter: Adapter) -> Iterator[Finding]:
    """Find tensors that are adapted though the config leaves their layers out.

    peft 0.21 asks exclude_modules and layers_to_transform of modules alone. A mixture's experts are
    tensors, also where target_modules named them.
    """
    for names in (("exclude_modules",), ("layers_to_transform", "layers_pattern")):
        asked = {name: getattr(adapter.config, name, None) for name in names}
        if not asked[names[0]]:
            continue
        missed = [
            tensor
            for tensor in adapter.tensors
            if not all(_left_in(part, asked) for part in (tensor, tensor.rpartition(".")[0]))
        ]
        if missed:
            yield finding(
                names[0],
                f"{names[0]} is {asked[names[0]]!r}, and peft does not ask it of parameters: "
                f"{len(missed)} that it leaves out are adapted, such as {missed[0]}. Allowed is "
                "what it can leave out, modules.",
                "Give the whole names of the right ones as target_parameters, and the other layers "
                "by name as target_modules.",
            )


def _left_in(name: str, asked: Mapping[str, Any]) -> bool:
    config = LoraConfig(target_modules=[name.rpartition(".")[2]], **asked)
    return bool(check_target_module_exists(config, name))


def _longer_numbers(adapter: Adapter) -> Iterator[Finding]:
    regex = getattr(adapter.config, "target_modules", None)
    if not isinstance(regex, str):
        return
    try:
        strict = matching(NUMBER.sub(r"\g<0>(?!\\d)", regex), adapter.modules)
    except re.error:
        return
    more = [layer for layer in adapter.modules if layer not in strict]
    if strict and more:
        yield finding(
            "target_modules",
            f"target_modules is the pattern {regex!r}: next to {len(strict)} modules, such as "
            f"{strict[0]}, it fits {len(more)} whose number only begins so, such as {more[0]}. "
            'Allowed, if that is meant; a bare "." fits any character, a digit too.',
            r'Write "\." after the number.',
            "warning",
        )


def _router(adapter: Adapter) -> Iterator[Finding]:
    owners = dict.fromkeys((*adapter.modules, *(t.rpartition(".")[0] for t in adapter.tensors)))
    routers = [name for name in owners if _is_router(adapter.model, name)]
    if routers:
        yield finding(
            "router",
            f"The adapter changes {len(routers)} routers, such as {routers[0]}: which experts a "
            'token goes to is trained, too. "all-linear" takes them (and experts) for linear '
            "layers. Allowed, if it is meant.",
            "Name the layers, such as the projections of the attention, in target_modules.",
            "warning",
        )


def _is_router(model: nn.Module, name: str) -> bool:
    """Return whether a layer has one output for each of the experts next to it."""
    own_tensors = dict(_bare(model.get_submodule(name)).named_parameters(recurse=False))
    weight = own_tensors.get("weight")
    parent, _, own = name.rpartition(".")
    return weight is not None and any(
        len(one) == len(weight)
        for leaf, next_to in model.get_submodule(parent).named_children()
        if leaf != own
        for one in _experts(_bare(next_to))
    )


def _experts(module: nn.Module) -> Iterator[nn.Module | nn.Parameter]:
    """Yield what stands for several experts in a module: a list of modules, or 3-D parameters."""
    if isinstance(module, nn.ModuleList):
        yield module
    yield from (one for one in module.parameters(recurse=False) if one.dim() == 3)


def _bare(module: nn.Module) -> nn.Module:
    while isinstance(module, BaseTunerLayer):
        module = module.base_layer
    return module


def _shared(model: nn.Module) -> list[frozenset[str]]:
    """Return the modules that have one weight in common, such as the two ends of a tied model."""
    groups: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        for wrapper in WRAPPERS:
            name = name.partition(wrapper)[0]
        groups.setdefault(id(weight), set()).add(name.removesuffix(".weight"))
    return list(dict.fromkeys(frozenset(group) for group in groups.values() if len(group) > 1))


def _tied(adapter: Adapter) -> Iterator[Finding]:
    config, tokens = adapter.config, getattr(adapter.config, "trainable_token_indices", None)
    for group in _shared(adapter.model):
        adapted = sorted(group.intersection(adapter.modules))
        if adapted and config.peft_type != PeftType.TRAINABLE_TOKENS:
            unsaved = " Next to trainable_token_indices it cannot even be saved." if tokens else ""
            yield finding(
                "tied_weights",
                f"The adapter is on {' and '.join(adapted)}, and {' and '.join(sorted(group))} "
                "have one weight in common: merged into one it changes the other, and the merged "
                f"model is another than the trained one.{unsaved} Allowed, as long as it is not "
                "merged.",
                f"Leave {' and '.join(adapted)} out of the targets, or train it whole: "
                "modules_to_save with ensure_weight_tying=True. For added tokens give "
                "trainable_token_indices.",
                "warning",
            )
        rows = {
            key: sorted(indices)
            for key, indices in (tokens.items() if isinstance(tokens, dict) else ())
            if any(f".{name}".endswith(f".{key}") for name in group)
        }
        if len({*map(tuple, rows.values())}) > 1:
            both = sorted({index for row in rows.values() for index in row})
            yield finding(
                "tied_tokens",
                f"trainable_token_indices has other tokens for {' than for '.join(rows)}, which "
                "have one weight in common: merged, the model is another than the trained one. "
                "Allowed, as long as it is not merged.",
                f"Give a list, which trains both ends together: {both}.",
                "warning",
            )


def _prefix_unused(adapter: Adapter) -> Iterator[Finding]:
    """Find a prefix that generate() drops, as peft 0.21.2 does with transformers 5.24.

    peft puts it into past_key_values. transformers now calls that `cache`, hands an empty one over
    under that name, and takes the new name of the two.
    """
    kind = adapter.config.peft_type
    if kind in IN_THE_CACHE and "cache" in inspect.signature(adapter.model.forward).parameters:
        yield finding(
            "prefix_unused",
            f"generate() of a model with {kind.value} answers as the base model here: peft hands "
            "the virtual tokens over as past_key_values, and this version of transformers takes "
            "`cache`. A FutureWarning of two names is all that says so. With use_cache=False the "
            "first token is right, and the next are not. Allowed are the loss and the logits of a "
            "forward: these are right.",
            "Generate with transformers 5.23, or token by token from the logits.",
            "warning",
        )


RULES: tuple[Callable[[Adapter], Iterator[Finding]], ...] = (
    _pattern_order,
    _no_layers,
    _not_left_out,
    _longer_numbers,
    _router,
    _tied,
    _prefix_unused,
)
