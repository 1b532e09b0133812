"""A model that has shapes and no values, built from its config alone, ready for one step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.quantizers import AutoHfQuantizer
from trl.trainer.utils import add_fused_lm_head

from preflight.memory_plan.fake_gpu import NoValues

if TYPE_CHECKING:
    from preflight.memory_plan.options import Plan

# What SFTTrainer asks of its fused head: the loss, and what its two metrics need.
SFT_OUTPUTS = ("log_probs", "entropy", "is_top1")


def with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """Return a copy of a config with the first `count` of its layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return config


def build_base(config: PretrainedConfig, plan: Plan) -> nn.Module:
    """Return the base model on the meta device, its linear layers replaced if it is quantized."""
    # flash-attn itself need not be installed: it keeps what sdpa's flash kernel keeps.
    attention = "sdpa" if plan.attention == "flash_attention_2" else plan.attention
    config = copy.deepcopy(config)  # transformers notes its choices in it
    config.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=plan.torch_dtype,
            attn_implementation=attention,
            trust_remote_code=False,
        )
    if plan.quantization_config is not None:
        quantizer = AutoHfQuantizer.from_config(plan.quantization_config, pre_quantized=False)
        quantizer.preprocess_model(model, dtype=plan.torch_dtype, device_map={"": "cpu"})
        model = quantizer.postprocess_model(model)
    return model


def build_model(config: PretrainedConfig, plan: Plan, fake: FakeTensorMode) -> nn.Module:
    """Return the model as the trainer holds it just before its first step, of fake tensors."""
    model = build_base(config, plan)
    if plan.prepare_for_kbit:
        with torch.device("meta"):
            model = prepare_model_for_kbit_training(model, plan.gradient_checkpointing)
    base = model
    if plan.peft_config is not None:
        peft_config = copy.deepcopy(plan.peft_config)  # peft writes into the one it is given
        peft_config.base_model_name_or_path = None  # it may have served another model before
        with torch.device("meta"), NoValues():
            model = get_peft_model(model, peft_config)
        _cast_adapters(model, plan)
        if plan.fused and plan.gradient_checkpointing:  # as SFTTrainer does, and Trainer does not
            model.enable_input_require_grads()
    if plan.gradient_checkpointing:
        base.gradient_checkpointing_enable()
    if plan.fused:
        add_fused_lm_head(base, outputs=SFT_OUTPUTS)
    make_fake(model, fake, plan.torch_dtype)
    model.train()
    return model


def _cast_adapters(model: nn.Module, plan: Plan) -> None:
    """Give adapters the dtype in which the trainer trains them."""
    quantized = plan.quantization_config is not None
    dtype = plan.adapter_dtype or (torch.bfloat16 if plan.fused and quantized else None)
    if dtype is None:  # peft's own choice, which is float32 on a half-precision base
        return
    for name, parameter in model.named_parameters():
        # SFTTrainer leaves DoRA's magnitudes in float32.
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(dtype)


def make_fake(model: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> None:
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
    """Return what a 4-bit weight is once bitsandbytes has quantized it.

    Two codes to a byte; a float32 scale a block; with double quantization the scales as bytes, with
    a float32 scale for 256 of them (bitsandbytes/functional.py, quantize_4bit).
    """
    blocks = -(-weight.numel() // weight.blocksize)
    with fake:
        packed = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8)
        if weight.quant_storage.itemsize > 1:
            size = weight.quant_storage.itemsize
            packed = torch.empty(-(-len(packed) // size), 1, dtype=weight.quant_storage)
        second = offset = None
        if weight.compress_statistics:
            absmax, offset = torch.empty(blocks, dtype=torch.uint8), torch.empty(())
            second = bnb.functional.QuantState(
                absmax=torch.empty(-(-blocks // 256)),
                blocksize=256,
                code=torch.empty(256),
                dtype=torch.float32,
            )
        else:
            absmax = torch.empty(blocks)
        parameter = nn.Parameter(packed, requires_grad=False)
        parameter.quant_state = bnb.functional.QuantState(
            absmax=absmax,
            shape=weight.shape,
            code=torch.empty(16),
            blocksize=weight.blocksize,
            quant_type=weight.quant_type,
            dtype=dtype,
            offset=offset,
            state2=second,
        )
    return parameter


@contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """Give a fake mode; the random state is afterwards what it was before.

    Warnings are for real runs: bitsandbytes says that it does not page on a CPU, say, when it is a
    GPU that is imitated.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield FakeTensorMode()
