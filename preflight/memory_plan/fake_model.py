"""A model that has shapes and no values, built from its config alone, ready for one step.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

import copy

import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.quantizers import AutoHfQuantizer
from trl.trainer import utils as trl_utils

from preflight.memory_plan.fake_tensors import NoValues, make_fake
from preflight.memory_plan.options import StepOptions

# What SFTTrainer asks of its fused head: the loss, and what its two metrics need.
SFT_OUTPUTS = ("log_probs", "entropy", "is_top1")


def build_base(config: PretrainedConfig, options: StepOptions) -> nn.Module:
    """Return the base model on the meta device, its linear layers replaced if it is quantized."""
    # flash-attn itself need not be installed: it keeps what sdpa's flash kernel keeps.
    attention = "sdpa" if options.attention == "flash_attention_2" else options.attention
    config = copy.deepcopy(config)  # transformers notes its choices in it
    config.use_cache = False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=options.dtype,
            attn_implementation=attention,
            trust_remote_code=False,
        )
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
        trl_utils.add_fused_lm_head(base, outputs=SFT_OUTPUTS)
    make_fake(model, fake, options.dtype)
    model.train()
    return model


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
