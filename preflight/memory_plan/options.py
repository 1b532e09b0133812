"""What is to be predicted: the options of a training step, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import BitsAndBytesConfig

from preflight.memory_plan.optimizers import OPTIMIZERS

METHODS = ("full", "lora", "qlora", "int8", "peft")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ATTENTION = ("sdpa", "eager", "flash_attention_2")
MIXED = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The options of `predict` after the checks; `peft_config` and `quantization_config` are set
    where the method has them."""

    method: str
    batch_size: int
    length: int
    torch_dtype: torch.dtype
    gradient_checkpointing: bool
    optimizer: str
    fused: bool
    attention: str | None
    padding: bool
    peft_config: PeftConfig | None
    quantization_config: BitsAndBytesConfig | None
    autocast: torch.dtype | None
    adapter_dtype: torch.dtype | None
    accumulates: bool
    prepare_for_kbit: bool
    device: str


def make_plan(
    method: str,
    *,
    batch_size: int,
    length: int,
    dtype: str | torch.dtype,
    gradient_checkpointing: bool,
    optimizer: str,
    loss: str,
    attention: str | None,
    padding: bool,
    peft_config: PeftConfig | None,
    quantization_config: BitsAndBytesConfig | None,
    mixed_precision: str | None,
    adapter_dtype: str | torch.dtype | None,
    gradient_accumulation_steps: int,
    prepare_for_kbit: bool,
    device: str,
) -> Plan:
    """Return the options as a plan.

    Raises:
        ValueError: if an option is unknown, or two do not go together.
    """
    _one_of("method", method, METHODS)
    _one_of("optimizer", optimizer, OPTIMIZERS)
    _one_of("loss", loss, ("fused", "full"))
    if attention is not None:
        _one_of("attention", attention, ATTENTION)
    _one_of("device", device, ("cuda", "cpu"))
    for name, value in (
        ("batch_size", batch_size),
        ("length", length),
        ("gradient_accumulation_steps", gradient_accumulation_steps),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}. Allowed is a whole number from 1 on. Correct it.")
    if length < 2:
        raise ValueError(
            f"length={length}. Allowed is 2 or more: a token is predicted from others."
        )
    peft_config = _adapter(method, peft_config)
    quantization_config = _quantization(method, quantization_config)
    if prepare_for_kbit and quantization_config is None:
        raise ValueError(
            f"prepare_for_kbit=True with method={method!r}, which quantizes nothing. It goes with "
            "qlora, int8 or a quantization_config. Leave it out."
        )
    if adapter_dtype is not None and peft_config is None:
        raise ValueError(
            f"adapter_dtype={adapter_dtype!r} with method='full', which has no adapter. The "
            "weights' own is dtype. Leave it out."
        )
    if mixed_precision is None:  # SFTConfig computes in bfloat16, TrainingArguments does not
        mixed_precision = "bf16" if loss == "fused" else "no"
    _one_of("mixed_precision", mixed_precision, MIXED)
    return Plan(
        method=method,
        batch_size=batch_size,
        length=length,
        torch_dtype=_dtype("dtype", dtype),
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,
        fused=loss == "fused",
        attention=attention,
        padding=padding,
        peft_config=peft_config,
        quantization_config=quantization_config,
        autocast=MIXED[mixed_precision],
        adapter_dtype=None if adapter_dtype is None else _dtype("adapter_dtype", adapter_dtype),
        accumulates=gradient_accumulation_steps > 1,
        prepare_for_kbit=prepare_for_kbit,
        device=device,
    )


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{name}={value!r} is unknown. Allowed are {', '.join(allowed)}. Choose one."
        )


def _dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    if value in DTYPES.values():
        return value
    value = SHORT.get(str(value), str(value)).removeprefix("torch.")
    _one_of(name, value, DTYPES)
    return DTYPES[value]


def _adapter(method: str, given: PeftConfig | None) -> PeftConfig | None:
    if given is not None and not isinstance(given, PeftConfig):
        raise ValueError(
            f"peft_config is a {type(given).__name__}. Allowed is a config of peft, such as "
            "LoraConfig(r=16, target_modules='all-linear')."
        )
    if method == "full":
        if given is not None:
            raise ValueError(
                "method='full' with a peft_config. Full fine-tuning has no adapter: choose "
                "method='peft', or leave the peft_config out."
            )
        return None
    if method == "peft" and given is None:
        raise ValueError(
            "method='peft' without a peft_config. Pass any config of peft, or choose one of full, "
            "lora, qlora, int8."
        )
    return given or LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


def _quantization(method: str, given: BitsAndBytesConfig | None) -> BitsAndBytesConfig | None:
    if given is not None and not isinstance(given, BitsAndBytesConfig):
        raise ValueError(
            f"quantization_config is a {type(given).__name__}. Allowed is a BitsAndBytesConfig."
        )
    if method in ("full", "lora") and given is not None:
        raise ValueError(
            f"method={method!r} with a quantization_config. A quantized base is trained with "
            "method='qlora', 'int8' or 'peft'."
        )
    if given is not None and not (given.load_in_4bit or given.load_in_8bit):
        raise ValueError(
            "quantization_config quantizes nothing: neither load_in_4bit nor load_in_8bit is set."
        )
    if method == "qlora":
        if given is not None and not given.load_in_4bit:
            raise ValueError("method='qlora' with a config that has no load_in_4bit. Use 'int8'.")
        return given or BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if method == "int8":
        if given is not None and not given.load_in_8bit:
            raise ValueError("method='int8' with a config that has no load_in_8bit. Use 'qlora'.")
        return given or BitsAndBytesConfig(load_in_8bit=True)
    return given
