"""Measure what the pocket model and the `tickets` dataset must show, and print it.

python data/build/report.py            print the figures
python data/build/report.py --write    also write them into the models' cards
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from datasets import DatasetDict
from peft import LoraConfig
from pretrain import copying_probe, copying_scores
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import SFTConfig, SFTTrainer

from course_utils import data, metrics
from course_utils.display import text_table
from course_utils.files import write_whole
from course_utils.paths import POCKET_MODEL, POCKET_T5

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
RECIPES: dict[str, tuple[LoraConfig | None, dict[str, float]]] = {
    "LoRA r=8, all linear layers": (LORA, {"learning_rate": 5e-3, "num_train_epochs": 1}),
    "full fine-tuning": (None, {"learning_rate": 5e-4, "num_train_epochs": 1}),
}


def load_model() -> PreTrainedModel:
    """Return the pocket model in float32."""
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)


def quality(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tickets: DatasetDict,
    texts: list[str],
) -> dict[str, float]:
    """Return exact match and share of fields right by kind of test row, and the held-out loss."""
    figures = {}
    for kind in ("seen", "unseen"):
        rows = tickets["test"].filter(lambda row, kind=kind: row["kind"] == kind)
        references = [text.strip() for text in rows["completion"]]
        answers = metrics.generate(model, tokenizer, rows["prompt"], progress=False)
        figures[f"exact match, {kind}"] = metrics.exact_match(answers, references)
        figures[f"fields, {kind}"] = metrics.field_accuracy(answers, references).mean()
    figures["held-out loss"] = metrics.token_loss(model, tokenizer, texts)
    return figures


def tune(
    name: str, tokenizer: PreTrainedTokenizerFast, tickets: DatasetDict, seed: int
) -> tuple[PreTrainedModel, float]:
    """Return the pocket model tuned by one recipe, and the seconds of training."""
    peft_config, settings = RECIPES[name]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            max_length=320,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            activation_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **settings,
        )
        trainer = SFTTrainer(
            model=load_model(),
            args=config,
            train_dataset=tickets["train"],
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return trainer.model, time.perf_counter() - started


def fill_in(card: Path, part: str, text: str) -> None:
    """Replace what stands between the marks of one part of a card."""
    start, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    head, rest = card.read_text(encoding="utf-8").split(start)
    _, tail = rest.split(end)
    write_whole(card, f"{head}{start}\n{text}\n{end}{tail}")


def training_facts(folder: Path) -> str:
    """Return the card's paragraph on how a model was pretrained, from its `training.json`."""
    facts = json.loads((folder / "training.json").read_text())
    return (
        f"**Training.** {facts['parameters']:,} parameters, {facts['documents']:,} documents of "
        f"the corpus seen once each, {facts['tokens']:,} tokens; learning rate "
        f"{facts['learning_rate']}, seed {facts['seed']}; {facts['minutes']:.0f} minutes on "
        f"{facts['hardware']} (torch {facts['torch']}). Loss on held-out documents at the end: "
        f"{facts['heldout_loss']:.3f} nats per token."
    )


def copied(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return in a line how much a model copies from its context before any fine-tuning."""
    shares = copying_scores(model, tokenizer, copying_probe())
    return ", ".join(f"{what} {share:.0%}" for what, share in shares.items())


def shown(runs: pd.Series) -> str:
    """Return one figure over the seeds: its mean, and its smallest and largest value."""
    form = "{:.0f}" if runs.name == "training, s" else "{:.3f}"
    mean, low, high = (form.format(v) for v in (runs.mean(), runs.min(), runs.max()))
    return mean if low == high else f"{mean} ({low}–{high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the figures into the card")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each recipe (default: 1)")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tickets = data.load("tickets", form="prompt-completion")
    texts = list(data.load("heldout", "validation")["text"])
    base = quality(load_model(), tokenizer, tickets, texts) | {"training, s": 0.0}
    results = {"base model": pd.DataFrame([base])}
    for name in RECIPES:
        runs = []
        for seed in range(options.seeds):
            model, seconds = tune(name, tokenizer, tickets, seed)
            runs.append(quality(model, tokenizer, tickets, texts) | {"training, s": seconds})
            print(f"{name}, seed {seed}: done", flush=True)
        results[name] = pd.DataFrame(runs)

    copying = copied(load_model(), tokenizer)
    t5_copying = copied(
        AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5, dtype=torch.float32),
        AutoTokenizer.from_pretrained(POCKET_T5),
    )
    print(f"The base model copies from its context: {copying}")
    print(f"pocket-t5 copies from its input: {t5_copying}")
    headers = ["", *base]
    rows = [[name, *(shown(runs[figure]) for figure in base)] for name, runs in results.items()]
    print(text_table(rows, headers))
    if options.write:
        lines = [headers, ["---"] * len(headers), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        fill_in(POCKET_MODEL / "README.md", "figures", table)
        fill_in(POCKET_MODEL / "README.md", "copying", f"{copying}.")
        fill_in(POCKET_T5 / "README.md", "copying", f"{t5_copying}.")
        for folder in (POCKET_MODEL, POCKET_T5):
            fill_in(folder / "README.md", "training", training_facts(folder))


if __name__ == "__main__":
    main()
