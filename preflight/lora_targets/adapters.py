"""What peft adapts in a model for the arguments of LoraConfig: asked of peft itself, on a copy.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from peft import LoraConfig, NoMatchingPeftModuleError, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from course_utils.setting_checks import matching

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Adapters:
    """The adapters that peft makes in a model, or in `error` why it raises.

    `modules` and `tensors` are whole names: of the modules that get an adapter, and of the bare
    parameters that do. `parameters` counts the numbers in all adapters together.
    """

    modules: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()
    parameters: int = 0
    error: str = ""

    def __contains__(self, layer: str) -> bool:
        """Return whether a layer gets an adapter: as a module, a tensor, or by its weight."""
        return layer in self.modules or not self.tensors.isdisjoint((layer, f"{layer}.weight"))


def make_adapters(
    model: nn.Module,
    target_modules: Sequence[str] | str | None,
    target_parameters: Sequence[str] | None = None,
    r: int = 8,
) -> Adapters:
    """Return what `get_peft_model(model, LoraConfig(...))` adapts; the model stays as it is.

    `target_modules` is a list of names, a regular expression, "all-linear", or None for peft's
    default of the architecture.

    Raises:
        re.error: if `target_modules` is a string and no regular expression.
    """
    config = LoraConfig(
        r=r, target_modules=target_modules, target_parameters=target_parameters or None
    )
    twin = copy_modules(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are meant for a model that is trained
            adapted = get_peft_model(twin, config, low_cpu_mem_usage=True)
    except (ValueError, NotImplementedError) as error:
        return Adapters(error=_explain(error, config, model, twin))
    return Adapters(
        frozenset(adapted.targeted_module_names),
        frozenset(adapted.targeted_parameter_names),
        adapted.get_nb_trainable_parameters()[0],
    )


def copy_modules(model: nn.Module) -> nn.Module:
    """Return a copy of a model that takes next to no memory: its weights share their storage."""
    own = (dict, PretrainedConfig)  # peft writes into these
    held = (value for module in model.modules() for value in vars(module).values())
    shared = {id(value): value for value in held if not isinstance(value, own)}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    shared |= {id(weight): copy.copy(weight) for weight in model.parameters()}  # peft freezes them
    return copy.deepcopy(model, shared)


def _explain(error: Exception, config: LoraConfig, model: nn.Module, twin: nn.Module) -> str:
    """Return why peft raised; its own errors print a module, and do not say where it is."""
    message = str(error)
    if isinstance(error, NoMatchingPeftModuleError):
        return "no module or parameter of the model matches"
    if message.startswith("Please specify `target_modules`"):
        return "peft has no default for this architecture: name the modules"
    adapted = {name for name, module in twin.named_modules() if isinstance(module, LoraLayer)}
    matched = matching(config.target_modules or [], dict(model.named_modules()))
    name = next((name for name in matched if name not in adapted), "")
    module = model.get_submodule(name)
    what = f"{name!r} is a {type(module).__name__}"
    if message.startswith("[PEFT"):
        leaf = name.rpartition(".")[2]
        return f"peft refuses {leaf!r} in models of type {model.config.model_type!r}"
    if message.startswith("Target module "):
        return f"{what}, which peft cannot adapt"
    if message.startswith("Targeting a Conv"):
        return f"{what} of {module.groups} groups, of which the rank {config.r} is no multiple"
    return message.rstrip(".")


def refused_names(model: PreTrainedModel) -> list[str]:
    """Return the last parts of names of linear layers that peft refuses in a model of this type.

    It refuses some by their name alone, whatever they do: out_proj in Mamba's family, say.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    leaves = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    return [leaf for leaf in leaves if _is_refused(model.config.model_type, leaf)]


@lru_cache
def _is_refused(kind: str, leaf: str) -> bool:
    """Ask peft for an adapter in a model of a type that has one layer alone, of that name."""
    alone = nn.Module()
    alone.config = PretrainedConfig()
    alone.config.model_type = kind
    alone.add_module(leaf, nn.Linear(1, 1, device="meta"))
    return make_adapters(alone, [leaf]).error.startswith("peft refuses")


def replaced_by(model: nn.Module, leaf: str) -> tuple[str, ...]:
    """Return the target_parameters that peft puts in the place of a module's name, if it does.

    For mixture-of-experts models it turns the names of experts' layers that transformers 4 had into
    those of the 3-D parameters that transformers 5 has.
    """
    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names that were fused: it has to come with the other
        return ("gate_up_proj",)
    return () if leaf in config.target_modules else tuple(config.target_parameters or ())
