"""What is to be predicted: the options of a training step, checked.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from transformers import BitsAndBytesConfig

METHODS = ("full", "lora", "qlora", "int8", "peft")
# The arguments of LoraConfig, and of BitsAndBytesConfig, of a method that is given no others.
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
QUANTIZED = {
    "qlora": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "int8": {"load_in_8bit": True},
}
# Those of TrainingArguments.optim that need no further package. Without paged AdEMAMix, which
# bitsandbytes cannot make where there is no GPU.
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The trainers whose steps are known; Trainer's loss is "full", TRL's is "fused".
TRAINERS = ("sft", "trainer", "dpo", "grpo")
# Those whose step has more passes than one forward and one backward: a reference, completions.
SEVERAL_PASSES = ("dpo", "grpo")
# Defaults of GRPOConfig: max_completion_length, in tokens, and num_generations.
COMPLETION, GENERATIONS = 256, 8
ATTENTION = ("sdpa", "eager", "flash_attention_2")
MIXED = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class StepOptions:
    """The options of `predict`, checked; `peft_config` and `quantization_config` are set where the
    method has them, and dtypes are torch's.

    Raises:
        ValueError: if an option is unknown, or two do not go together.
    """

    method: str
    batch_size: int
    length: int
    dtype: Any
    gradient_checkpointing: bool
    optimizer: str
    loss: str
    attention: str | None
    padding: bool
    peft_config: PeftConfig | None
    quantization_config: BitsAndBytesConfig | None
    mixed_precision: str | None
    adapter_dtype: Any
    gradient_accumulation_steps: int
    prepare_for_kbit: bool
    device: str
    trainer: str | None
    reference: bool | None
    completion_length: int | None
    num_generations: int

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("loss", self.loss, ("fused", "full"))
        if self.attention is not None:
            _one_of("attention", self.attention, ATTENTION)
        _one_of("device", self.device, ("cuda", "cpu"))
        for name in ("batch_size", "length", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name}={value!r}. Allowed is a whole number from 1 on. Correct it."
                )
        if self.length < 2:
            raise ValueError(
                f"length={self.length}. Allowed is 2 or more: a token is predicted from others."
            )
        self._check_trainer()
        self.peft_config = _adapter(self.method, self.peft_config)
        self.quantization_config = _quantization(self.method, self.quantization_config)
        if self.prepare_for_kbit and self.quantization_config is None:
            raise ValueError(
                f"prepare_for_kbit=True with method={self.method!r}, which quantizes nothing. It "
                "goes with qlora, int8 or a quantization_config. Leave it out."
            )
        if self.adapter_dtype is not None and self.peft_config is None:
            raise ValueError(
                f"adapter_dtype={self.adapter_dtype!r} with method='full', which has no adapter. "
                "The weights' own is dtype. Leave it out."
            )
        if self.mixed_precision is None:  # as SFTConfig, and TrainingArguments
            self.mixed_precision = "bf16" if self.fused else "no"
        _one_of("mixed_precision", self.mixed_precision, MIXED)
        self.dtype = _dtype("dtype", self.dtype)
        if self.adapter_dtype is not None:
            self.adapter_dtype = _dtype("adapter_dtype", self.adapter_dtype)

    def _check_trainer(self) -> None:
        """Settle what a trainer's step has; refuse what another's would have."""
        if self.trainer is None:
            self.trainer = "sft" if self.fused else "trainer"
        _one_of("trainer", self.trainer, TRAINERS)
        if self.fused == (self.trainer == "trainer"):
            raise ValueError(
                f"loss={self.loss!r} with trainer={self.trainer!r}. Trainer's loss is full, that "
                "of TRL's trainers (sft, dpo, grpo) fused. Leave the loss or the trainer out."
            )
        if self.reference and self.trainer not in SEVERAL_PASSES:
            raise ValueError(
                f"reference=True with trainer={self.trainer!r}, which has no reference model. "
                "Allowed are the trainers dpo and grpo. Leave it out."
            )
        if self.reference is None:  # GRPOConfig.beta is 0, and then there is none
            self.reference = self.trainer == "dpo"
        if self.trainer == "grpo":
            self._check_generations()
        elif self.completion_length is not None:
            raise ValueError(
                f"completion_length={self.completion_length!r} with trainer={self.trainer!r}, "
                "whose step writes no completions. It goes with trainer='grpo'. Leave it out."
            )

    def _check_generations(self) -> None:
        """Hold to GRPOConfig's own rules."""
        if self.completion_length is None:
            self.completion_length = min(COMPLETION, self.length // 2)
        given, top = self.completion_length, self.length - 1
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= top:
            raise ValueError(
                f"completion_length={given!r} with length={self.length}, which is prompt and "
                f"completion together. Allowed is a whole number of 1 to {top}. Correct one."
            )
        count, rows = self.num_generations, self.generated_rows
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ValueError(
                f"num_generations={count!r}. Allowed is a whole number from 2 on: a completion is "
                "held against the others of its prompt. Correct it."
            )
        if rows % count:
            raise ValueError(
                f"{rows} completions are written at once (batch_size={self.batch_size} × "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}), which "
                f"num_generations={count} does not divide. GRPOTrainer takes whole groups of a "
                f"prompt alone. Give a batch_size that is a multiple of {count}, or other "
                "num_generations."
            )

    @property
    def generated_rows(self) -> int:
        """The completions that GRPO writes at once: those of all batches of a step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def masked(self) -> bool:
        """Whether attention gets a mask; flash_attention_2 takes the padding out instead."""
        return self.padding and self.attention != "flash_attention_2"

    @property
    def copied(self) -> bool:
        """Whether the reference is a second model: an adapter is switched off instead."""
        return bool(self.reference) and self.peft_config is None

    @property
    def fused(self) -> bool:
        """Whether TRL's loss works on parts of the logits."""
        return self.loss == "fused"

    @property
    def autocast(self) -> torch.dtype | None:
        """The half precision in which the passes compute."""
        return MIXED[self.mixed_precision]


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
    if given is None:
        if method == "peft":
            raise ValueError(
                "method='peft' without a peft_config. Pass any config of peft, or choose one of "
                "full, lora, qlora, int8."
            )
        return None if method == "full" else LoraConfig(**LORA)
    if not isinstance(given, PeftConfig):
        raise ValueError(
            f"peft_config is a {type(given).__name__}. Allowed is a config of peft, such as "
            "LoraConfig(r=16, target_modules='all-linear')."
        )
    if method == "full":
        raise ValueError(
            "method='full' with a peft_config. Full fine-tuning has no adapter: choose "
            "method='peft', or leave the peft_config out."
        )
    return given


def _quantization(method: str, given: BitsAndBytesConfig | None) -> BitsAndBytesConfig | None:
    if given is None:
        return BitsAndBytesConfig(**QUANTIZED[method]) if method in QUANTIZED else None
    if not isinstance(given, BitsAndBytesConfig):
        raise ValueError(
            f"quantization_config is a {type(given).__name__}. Allowed is a BitsAndBytesConfig."
        )
    if method in ("full", "lora"):
        raise ValueError(
            f"method={method!r} with a quantization_config. A quantized base is trained with "
            "method='qlora', 'int8' or 'peft'."
        )
    if not (given.load_in_4bit or given.load_in_8bit):
        raise ValueError(
            "quantization_config quantizes nothing: neither load_in_4bit nor load_in_8bit is set."
        )
    if method == "qlora" and not given.load_in_4bit:
        raise ValueError("method='qlora' with a config that has no load_in_4bit. Use 'int8'.")
    if method == "int8" and not given.load_in_8bit:
        raise ValueError("method='int8' with a config that has no load_in_8bit. Use 'qlora'.")
    return given
