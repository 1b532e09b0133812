"""What a method of peft does whatever the model is: its config tried on one small layer.

Used by lessons: 04, 05a, 06, 09, 12.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from preflight.findings import Finding, finding

WIDTH = 64  # of the layer
NOISE = 0.05  # what a training might add to each trained number
SEEN = 0.01  # of what the adapter adds: far above rounding in float32
ABOUT_LAYERS = (  # settings about layers that the small one is not
    "exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern modules_to_save "
    "trainable_token_indices target_parameters layer_replication"
).split()
# Starts that come from the reader's data, so the small layer cannot show them (peft 0.21.2): both
# leave other base weights; corda says so itself on loading, lora_ga does not.
FROM_DATA = ("corda", "lora_ga")
# They take the base's weights apart, train numbers that belong to the parts, and save these numbers
# alone (peft 0.21.2). Rounded weights give other parts, by which sign or order is a matter of luck.
TAKEN_APART = (PeftType.FROD, PeftType.PSOFT)


@dataclass(frozen=True)
class Tried:
    """What an adapter did on a layer, each as a share of what it added to the layer's output.

    `off`: how far the layer with the adapter switched off is from the layer without. `reloaded`:
    how far the same layer with the adapter's saved numbers is from the trained one. `mixed`: how
    far a row alone is from the same row next to another.
    """

    off: float = 0.0
    reloaded: float = 0.0
    mixed: float = 0.0


def method_findings(config: PeftConfig) -> Iterator[Finding]:
    """Yield what a config's method does, on any model, that a learner would not expect."""
    tried = try_on_layer(config)
    start = getattr(config, "init_lora_weights", None)
    what = f"init_lora_weights={start!r}"
    if _changes_base(config, tried):
        far = f" (on a small layer by {tried.off:.1f} times what it adds)" if tried.off else ""
        yield finding(
            "base_changed",
            f"{what} moves a part of the base weights into the adapter: with the adapter switched "
            f"off, the model is not the base{far}. Allowed, and right while the adapter is on.",
            "Do not take disable_adapter() or unload() for the base, load it anew; give DPO and "
            "its like a ref_model.",
            "warning",
        )
    if tried.reloaded > SEEN or start == "lora_ga":
        yield finding(
            "start_not_saved",
            f"{what} cannot be made again on loading: the adapter, saved plainly, comes back on "
            "other base weights, which is another model. No library says so. Allowed if the start "
            "is saved, too.",
            "Save the start before training, and afterwards give save_pretrained its folder as "
            "path_initial_model_for_weight_conversion: lesson 05a does. Or take "
            'init_lora_weights="pissa", which comes back exactly.',
        )
    if tried.mixed > SEEN:
        yield finding(
            "rows_mixed",
            f"{config.peft_type.value} mixes the tokens of a batch: a row's answer depends on the "
            "rows next to it, and a token's on those after it (on a small layer by "
            f"{tried.mixed:.0%} of what the adapter adds). So a causal model sees in training what "
            "it has to predict. Allowed is any method that adapts each token by itself.",
            "Take another method, such as LoRA.",
        )
    if config.peft_type in TAKEN_APART:
        yield finding(
            "dtype_of_base",
            f"{config.peft_type.value} trains numbers that belong to a decomposition of the base "
            "weights, which is made anew on loading and comes out otherwise for weights rounded to "
            "another dtype: the same file is another model there. Allowed is the dtype of the "
            "training.",
            "Load the base in the dtype in which it was trained; or merge, and ship the whole.",
            "warning",
        )


def changes_base(config: PeftConfig) -> bool:
    """Return whether an adapter's start moves a part of the base weights into it."""
    return _changes_base(config, try_on_layer(config))


def _changes_base(config: PeftConfig, tried: Tried) -> bool:
    return tried.off > SEEN or getattr(config, "init_lora_weights", None) in FROM_DATA


def try_on_layer(config: PeftConfig) -> Tried:
    """Return what a config's method does on a linear layer; nothing where it does not fit one.

    The random state stays as it was.
    """
    if "target_modules" not in vars(config):
        return Tried()
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),  # FRoD draws a progress bar
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return _try(config, nn.Linear(WIDTH, WIDTH, bias=False), torch.randn(2, 5, WIDTH))
        except Exception:  # a method can refuse a layer of this kind or size in any way
            return Tried()


@torch.no_grad()
def _try(config: PeftConfig, layer: nn.Linear, inputs: torch.Tensor) -> Tried:
    plain, adapted = layer(inputs), _adapt(config, layer)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter += NOISE * torch.randn_like(parameter)
    trained, alone = adapted(inputs), adapted(inputs[:1])
    with adapted.disable_adapter():
        off = adapted(inputs)
    again = _adapt(config, layer)
    set_peft_model_state_dict(again, get_peft_model_state_dict(adapted))
    added = float((trained - plain).abs().max()) or 1.0
    pairs = ((off, plain), (again(inputs), trained), (alone, trained[:1]))
    return Tried(*(float((one - other).abs().max()) / added for one, other in pairs))


def _adapt(config: PeftConfig, layer: nn.Linear) -> PeftModel:
    """Return a copy of the layer with an adapter of the config's method, ready to answer."""
    own = copy.deepcopy(config)
    for name in ABOUT_LAYERS:
        if value := getattr(own, name, None):
            setattr(own, name, {} if isinstance(value, dict) else None)
    own.target_modules, own.task_type, own.inference_mode = ["layer"], None, False
    alone = nn.Sequential(OrderedDict(layer=copy.deepcopy(layer)))
    return get_peft_model(alone, own).eval()
