"""DPO against more SFT on the chosen answers, at equal steps: data/results/preferences.json.

    OMP_NUM_THREADS=1 python benchmarks/preferences.py       half an hour of one core; goes on

For each seed the pocket model is tuned on the tickets as lesson 11a does it; then every case
starts from that adapter (kept under build/) and takes STEPS steps of PAIRS pairs, or of their
chosen answers. All get the same two learning rates. A case that is on record is not run again.
"""

from __future__ import annotations

import gc
import json
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from course_utils import data, metrics
from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT, POCKET_MODEL

RESULTS = COURSE_ROOT / "data" / "results" / "preferences.json"
SCHEMA = 1
SEEDS, STEPS, PAIRS, BETA = (0, 1, 2), 32, 8, 0.1
CONFIG = {"seeds": SEEDS, "steps": STEPS, "pairs": PAIRS, "beta": BETA}
RATES = (2e-4, 1e-3)
# What a case does: the method, and DPO's losses.
CASES: dict[str, tuple[str, list[str]]] = {
    "more SFT": ("sft", []),
    "DPO": ("dpo", ["sigmoid"]),
    "DPO and SFT's loss": ("dpo", ["sigmoid", "sft"]),
}
START, START_RATE = "SFT", 5e-3
LIBRARIES = ("torch", "transformers", "peft", "trl")
QUIET = {
    "save_strategy": "no", "use_cpu": True, "bf16": False, "report_to": "none",
    "disable_tqdm": True, "lr_scheduler_type": "cosine", "max_length": 320,
}  # fmt: skip


def base_model() -> torch.nn.Module:
    """Return the pocket model in float32."""
    gc.collect()
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)


def trained(trainer: Trainer) -> Trainer:
    """Train without a printed line for each logged loss, and return the trainer."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.eval()
    return trainer


def start(folder: str, seed: int) -> Trainer:
    """Return the trainer that tuned the pocket model by lesson 00's recipe, on chats."""
    chats = data.load("tickets", "train", form="messages")["messages"]
    rows = [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    return trained(SFTTrainer(
        base_model(),
        SFTConfig(output_dir=folder, num_train_epochs=1, per_device_train_batch_size=16,
                  learning_rate=START_RATE, warmup_steps=0.05, activation_checkpointing=False,
                  seed=seed, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                               task_type="CAUSAL_LM"),
    ))  # fmt: skip


def case(folder: str, name: str, rate: float, seed: int) -> Trainer:
    """Return the trainer of one case, which went on from the adapter in a folder."""
    kind, losses = CASES[name]
    common: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": PAIRS, "max_steps": STEPS,
        "learning_rate": rate, "warmup_steps": 0.1, "seed": seed, "logging_steps": STEPS // 4,
    } | QUIET  # fmt: skip
    model = PeftModel.from_pretrained(base_model(), folder, is_trainable=True)
    rows = data.load("preferences", "train")
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    if kind == "sft":
        chosen = rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
        config = SFTConfig(activation_checkpointing=False, **common)
        return trained(SFTTrainer(model, config, train_dataset=chosen, processing_class=tokenizer))
    config = DPOConfig(gradient_checkpointing=False, beta=BETA, loss_type=losses, **common)
    return trained(DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer))


def quality(model: torch.nn.Module) -> dict[str, float]:
    """Return exact match on the test's seen and unseen messages and on those of held-out pairs."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    test, pairs = data.load("tickets", "test", form="messages"), data.load("preferences")
    asked = {
        kind: [chat for chat, k in zip(test["messages"], test["kind"], strict=True) if k == kind]
        for kind in ("seen", "unseen")
    }
    asked["pairs"] = [row["prompt"] + row["chosen"] for row in pairs["validation"]]
    found = {}
    for kind, chats in asked.items():
        answers = metrics.generate(model, tokenizer, [c[:1] for c in chats], progress=False)
        found[kind] = metrics.exact_match(answers, [c[1]["content"] for c in chats])
    return found


def logged(trainer: Trainer) -> dict[str, float]:
    """Return what a trainer logged last of what is kept."""
    last = [line for line in trainer.state.log_history if "loss" in line][-1]
    kept = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    return {key: last[key] for key in kept if key in last}


def record(name: str, rate: float, seed: int, folder: str) -> dict[str, Any]:
    """Return what is kept of a run: its quality, and what its trainer logged last."""
    if name == START:
        model = PeftModel.from_pretrained(base_model(), folder).eval()
        figures: dict[str, float] = {}
    else:
        trainer = case(folder, name, rate, seed)
        model, figures = trainer.model, logged(trainer)
    return {
        "case": name, "learning_rate": rate, "seed": seed, "exact_match": quality(model),
        "logged": figures,
    }  # fmt: skip


def write(records: list[dict[str, Any]]) -> None:
    """Write the records with what made them."""
    content = {
        "schema": SCHEMA,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "device": "cpu",
        "date": datetime.now(UTC).date().isoformat(),
        "config": CONFIG,
        "records": records,
    }
    write_whole(RESULTS, json.dumps(content, indent=1) + "\n")


def main() -> int:
    records = json.loads(RESULTS.read_text())["records"] if RESULTS.exists() else []
    known = {(one["case"], one["learning_rate"], one["seed"]) for one in records}
    wanted = [(START, START_RATE), *((name, rate) for rate in RATES for name in CASES)]
    for seed in SEEDS:
        folder = COURSE_ROOT / "build" / "preferences" / str(seed)
        for name, rate in wanted:
            if (name, rate, seed) in known:
                continue
            if not (folder / "adapter_config.json").exists():
                start(str(folder), seed).save_model(str(folder))
            records.append(record(name, rate, seed, str(folder)))
            write(records)
            print(json.dumps(records[-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
