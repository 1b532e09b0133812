"""The speed of DPOTrainer's step next to its forward passes and its backward pass done by hand.

`benchmarks/bench.py` shows it as its part "dpo".
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer

from course_utils import data
from course_utils.paths import POCKET_MODEL
from course_utils.timing import StepClock

PAIRS, WARM_UP, STEPS, BETA = 8, 2, 6, 0.1
# Lesson 11a's settings; TRL's own are gradient checkpointing and bfloat16.
OURS = {"gradient_checkpointing": False, "bf16": False}


def dpo_trainer(**settings: Any) -> DPOTrainer:
    """Return a trainer of a LoRA on the course's pairs, its reference a copy of the adapter."""
    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        get_peft_model(base, lora),
        args=DPOConfig(
            output_dir=tempfile.gettempdir(), per_device_train_batch_size=PAIRS, beta=BETA,
            max_steps=WARM_UP + STEPS, save_strategy="no", use_cpu=True, report_to="none",
            disable_tqdm=True, seed=0, **OURS | settings,
        ),
        train_dataset=data.load("preferences", "train").select(range(PAIRS * (WARM_UP + STEPS))),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def with_trainer(**settings: Any) -> float:
    """Return the median seconds of DPOTrainer's step."""
    trainer, clock = dpo_trainer(**settings), StepClock()
    trainer.add_callback(clock)
    trainer.train()
    return statistics.median(clock.seconds[WARM_UP:])


def likelihoods(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the log-probability of each row's completion."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)[:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return -losses.sum(dim=1)


def by_hand() -> float:
    """Return the median seconds of the same step's four forward passes and one backward pass.

    The model and the batches are those of the trainer; the loss is DPO's (Rafailov et al. 2023,
    equation 7). There is no optimizer, no clipping, no logging.
    """
    trainer = dpo_trainer()
    model, seconds = trainer.model.train(), []
    for batch in trainer.get_train_dataloader():
        started = time.perf_counter()
        halves = [
            {name: tensor.chunk(2)[i] for name, tensor in batch.items()} for i in (0, 1)
        ]  # the chosen answers come first
        chosen, rejected = (likelihoods(model, half) for half in halves)
        model.set_adapter("ref")
        with torch.no_grad():
            ref_chosen, ref_rejected = (likelihoods(model, half) for half in halves)
        model.set_adapter("default")
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        (-logsigmoid(BETA * margin)).mean().backward()
        seconds.append(time.perf_counter() - started)
        model.zero_grad()
    return statistics.median(seconds[WARM_UP:])
