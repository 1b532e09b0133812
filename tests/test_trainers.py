"""Trainer and SFTTrainer: where they are equal to the bit, and where they differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from course_utils import data
from course_utils.paths import POCKET_MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 4
TOKENIZER = AutoTokenizer.from_pretrained(POCKET_MODEL)


class PlainLoss(SFTTrainer):
    """SFTTrainer with the loss of Trainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


class FusedLoss(Trainer):
    """Trainer with the loss of SFTTrainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
        return model(**inputs, fused_lm_head=True).loss


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    return data.load("tickets", "train").remove_columns("kind").select(range(16))


def tokens_of_pair(row: dict[str, str]) -> dict[str, list[int]]:
    prompt = TOKENIZER(row["prompt"])["input_ids"]
    ids = TOKENIZER(row["prompt"] + row["completion"] + TOKENIZER.eos_token)["input_ids"]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)


def lora() -> LoraConfig:
    return LoraConfig(
        r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )


def recipe(folder: Path, seed: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 2,
        "learning_rate": 5e-3, "logging_steps": 1, "bf16": False, "activation_checkpointing": False,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "seed": seed,
    }  # fmt: skip


def run(trainer: Trainer) -> tuple[list[float], torch.Tensor]:
    """Return the losses and the trained weights of a training."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    weights = [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
    return losses, torch.cat(weights)


def by_trainer(folder: Path, pairs: Dataset, seed: int, kind: type[Trainer] = Trainer):
    model = base_model()
    if kind is FusedLoss:
        add_fused_lm_head(model)
    set_seed(seed)
    return run(
        kind(
            get_peft_model(model, lora()),
            TrainingArguments(**recipe(folder, seed)),
            train_dataset=pairs.map(tokens_of_pair, remove_columns=pairs.column_names),
            data_collator=DataCollatorForSeq2Seq(TOKENIZER),
        )
    )


def by_sft(folder: Path, pairs: Dataset, seed: int, kind: type[SFTTrainer] = SFTTrainer):
    return run(
        kind(
            str(POCKET_MODEL),
            SFTConfig(**recipe(folder, seed)),
            train_dataset=pairs,
            processing_class=TOKENIZER,
            peft_config=lora(),
        )
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_one_loss_the_two_are_equal_to_the_bit(
    tmp_path: Path, pairs: Dataset, seed: int
) -> None:
    """What the deeper notebook of lesson 07 measures: any other difference would show here."""
    losses, weights = by_trainer(tmp_path, pairs, seed)
    sft_losses, sft_weights = by_sft(tmp_path, pairs, seed, PlainLoss)
    assert losses == sft_losses
    assert torch.equal(weights, sft_weights)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_its_own_loss_sft_trainer_differs_by_rounding(
    tmp_path: Path, pairs: Dataset, seed: int
) -> None:
    """Six digits, not all: and Trainer with the fused loss has them all."""
    losses, _ = by_trainer(tmp_path, pairs, seed)
    sft_losses, sft_weights = by_sft(tmp_path, pairs, seed)
    fused_losses, fused_weights = by_trainer(tmp_path, pairs, seed, FusedLoss)
    assert losses != sft_losses
    assert losses == pytest.approx(sft_losses, abs=1e-5)
    assert fused_losses == sft_losses
    assert torch.equal(fused_weights, sft_weights)


def test_the_seed_before_the_adapter_counts(tmp_path: Path, pairs: Dataset) -> None:
    """Without it a comparison of the two trainers measures how the adapter starts."""
    losses, _ = by_trainer(tmp_path, pairs, 0)
    set_seed(1)
    other = run(
        Trainer(
            get_peft_model(base_model(), lora()),
            TrainingArguments(**recipe(tmp_path, 0)),
            train_dataset=pairs.map(tokens_of_pair, remove_columns=pairs.column_names),
            data_collator=DataCollatorForSeq2Seq(TOKENIZER),
        )
    )[0]
    assert other[0] == losses[0]
    assert other != pytest.approx(losses, abs=1e-5)


def test_these_defaults_of_sft_config_differ(tmp_path: Path) -> None:
    """The lesson discusses each; a new one needs a new paragraph."""
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    sft = SFTConfig(str(tmp_path), use_cpu=True)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    sft_names = {field.name for field in dataclasses.fields(SFTConfig)}
    assert names < sft_names
    different = {n: getattr(sft, n) for n in names if getattr(sft, n) != getattr(plain, n)}
    different.pop("gradient_checkpointing", None)  # the old name of activation_checkpointing
    assert different == {
        "learning_rate": 2e-5,
        "bf16": True,
        "activation_checkpointing": True,
        "logging_steps": 10,
    }


@pytest.mark.parametrize("name", ["tokenizer", "max_seq_length", "dataset_text_field", "packing"])
def test_an_argument_of_the_copied_call_is_refused(name: str) -> None:
    """The lesson shows these errors; were a name taken again, it would have to say so."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        SFTTrainer(str(POCKET_MODEL), **{name: 1})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("strategy", "isolated"), [("bfd", True), ("wrapped", False)])
def test_packed_documents_are_kept_apart_by_bfd_alone(
    tmp_path: Path, strategy: str, isolated: bool, attention: str
) -> None:
    """A document's logits are those of the document alone, in a batch that the trainer made."""
    texts = data.load("tickets", "train", form="text").remove_columns("kind").select(range(12))
    config = SFTConfig(
        str(tmp_path), packing=True, packing_strategy=strategy, max_length=480, use_cpu=True,
        bf16=False, report_to="none", model_init_kwargs={"attn_implementation": attention},
    )  # fmt: skip
    trainer = SFTTrainer(str(POCKET_MODEL), config, train_dataset=texts, processing_class=TOKENIZER)
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("labels")
    ids = batch["input_ids"][:1]
    first, second = (ids[0] == TOKENIZER.eos_token_id).nonzero().flatten()[:2].tolist()
    model = trainer.model.eval()
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0, first + 1 : second + 1]
        alone = model(ids[:, first + 1 : second + 1], use_cache=False).logits[0]
    gap = float((packed - alone).abs().max())
    assert gap < 1e-3 if isolated else gap > 0.1
