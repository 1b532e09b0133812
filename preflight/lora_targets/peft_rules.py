"""What peft would adapt for a LoraConfig, found by its own rules without wrapping the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from preflight.lora_targets.layers import ADAPTABLE, CONVOLUTIONS

ALL_LINEAR = "all-linear"
# peft refuses these layers of these models: their kernel reads the weight past the layer's forward
# (peft.tuners.tuners_utils, _check_lora_target_modules_mamba).
MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_LAYERS = ("out_proj", "conv1d")


@dataclass(frozen=True)
class Reach:
    """The modules and bare parameters that peft adapts, or in `error` why it raises.

    `ranks` has the rank of each parameter whose rank is not the config's.
    """

    modules: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    ranks: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The whole names of all that is adapted."""
        return self.modules | self.parameters


def default_targets(model: nn.Module) -> tuple[str, ...] | str | None:
    """Return what peft takes for a model when no target_modules are given, None if it refuses."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    targets = LoraModel.target_module_mapping.get(kind)
    return targets if targets is None or isinstance(targets, str) else tuple(targets)


def reach(
    model: nn.Module,
    target_modules: Sequence[str] | str | None,
    target_parameters: Sequence[str] | None = None,
    r: int = 8,
) -> Reach:
    """Return what `get_peft_model(model, LoraConfig(...))` would adapt; the model stays as it is.

    `target_modules` is a list of names, a regular expression, "all-linear", or None for peft's
    default of the architecture.
    """
    if not isinstance(target_modules, str) and target_modules is not None:
        target_modules = list(target_modules)
    config = LoraConfig(
        r=r,
        target_modules=target_modules,
        target_parameters=list(target_parameters) if target_parameters else None,
    )
    try:
        # For mixture-of-experts models, peft turns the names of experts' layers that transformers 4
        # had into those of the 3-D parameters that transformers 5 has.
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        return Reach(error=str(error).rstrip("."))
    targets = config.target_modules
    if targets is None:
        targets = default_targets(model)
        if targets is None and not config.target_parameters:
            return Reach(error="peft has no default for this architecture: name the modules")
    if not isinstance(targets, str):
        targets = frozenset(targets or ())
    modules = dict(model.named_modules())
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        found = _all_linear(model, modules)
    else:
        found = {name for name in modules if name and matches(targets, name)}
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for name in modules:
        if name not in found:
            continue
        leaf = name.rpartition(".")[2]
        if kind in MAMBA_TYPES and leaf in MAMBA_LAYERS:
            return Reach(error=f"peft refuses {leaf!r} in models of type {kind!r}")
        module, what = modules[name], type(modules[name]).__name__
        if not isinstance(module, ADAPTABLE):
            return Reach(error=f"{name!r} is a {what}, which peft cannot adapt")
        if isinstance(module, CONVOLUTIONS) and r % module.groups:
            groups = f"{module.groups} groups, of which the rank {r} is no multiple"
            return Reach(error=f"{name!r} is a {what} of {groups}")
    parameters = _parameters(model, frozenset(config.target_parameters or ()))
    clash = next((p for p in sorted(parameters) if p.rpartition(".")[0] in found), None)
    if clash:
        return Reach(error=f"{clash!r} belongs to a module that is a target as well")
    if not found and not parameters:
        return Reach(error="no module or parameter of the model matches")
    ranks = {
        name: rank
        for name in parameters
        for pattern, rank in (config.rank_pattern or {}).items()
        if re.fullmatch(rf"(.*\.)?({pattern})", name)
    }
    return Reach(frozenset(found), frozenset(parameters), ranks)


def matches(targets: Collection[str] | str, name: str) -> bool:
    """Return whether peft takes a module of this whole name for a target.

    A string is a regular expression for the whole name; an entry of a list is the whole name, or
    its last parts up to a dot.
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    parts = name.split(".")
    return any(".".join(parts[i:]) in targets for i in range(len(parts)))


def rewritten(model: nn.Module, leaf: str) -> tuple[str, ...]:
    """Return the target_parameters that peft puts in the place of a module's name, if it does."""
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names that were fused: it has to come with the other
        return ("gate_up_proj",)
    return () if leaf in config.target_modules else tuple(config.target_parameters or ())


def _all_linear(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    """Every nn.Linear and Conv1D but the output layer, as in the QLoRA paper (section 4)."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = (nn.Linear, Conv1D)
    names = {n for n, m in modules.items() if isinstance(m, linear) and m is not output}
    return {name for name in modules if name and matches(names, name)}


def _parameters(model: nn.Module, targets: Collection[str]) -> set[str]:
    names = (
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if module_name
        for name, _ in module.named_parameters(recurse=False)
    )
    return {name for name in names if matches(targets, name)}
