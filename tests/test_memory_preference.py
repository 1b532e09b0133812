"""Steps of DPOTrainer and GRPOTrainer: measured as they run, against the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CALM
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from course_utils.memory import MeterCallback, StepMemory
from course_utils.paths import POCKET_MODEL
from preflight.memory_plan import default_adapter, fit_gpus, plan_text, predict
from preflight.memory_plan.advice import with_length

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 3072, "max_position_embeddings": 512,
}  # fmt: skip
MODELS = {
    "pocket": lambda: AutoConfig.from_pretrained(POCKET_MODEL, use_cache=True),
    "llama": lambda: LlamaConfig(**SIZES, num_hidden_layers=7),
    "qwen3": lambda: Qwen3Config(
        **SIZES, num_hidden_layers=3, head_dim=32, tie_word_embeddings=True
    ),
}
TOKENIZER = AutoTokenizer.from_pretrained(POCKET_MODEL)
BF16 = {"dtype": "bfloat16", "mixed_precision": "bf16"}
CHECKPOINTING = {"gradient_checkpointing": True}
NO_REFERENCE = {"reference": False}
REFERENCE = {"reference": True}
PRECISE = {"dtype": "float32", "mixed_precision": "no", "gradient_checkpointing": False}


def tokens(row: str) -> int:
    return len(TOKENIZER(row)["input_ids"])


def text(count: int) -> str:
    """Return the longest text of a repeated word that has at most so many tokens."""
    rows = (" yes" * words for words in range(1, count + 1))
    return max((row for row in rows if tokens(row) <= count), key=len)


def real_model(config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def arguments(folder: Path, batch: int, plan: dict[str, Any]) -> dict[str, Any]:
    return CALM | {
        "output_dir": str(folder), "per_device_train_batch_size": batch, "max_steps": 2,
        "gradient_accumulation_steps": plan.get("gradient_accumulation_steps", 1),
        "bf16": plan["mixed_precision"] == "bf16",
        "gradient_checkpointing": plan["gradient_checkpointing"],
    }  # fmt: skip


def measured(trainer: DPOTrainer | GRPOTrainer) -> StepMemory:
    """Return what the second step takes."""
    meter = MeterCallback(2, reference=trainer.ref_model)
    trainer.add_callback(meter)
    trainer.train()
    return meter.memory


def dpo(
    folder: Path, config: PretrainedConfig, method: str, length: int, plan: dict[str, Any]
) -> tuple[StepMemory, int]:
    """Return the memory of a step of DPOTrainer with 2 pairs, and the tokens of their rows."""
    set_seed(0)
    half = length // 2
    row = {"prompt": text(half), "chosen": text(half), "rejected": text(half - 8)}
    reference = plan.get("reference", True)
    trainer = DPOTrainer(
        real_model(config, plan["dtype"]),
        ref_model=real_model(config, plan["dtype"]) if method == "full" and reference else None,
        args=DPOConfig(
            **arguments(folder, 2, plan), max_length=None, precompute_ref_log_probs=not reference
        ),
        train_dataset=Dataset.from_list([row] * 8),
        processing_class=TOKENIZER,
        peft_config=default_adapter(config, 8) if method == "lora" else None,
    )
    ready = trainer.train_dataset[0]
    return measured(trainer), len(ready["prompt_ids"]) + len(ready["chosen_ids"])


def grpo(
    folder: Path, config: PretrainedConfig, method: str, length: int, plan: dict[str, Any]
) -> tuple[StepMemory, int]:
    """Return the memory of a step of GRPOTrainer with 4 completions, and the tokens of a row."""
    set_seed(0)
    completion = length // 2
    model = real_model(config, plan["dtype"])
    if method == "full" and plan.get("reference"):  # which TRL loads from where the model is from
        model.save_pretrained(folder)
        model.config._name_or_path = str(folder)
    prompts = [text(length - completion), text(length - completion - 8)]
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completion_ids, **_: [float(len(set(ids))) for ids in completion_ids],
        args=GRPOConfig(
            **arguments(folder, 4, plan), num_generations=2, max_completion_length=completion,
            beta=0.04 if plan.get("reference") else 0.0,
            generation_kwargs={"min_new_tokens": completion},
        ),
        # Each step asks all prompts, so that their lengths differ.
        train_dataset=Dataset.from_list(
            [{"prompt": one} for one in prompts * plan.get("gradient_accumulation_steps", 1)]
        ),
        processing_class=TOKENIZER,
        peft_config=default_adapter(config, 8) if method == "lora" else None,
    )  # fmt: skip
    if trainer.ref_model is not None:
        for parameter in trainer.ref_model.parameters():  # out of the mapped file
            parameter.data = parameter.data.clone()
    return measured(trainer), max(map(tokens, prompts)) + completion


CASES = [
    ("dpo", "pocket", "lora", 96, {}),
    ("dpo", "pocket", "full", 192, CHECKPOINTING),
    ("dpo", "llama", "lora", 192, CHECKPOINTING | BF16),
    ("dpo", "llama", "full", 96, {"dtype": "bfloat16", "gradient_accumulation_steps": 2}),
    ("dpo", "qwen3", "lora", 192, CHECKPOINTING | NO_REFERENCE),
    ("dpo", "qwen3", "full", 96, BF16),
    ("grpo", "pocket", "lora", 96, {}),
    ("grpo", "pocket", "full", 192, CHECKPOINTING),
    ("grpo", "llama", "lora", 192, CHECKPOINTING | BF16 | REFERENCE),
    ("grpo", "llama", "full", 96, {"dtype": "bfloat16", "gradient_accumulation_steps": 2}),
    ("grpo", "qwen3", "lora", 192, CHECKPOINTING | {"dtype": "bfloat16"}),
    ("grpo", "qwen3", "full", 96, REFERENCE),
]


@pytest.mark.parametrize(("trainer", "name", "method", "length", "options"), CASES)
def test_predicted_equals_measured(
    trainer: str, name: str, method: str, length: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Breaks if the simulation and a real step part by more than they may for SFT: at the peak by
    0.1%, in any phase by 1%, and there are the same phases."""
    config, plan = MODELS[name](), PRECISE | options
    run, batch = {"dpo": (dpo, 2), "grpo": (grpo, 4)}[trainer]
    original = length
    real, length = run(tmp_path, config, method, length, plan)
    more = {}
    if trainer == "grpo":
        more = {"completion_length": original // 2, "num_generations": 2}
    guess = predict(
        config, method, trainer=trainer, batch_size=batch, length=length, padding=True,
        device="cpu", peft_config=default_adapter(config, 8) if method == "lora" else None,
        **plan | more,
    )  # fmt: skip
    assert guess.peak == pytest.approx(real.peak, rel=0.001)
    assert guess.peak_phase == real.peak_phase
    assert set(guess.phases) == set(real.phases)
    for phase in guess.phases:
        assert guess.total(phase) == pytest.approx(real.total(phase), rel=0.01), phase


@pytest.mark.parametrize(
    ("trainer", "method", "options"),
    [
        ("dpo", "full", {}),
        ("dpo", "qlora", CHECKPOINTING | {"padding": True}),
        ("grpo", "lora", CHECKPOINTING | REFERENCE | {"batch_size": 8}),
        ("grpo", "full", {"batch_size": 16, "gradient_accumulation_steps": 2}),
    ],
)
def test_extrapolation_equals_all_layers(
    trainer: str, method: str, options: dict[str, Any]
) -> None:
    """Breaks if several passes are extrapolated where one is not a line in the number of layers."""
    config = LlamaConfig(**SIZES, num_hidden_layers=9)
    options = {"trainer": trainer, "length": 200, **options}
    quick = predict(config, method, **options)
    whole = predict(config, method, layers="all", **options)
    assert quick.settings["simulated_layers"] == [4, 5]
    assert whole.settings["simulated_layers"] == [9]
    assert quick.phases == whole.phases


def test_what_the_trainers_differ_in() -> None:
    """Breaks if an option is not passed on: each must change what it is known to change."""
    config = LlamaConfig(**SIZES, num_hidden_layers=3)
    plan = {"batch_size": 8, "length": 256}
    pairs = predict(config, "full", trainer="dpo", **plan)
    alone = predict(config, "full", trainer="dpo", **plan | NO_REFERENCE)
    copy = pairs.phases["load"]["weights"] - alone.phases["load"]["weights"]
    assert copy == alone.phases["load"]["weights"]
    assert "score" in pairs.phases and "score" not in alone.phases
    adapter = predict(config, "lora", trainer="dpo", **plan)
    assert adapter.phases["load"]["weights"] == alone.phases["load"]["weights"]
    written = predict(config, "lora", trainer="grpo", **plan)
    more = predict(config, "lora", trainer="grpo", gradient_accumulation_steps=4, **plan)
    # All completions of a step are written at once, each with its keys and values.
    rows = more.total("generate") - more.total("load")
    assert rows > 3.5 * (written.total("generate") - written.total("load"))


def test_a_plan_for_a_gpu_keeps_whole_groups() -> None:
    """Breaks if the search asks GRPO for part of a group, or a completion longer than its row."""
    config = LlamaConfig(**SIZES, num_hidden_layers=3)
    result = fit_gpus(
        config, 2, "lora", trainer="grpo", batch_size=8, length=256, limits=True, advice=True
    )
    (row,) = result.rows
    assert row.largest_batch > 0 and row.largest_batch % 8 == 0
    said = plan_text(result)
    assert "highest in each phase: load" in said and "generate" in said
    assert "GRPO: the batch counts completions" in said
    plan = {"length": 512, "completion_length": 500}
    assert with_length(plan, 64) == {"length": 64, "completion_length": 62}


def test_advice_for_dpo_begins_with_the_reference() -> None:
    """Breaks if the cheapest change, the reference's figures computed beforehand, is not tried."""
    result = fit_gpus("llama-3.2-1b", 8, "full", trainer="dpo", length=512, advice=True)
    (row,) = result.rows
    changes = (*row.tried, *row.changes)
    assert not row.fits
    assert any("precompute_ref_log_probs=True" in str(change) for change in changes)
    assert not any("FSDP" in str(change) for change in changes)
