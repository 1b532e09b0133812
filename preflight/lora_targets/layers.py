"""The layers of a model that LoRA can adapt: where each is, its kind, its shape, what it costs.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from course_utils.configs import is_multimodal

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What peft's LoRA can take the place of; bitsandbytes' layers are nn.Linear as well.
ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, *CONVOLUTIONS, nn.MultiheadAttention)

# Parts of a module's path that lead out of the language model.
TOWER_NAMES = {
    "vision": re.compile(r"vision|visual|image|img|video"),
    "audio": re.compile(r"audio|speech|depth_decoder|encodec|codec_model|acoustic"),
    "projector": re.compile(r"projector|multi_modal|connector|aligner|qformer|resampler"),
}
# Names of classes, the innermost module first; the first that fits says what a layer belongs to.
BLOCKS = (
    ("router", re.compile(r"Router|TopK?Gating")),
    ("MLP", re.compile(r"MLP|Mlp|FeedForward|FFN|FFLayer|DenseAct|DenseGatedA|Intermediate")),
    ("attention", re.compile(r"SelfOutput|CrossOutput|BertSelf")),
    ("MLP", re.compile(r"Output$|Adapter$")),
    ("attention", re.compile(r"Attention|Attn|MLA$")),
    ("state-space", re.compile(r"Mamba|Mixer|DeltaNet|Rglru|RecurrentBlock|SSM|xLSTM|mLSTM")),
    ("convolution", re.compile(r"ShortConv|Convolution")),
)
ROUTERS = ("router", "gate", "shared_expert_gate")
SHARED = re.compile(r"(^|\.)shared_(experts?|mlp)\.")
MLP_NAMES = re.compile(r"(^|\.)(ffn|mlp|feed_forward)(\.|$)|(^|\.)fc\d$")
FUSED = {
    "query, key and value in one matrix": re.compile(r"qkv|query_key_value|^c_attn$"),
    "gate and up in one matrix": re.compile(r"gate_up_proj"),
}
LINEAR_FORWARDS = ("FalconLinear",)  # subclasses whose own forward is still x W^T + b


@dataclass(frozen=True)
class Layer:
    """A module, or a bare parameter, that LoRA can adapt.

    `name` is its whole name in the model. `shape` starts with d_in and d_out; a parameter that
    holds several experts has their number in front, a convolution its kernel behind. `parameters`
    counts the weight, without a bias; `weight` tells layers that share one from each other.
    """

    name: str
    kind: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    weight: int
    is_parameter: bool = False
    groups: int = 1
    note: str = ""

    def adapter(self, r: int) -> int | None:
        """Return the parameters of a LoRA adapter of rank r, None where peft cannot make one.

        A matrix takes r (d_in + d_out): B is d_out x r and A is r x d_in (Hu et al., LoRA, 2021,
        arXiv 2106.09685, sections 4.1 and 4.2). peft gives each expert of a 3-D parameter a pair of
        its own, a convolution an A with its kernel, and MultiheadAttention two pairs.
        """
        if self.type == "MultiheadAttention":
            d = self.shape[0]
            return r * (d + 3 * d) + r * (d + d)
        if self.is_parameter:
            *experts, d_in, d_out = self.shape
            return math.prod(experts) * r * (d_in + d_out)
        d_in, d_out, *kernel = self.shape
        if r % self.groups:
            return None
        return r * d_in * math.prod(kernel) + r // self.groups * d_out


def find_layers(model: nn.Module) -> list[Layer]:
    """Return every layer of a model that LoRA can adapt, in the model's order.

    Raises:
        ValueError: if the model has an adapter already.
    """
    modules = dict(model.named_modules())
    adapted = next((name for name, m in modules.items() if isinstance(m, BaseTunerLayer)), None)
    if adapted is not None:
        raise ValueError(
            f"The model has an adapter already, at {adapted!r}. What can be adapted is read from a "
            "model without one. Ask before get_peft_model, or give the config: model.config."
        )
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    prefix = getattr(model, "base_model_prefix", "")
    has_base = bool(prefix) and hasattr(model, prefix)
    decoder = _decoder(model, modules)
    layers = []
    for name, module in modules.items():
        outer = [modules[".".join(name.split(".")[:i])] for i in range(name.count(".") + 1)]
        outside = has_base and name.split(".")[0] != prefix
        if isinstance(module, ADAPTABLE):
            kind = "head" if module is output else _kind(name, module, outer, outside)
            if not name.startswith(decoder) and kind not in (*TOWER_NAMES, "head"):
                kind = "encoder" if "encoder" in name else "projector"
            layers.append(_layer(name, module, kind, outer[-1]))
        else:
            layers += _parameters(name, module)
    return layers


def _decoder(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    """Return how the names of layers begin that write the text of a model which sees or hears."""
    if not isinstance(model, PreTrainedModel) or not is_multimodal(model.config):
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in modules.items() if module is decoder), "")
    return f"{name}." if name else ""


def _layer(name: str, module: nn.Module, kind: str, parent: nn.Module) -> Layer:
    what, groups = type(module), 1
    notes = _fused(name)
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        groups = module.groups
        notes.append(f"{groups} groups: the rank must be a multiple, and no merging")
    if isinstance(parent, nn.MultiheadAttention):
        notes.append("MultiheadAttention reads its weight past the adapter: no effect")
    past = kind in ("state-space", "convolution")
    if past and _reads_past(type(parent), name.rpartition(".")[2]):
        notes.append("its block can read the weight past an adapter: test that one learns")
    plain = what.__module__.startswith("bitsandbytes") or what.__name__ in LINEAR_FORWARDS
    if isinstance(module, nn.Linear) and what.forward is not nn.Linear.forward and not plain:
        notes.append(f"{what.__name__} computes more than a product: test an adapter on it")
    shape, weight = _shape(module), getattr(module, "weight", None)
    count = math.prod(shape) // groups
    if is_parametrized(module, "weight"):  # it is made of others at each step: weight norm
        weight = module.parametrizations.weight
        count = sum(parameter.numel() for parameter in weight.parameters())
    if isinstance(module, nn.MultiheadAttention):  # its out_proj is a layer of its own
        weight = module.in_proj_weight
        count = weight.numel()
    note = "; ".join(notes)
    return Layer(name, kind, what.__name__, shape, count, id(weight), groups=groups, note=note)


@lru_cache
def _reads_past(block: type[nn.Module], leaf: str) -> bool:
    """Return whether a block takes the weight of one of its layers instead of calling the layer.

    Mamba's do so for their kernels; to ask a weight for its dtype is no harm.
    """
    try:
        source = inspect.getsource(block.forward)
    except (OSError, TypeError):  # it has none of its own, or not in Python
        return False
    return re.search(rf"self\.{leaf}\.weight\b(?!\.(?:dtype|device|shape))", source) is not None


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.embed_dim
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels, *module.kernel_size
    if isinstance(module, nn.Linear):  # a 4-bit weight is packed: its own shape is another
        return int(module.in_features), int(module.out_features)  # a tensor in some models
    return tuple(module.weight.shape)  # Conv1D and an embedding hold it as d_in x d_out


def _fused(name: str) -> list[str]:
    leaf = name.rpartition(".")[2]
    return [what for what, pattern in FUSED.items() if pattern.search(leaf)]


def _parameters(name: str, module: nn.Module) -> Iterator[Layer]:
    """Yield the expert tensors and router matrices that a module holds as bare parameters."""
    owner = type(module).__name__
    for leaf, parameter in module.named_parameters(recurse=False):
        experts = "Experts" in owner and parameter.dim() == 3
        router = parameter.dim() == 2 and leaf == "weight" and BLOCKS[0][1].search(owner)
        if not experts and not router:
            continue
        shape = tuple(parameter.shape)
        # As in peft's ParamWrapper: (experts, d_out, d_in), unless the module says otherwise.
        if router or not getattr(module, "is_transposed", False):
            shape = (*shape[:-2], shape[-1], shape[-2])
        kind = "router" if router else "shared expert" if SHARED.search(name) else "expert"
        yield Layer(
            f"{name}.{leaf}",
            _tower(name) or kind,
            "Parameter",
            shape,
            parameter.numel(),
            id(parameter),
            is_parameter=True,
            note="; ".join(_fused(leaf)),
        )


def _kind(name: str, module: nn.Module, outer: list[nn.Module], outside: bool) -> str:
    tower = _tower(name)
    if tower:
        return tower
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    parts = name.split(".")
    owners = [type(one).__name__ for one in (*outer[1:], module)]
    if parts[-1] in ROUTERS or any(BLOCKS[0][1].search(owner) for owner in owners):
        return "router"
    if SHARED.search(name):
        return "shared expert"
    if any("experts" in part for part in parts):
        return "expert"
    if outside:
        return "head"
    for one in reversed(outer[1:]):
        for kind, pattern in BLOCKS:
            if pattern.search(type(one).__name__):
                return kind
    return "MLP" if MLP_NAMES.search(name) else "other"


def without_numbers(name: str) -> str:
    """Return a layer's name with "*" for each number but one at its end."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _tower(name: str) -> str:
    parts = name.lower().split(".")
    found = (
        kind for part in parts for kind, pattern in TOWER_NAMES.items() if pattern.search(part)
    )
    return next(found, "")
