"""A model that has shapes and no values, built from its config alone, ready for one step.

Its tensors are fake: they have a shape, a dtype and a device.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PretrainedConfig
from transformers.quantizers import AutoHfQuantizer
from trl.trainer import utils as trl_utils

from course_utils.configs import auto_class
from preflight.memory_plan.options import StepOptions
from preflight.memory_plan.stored import holds_fp8, replace_layers

# What each trainer asks of its fused head: the loss, and what its metrics need.
OUTPUTS = {
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
    "grpo": ("log_probs", "entropy"),
}
WHOLE_NUMBERS = (torch.bool, torch.int64, torch.int32)


@contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """Give a fake mode; the random state is afterwards what it was before.

    Warnings are for real runs: bitsandbytes says that it does not page on a CPU, say, when it is a
    GPU that is simulated.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield FakeTensorMode()


class NoValues(TorchDispatchMode):
    """Answers what a step asks of values, which fake tensors do not have.

    A selection by a mask takes everything; a test ("is any of them infinite?") says no; a whole
    number is 0. A float that is asked for still fails, as nothing sensible can be said of it, but
    where `floats` says that it is for a trainer's metrics alone: there it is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.floats = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype in WHOLE_NUMBERS:
            if getattr(args[0], "constant", None) is None:  # a fake tensor may know a single value
                return False if args[0].dtype == torch.bool else 0
        if self.floats and func is torch.ops.aten._local_scalar_dense.default:
            return 0.0
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if len(masks) == 1 and args[1][-1] is masks[0]:
                if func is torch.ops.aten.index_put.default:
                    return torch.empty_like(args[0])
                before, shape = len(args[1]) - 1, args[0].shape
                after = shape[before + masks[0].dim() :]
                return args[0].new_empty(*shape[:before], masks[0].numel(), *after)
        if func is torch.ops.aten.masked_select.default:
            return args[0].new_empty(args[1].numel())
        return func(*args, **(kwargs or {}))


def build_base(config: PretrainedConfig, options: StepOptions) -> nn.Module:
    """Return the base model on the meta device, its linear layers replaced if it is quantized."""
    # flash-attn itself need not be installed: it keeps what sdpa's flash kernel keeps.
    attention = "sdpa" if options.attention == "flash_attention_2" else options.attention
    config = copy.deepcopy(config)  # transformers notes its choices in it
    config.use_cache = False
    with torch.device("meta"):
        model = auto_class(config, writes=True).from_config(
            config,
            dtype=options.dtype,
            attn_implementation=attention,
            trust_remote_code=False,
        )
    if holds_fp8(config):
        replace_layers(model, config)
    if options.quantization_config is not None:
        quantizer = AutoHfQuantizer.from_config(options.quantization_config, pre_quantized=False)
        quantizer.preprocess_model(model, dtype=options.dtype, device_map={"": "cpu"})
        model = quantizer.postprocess_model(model)
    return model


def build_model(config: PretrainedConfig, options: StepOptions, fake: FakeTensorMode) -> nn.Module:
    """Return the model as the trainer holds it just before its first step, of fake tensors."""
    model = build_base(config, options)
    if options.prepare_for_kbit:
        with torch.device("meta"):
            model = prepare_model_for_kbit_training(model, options.gradient_checkpointing)
    base = model
    if options.peft_config is not None:
        peft_config = copy.deepcopy(options.peft_config)  # peft writes into the one it is given
        peft_config.base_model_name_or_path = None  # it may have served another model before
        with torch.device("meta"), NoValues():
            model = get_peft_model(model, peft_config)
        _cast_adapters(model, options)
        if options.fused and options.gradient_checkpointing:
            model.enable_input_require_grads()  # as SFTTrainer does, and Trainer does not
    if options.gradient_checkpointing:
        base.gradient_checkpointing_enable()
    if options.fused:
        trl_utils.add_fused_lm_head(base, outputs=OUTPUTS[options.trainer])
    if options.trainer == "dpo":  # DPOConfig.disable_dropout
        trl_utils.disable_dropout_in_model(model)
    _make_fake(model, fake, options.dtype)
    model.train()
    return model


def build_reference(
    config: PretrainedConfig, options: StepOptions, fake: FakeTensorMode
) -> nn.Module | None:
    """Return the second model that a full fine-tuning is held against, None where there is none."""
    if not options.copied:
        return None
    model = build_base(config, options)
    trl_utils.add_fused_lm_head(model)
    _make_fake(model, fake, options.dtype)
    return model.eval()


def _cast_adapters(model: nn.Module, options: StepOptions) -> None:
    """Give adapters the dtype in which the trainer trains them."""
    quantized = options.quantization_config is not None
    dtype = options.adapter_dtype or (torch.bfloat16 if options.fused and quantized else None)
    if dtype is None:  # peft's own choice, which is float32 on a half-precision base
        return
    for name, parameter in model.named_parameters():
        # SFTTrainer leaves DoRA's magnitudes in float32.
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def _make_fake(model: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> None:
    """Replace every tensor that the model's modules hold by a fake CPU tensor; ties are kept."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the old one keeps its id taken

    def replace(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in made:
                made[id(value)] = (_fake(value, fake, dtype), value)
            return made[id(value)][0]
        if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return type(value)(replace(v) for v in value)
        if type(value) is dict and any(isinstance(v, torch.Tensor) for v in value.values()):
            return {key: replace(v) for key, v in value.items()}
        return value

    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in list(held.items()):
                if name not in ("_parameters", "_buffers", "_modules"):
                    held[name] = replace(value)


def _fake(tensor: torch.Tensor, fake: FakeTensorMode, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(tensor, bnb.nn.Params4bit):
        return _fake_4bit(tensor, fake, dtype)
    kind = torch.int8 if isinstance(tensor, bnb.nn.Int8Params) else tensor.dtype
    with fake:
        new = torch.empty(tensor.shape, dtype=kind)
        if not isinstance(tensor, nn.Parameter):
            return new
        parameter = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if isinstance(tensor, bnb.nn.Int8Params):
            parameter.CB, parameter.SCB = new, torch.empty(tensor.shape[0], dtype=torch.float32)
    return parameter


def _fake_4bit(weight: bnb.nn.Params4bit, fake: FakeTensorMode, dtype: torch.dtype) -> nn.Parameter:
    """Return what bitsandbytes makes of a 4-bit weight: packed codes, and scales in its state."""
    # Of the map for scales that are quantized again, bitsandbytes keeps one, made of values.
    with fake, patch.dict(bnb.functional.name2qmap, dynamic=torch.empty(256)):
        packed, state = bnb.functional.quantize_4bit(
            torch.empty(weight.shape, dtype=dtype),
            blocksize=weight.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            quant_storage=weight.quant_storage,
        )
        parameter = nn.Parameter(packed, requires_grad=False)
        parameter.quant_state = state
    return parameter
