"""A checkpoint that is quantized already: what it stores, and as what training holds it.

Its config has a `quantization_config`. What transformers does with that as it loads the weights,
and whether it then trains them or adapters on them, is the same for all checkpoints of a kind.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer, HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from course_utils.configs import build_empty
from course_utils.memory.step_memory import size_text
from course_utils.quantization import SCALES_PER_BLOCK
from preflight.memory_plan.options import METHODS, StepOptions

# Trainer refuses to train quantized weights themselves, and from_pretrained to quantize them anew
# by another method than the checkpoint's (transformers 5.24: validate_quantization_for_training,
# AutoHfQuantizer.merge_quantization_configs).
ADAPTERS = ("lora", "peft")
# The classes that from_pretrained takes to dequantize the weights as it loads them.
DEQUANTIZED_BY = {
    "fp8": "FineGrainedFP8Config",
    "mxfp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
    "compressed-tensors": "CompressedTensorsConfig",
}
BY_GPTQMODEL = ("gptq", "awq")  # peft has layers of its own for these two, on gptqmodel's
FP8_NEEDS = "compute capability 8.9: L4, RTX 4090, L40S, H100 and newer"


def quantization_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """Return how a checkpoint is quantized, as its config says; None where it is not."""
    text = config.get_text_config()
    found = getattr(config, "quantization_config", None) or getattr(
        text, "quantization_config", None
    )
    if found is None or isinstance(found, dict):
        return found or None
    return found.to_dict()


def dequantized(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a config whose weights transformers dequantizes as it loads them."""
    return _with(config, {**(quantization_of(config) or {}), "dequantize": True})


def holds_fp8(config: PretrainedConfig) -> bool:
    """Return whether a checkpoint's weights are in FP8 and stay so on a GPU that computes in it."""
    stored = quantization_of(config)
    return stored is not None and _method(stored) in ("fp8", "mxfp8") and not _opened(stored)


def methods(config: PretrainedConfig) -> tuple[str, ...]:
    """Return those of METHODS that a checkpoint can be trained by."""
    stored = quantization_of(config)
    if stored is None:
        return METHODS
    if _method(stored) == "bitsandbytes":
        return (*ADAPTERS, "int8" if stored.get("load_in_8bit") else "qlora")
    if holds_fp8(config):
        return ADAPTERS
    return ("full", *ADAPTERS) if _method(stored) in DEQUANTIZED_BY else ()


def as_loaded(config: PretrainedConfig, options: StepOptions) -> PretrainedConfig:
    """Return the config of the model that training holds; `options` get its quantization.

    Raises:
        ValueError: if the checkpoint cannot be trained so, or its kernels cannot be simulated.
    """
    stored = quantization_of(config)
    if stored is None:
        return config
    kind = _method(stored)
    if not methods(config):
        raise ValueError(f"{_stored_as(config)} {_refusal(kind, stored)}")
    if options.method not in methods(config):
        raise ValueError(
            f"method={options.method!r} was given. {_stored_as(config)} Allowed are "
            f"{', '.join(methods(config))}: {_reason(kind, options.method)}"
        )
    if kind == "bitsandbytes":
        options.quantization_config = BitsAndBytesConfig.from_dict(stored)
    elif options.quantization_config is not None:
        raise ValueError(
            f"A quantization_config was given. {_stored_as(config)} {_reason(kind, 'qlora')} Leave "
            "it out."
        )
    return config if holds_fp8(config) else _with(config, None)


def replace_layers(model: nn.Module, config: PretrainedConfig) -> None:
    """Give a model on the meta device the FP8 layers of transformers, as for such a checkpoint."""
    quantizer = AutoHfQuantizer.from_config(quantization_of(config), pre_quantized=True)
    quantizer.preprocess_model(model)


def notes(config: PretrainedConfig) -> list[str]:
    """Return what to know of a plan for a quantized checkpoint; [] for others."""
    stored = quantization_of(config)
    if stored is None:
        return []
    kind, said = _method(stored), _stored_as(config)
    if kind == "bitsandbytes":
        return [f"{said} The plan keeps its own settings; adapters train on it."]
    if holds_fp8(config):
        return [
            f"{said} Adapters train on it where a GPU computes in FP8 ({FP8_NEEDS}) and the "
            "package kernels is installed; on others transformers dequantizes it as it loads, and "
            "the plan counts that."
        ]
    by = f"quantization_config={DEQUANTIZED_BY[kind]}(dequantize=True)"
    return [f"{said} The plan is for weights that are dequantized as they are loaded: {by}."]


def _with(config: PretrainedConfig, stored: dict[str, Any] | None) -> PretrainedConfig:
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if stored is not None:
        config.quantization_config = stored
    return config


def _method(stored: dict[str, Any]) -> str:
    by_bitsandbytes = stored.get("load_in_4bit") or stored.get("load_in_8bit")
    return "bitsandbytes" if by_bitsandbytes else str(stored.get("quant_method"))


def _opened(stored: dict[str, Any]) -> bool:
    return bool(stored.get("dequantize"))


def _stored_as(config: PretrainedConfig) -> str:
    stored = quantization_of(config)
    size = stored_bytes(config)
    return (
        f"The checkpoint is quantized already, by {_method(stored)}"
        f"{f' ({size_text(size)} of weights)' if size else ''}."
    )


def _refusal(kind: str, stored: dict[str, Any]) -> str:
    """Return why no plan is made for a kind of checkpoint, and what to do."""
    way_out = (
        "Give the model that it was made from, with method qlora to hold its weights in 4 bits."
    )
    if kind in BY_GPTQMODEL:
        return (
            "peft trains adapters on it by the package gptqmodel, whose kernels cannot be "
            f"simulated. {way_out}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantizer = AutoHfQuantizer.from_config(stored, pre_quantized=True)
            if not quantizer.is_trainable:
                return f"transformers does not train on it. {way_out}"
    except Exception as error:  # most need a package of their own, some a GPU
        reason = str(error).strip().partition("\n")[0]
        return f"What it needs is not here ({reason}), so nothing can be said of it. {way_out}"
    return f"Its kernels cannot be simulated. {way_out}"


def _reason(kind: str, method: str) -> str:
    if method == "full":
        return (
            "transformers trains no quantized weights, only adapters on them. For all weights "
            f"load it with quantization_config={DEQUANTIZED_BY[kind]}(dequantize=True), and give "
            'a config.json with "dequantize": true in its quantization_config.'
            if kind in DEQUANTIZED_BY
            else "transformers trains no quantized weights, only adapters on them."
        )
    if kind == "bitsandbytes":
        return "the checkpoint's own settings stay."
    return (
        f"from_pretrained refuses to quantize it anew by bitsandbytes. For {method} give a "
        "checkpoint in bfloat16."
    )


def stored_bytes(config: PretrainedConfig) -> int:
    """Return the bytes of a quantized checkpoint's weights, 0 where the course cannot count them.

    What is not quantized counts as bfloat16.
    """
    stored = quantization_of(config) or {}
    bits = _bits(_method(stored), stored)
    if not bits:
        return 0
    model = build_empty(_with(config, None))
    quantized = set(_quantized(model, _method(stored), stored))
    return sum(
        int(p.numel() * (bits if id(p) in quantized else 16) / 8) for p in model.parameters()
    )


def _bits(kind: str, stored: dict[str, Any]) -> float:
    """Return the bits for a quantized weight, its share of the scales included; 0 if not known."""
    if kind in ("fp8", "mxfp8"):
        return 8 + 32 / math.prod(stored.get("weight_block_size") or [math.inf])
    if kind == "mxfp4":
        return 4 + 8 / 32  # a scale of 8 bits for 32 weights: OCP Microscaling Formats, v1.0
    if kind in BY_GPTQMODEL:  # a group has a scale in float16 and a zero point
        group, bits = stored.get("group_size") or -1, stored.get("bits") or 4
        return bits + ((16 + bits) / group if group > 0 else 0)
    if kind != "bitsandbytes":
        return 0
    if stored.get("load_in_8bit"):
        return 8
    double = stored.get("bnb_4bit_use_double_quant")
    return 4 + (8 / 64 + 32 / (64 * SCALES_PER_BLOCK) if double else 32 / 64)


def _quantized(model: PreTrainedModel, kind: str, stored: dict[str, Any]) -> Iterator[int]:
    """Yield the ids of the parameters that a checkpoint of a kind has quantized."""
    given = ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules")
    listed = next((stored[name] for name in given if stored.get(name)), None)
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, listed, add_default_skips=kind in BY_GPTQMODEL
    )
    for name, module in model.named_modules():
        if not should_convert_module(name, skipped):
            continue
        if isinstance(module, nn.Linear) and kind != "mxfp4":
            yield id(module.weight)
        elif name.endswith("experts") and kind != "bitsandbytes":
            yield from (id(p) for p in module.parameters(recurse=False) if p.dim() == 3)
