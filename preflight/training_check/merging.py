"""Layers whose adapter is lost on merging: tried on a copy of one of each kind.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from preflight.findings import Finding, finding
from preflight.training_check.method_rules import NOISE


def merge_findings(model: nn.Module) -> Iterator[Finding]:
    """Yield the kinds of layers that stay the base's when an adapter is merged into them."""
    kinds: dict[type, list[tuple[str, BaseTunerLayer]]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge"):
            kinds.setdefault(type(layer.get_base_layer()), []).append((name, layer))
    for kind, layers in kinds.items():
        if kind is nn.Linear:  # what peft is made for, and its own tests try
            continue
        name, smallest = min(layers, key=lambda one: sum(p.numel() for p in one[1].parameters()))
        if _merges_nothing(smallest):
            yield finding(
                "merge",
                f"merge_and_unload() leaves the adapter out of {len(layers)} layers, such as "
                f"{name.removeprefix('base_model.model.')}, and says nothing: their base is a "
                f"{kind.__module__}.{kind.__name__}, which keeps its numbers elsewhere than peft "
                "writes them (tried on a copy). Allowed, as long as it is not merged.",
                "Merge into the base model loaded without quantization.",
                "warning",
            )


@torch.no_grad()
def _merges_nothing(layer: BaseTunerLayer) -> bool:
    """Return whether a layer with an adapter answers, once merged, as the base alone."""
    width = getattr(layer.get_base_layer(), "in_features", None)
    tensors = [*layer.parameters(), *layer.buffers()]
    if width is None or any(one.is_meta for one in tensors):
        return False
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            layer = _copied(layer).eval()
            trained = [one for one in layer.parameters() if one.requires_grad]
            for one in trained:
                one += NOISE * torch.randn(one.shape).to(one)
            inputs = torch.randn(1, 2, width).to(trained[0])
            adapted, base = layer(inputs), layer.get_base_layer()(inputs)
            layer.merge()
            return bool((layer(inputs) - base).norm() < 0.01 * (adapted - base).norm())
        except Exception:  # what peft refuses to merge, it says
            return False


def _copied(layer: BaseTunerLayer) -> BaseTunerLayer:
    """Return a copy of a layer, also where its weight is a tensor that deepcopy refuses."""
    copies = {}
    for weight in layer.parameters():
        if is_traceable_wrapper_subclass(weight):  # as optimum-quanto's, made of other tensors
            parts, context = weight.__tensor_flatten__()
            inner = {name: getattr(weight, name).clone() for name in parts}
            whole = type(weight).__tensor_unflatten__(
                inner, context, weight.size(), weight.stride()
            )
            copies[id(weight)] = nn.Parameter(whole, requires_grad=weight.requires_grad)
    return copy.deepcopy(layer, copies)
