"""One run of a comparison, in a process of its own, from an experiment to its figures.

`main` reads a job as JSON from its input and writes JSON lines: how far it is, and at last the
result. The process that started it writes the result to disk. If that process ends, so does this
one, at the next line that it cannot write.

Used by lessons: 08.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import PeftConfig, get_peft_config
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from course_utils import data, hardware, metrics, models, quantization
from course_utils.compare.experiments import Experiment
from course_utils.divergence import Diverged, StopOnDivergence
from course_utils.memory import MeterCallback

COURSE_DATA = "tickets"
# Arguments of SFTConfig for every run, unless its experiment says otherwise.
TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_length": 320,
    "train_sampling_strategy": "group_by_length",
    "activation_checkpointing": False,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 0.25,
}
# What the comparison sets itself: a folder that is thrown away, a seed per run, nothing hidden.
OWN: dict[str, Any] = {
    "output_dir": "",
    "seed": 0,
    "data_seed": None,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "include_num_input_tokens_seen": "non_padding",
    "logging_nan_inf_filter": False,  # a loss that is not a number has to be seen
}
MEMORY_STEP = 2  # the first in which the optimizer has its state
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Report = Callable[[dict[str, Any]], None]


def sft_config(experiment: Experiment, seed: int = 0, folder: str = "unused") -> SFTConfig:
    """Return the training arguments of one run."""
    cuda = torch.cuda.is_available()
    device = {"use_cpu": not cuda, "bf16": cuda and hardware.detect().bf16}
    arguments = {**TRAINING, **device, **experiment.training, **OWN}
    return SFTConfig(**{**arguments, "output_dir": folder, "seed": seed})


def peft_config(experiment: Experiment) -> PeftConfig | None:
    """Return the PEFT config of an experiment, or None for full fine-tuning."""
    if experiment.peft is None:
        return None
    return get_peft_config({"task_type": "CAUSAL_LM", **experiment.peft})


def quantization_config(experiment: Experiment) -> BitsAndBytesConfig | None:
    """Return how the base model is quantized, or None."""
    if experiment.quantization is None:
        return None
    return BitsAndBytesConfig(**quantization.checked_arguments(**experiment.quantization))


def model_path(experiment: Experiment) -> str:
    """Return what `from_pretrained` takes for an experiment's base model."""
    return experiment.model or models.base_model().path


@dataclass(frozen=True)
class Rows:
    """The rows of a run: three splits in prompt-completion form, and texts for forgetting."""

    train: Dataset
    validation: Dataset | None
    test: Dataset
    heldout: list[str]

    def cut(self, experiment: Experiment) -> Rows:
        """Return the first `train_rows` and `test_rows`, where an experiment gives them.

        Of a test split with a column `kind`, each kind is cut by itself.

        Raises:
            ValueError: if there are not as many.
        """
        train, test = self.train, self.test
        for key, rows in (("train_rows", train), ("test_rows", test)):
            count = getattr(experiment, key)
            if count is not None and count > len(rows):
                raise ValueError(
                    f"{key} is {count}, but {experiment.data} has only {len(rows)} such rows."
                )
        if experiment.train_rows is not None:
            train = train.select(range(experiment.train_rows))
        if experiment.test_rows is not None:
            kinds = test["kind"] if "kind" in test.column_names else [""] * len(test)
            kept = []
            for kind in dict.fromkeys(kinds):
                places = [place for place, one in enumerate(kinds) if one == kind]
                kept += places[: max(1, round(experiment.test_rows * len(places) / len(test)))]
            test = test.select(sorted(kept))
        return replace(self, train=train, test=test)

    def fingerprint(self) -> str:
        """Return a hash of every row that a result depends on."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            rows = part.to_list() if part is not None else []
            digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
        digest.update(json.dumps(self.heldout).encode())
        return digest.hexdigest()


def load_rows(source: str) -> Rows:
    """Return all rows of an experiment's `data`: the course's own, or those of a folder.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if a file has no rows, or lacks a column.
    """
    if source == COURSE_DATA:
        splits = data.load(COURSE_DATA, form="prompt-completion")
        heldout = list(data.load("heldout", "validation")["text"])
        return Rows(splits["train"], splits["validation"], splits["test"], heldout)
    files = {name: Path(source) / f"{name}.jsonl" for name in (*data.SPLITS, "heldout")}
    for file in (files["train"], files["test"]):
        if not file.is_file():
            raise FileNotFoundError(
                f"data is {source!r}. Allowed is {COURSE_DATA!r} or a folder with train.jsonl and "
                f"test.jsonl. There is no '{file}'. Make the folder, or correct its name."
            )
    found = {name: _read(file) for name, file in files.items() if file.is_file()}
    heldout = list(found["heldout"]["text"]) if "heldout" in found else []
    return Rows(found["train"], found.get("validation"), found["test"], heldout)


def _read(file: Path) -> Dataset:
    columns = ("text",) if file.stem == "heldout" else ("prompt", "completion")
    with data.no_progress_bars():
        rows = load_dataset("json", data_files=glob.escape(str(file)), split="train")
    if not len(rows) or not set(columns) <= set(rows.column_names):
        raise ValueError(
            f"'{file}' has {len(rows)} rows with the columns {', '.join(rows.column_names)}. It "
            f"has to have rows with {', '.join(columns)}, at least one. `python -m course_utils "
            "check FILE` says what else is wrong."
        )
    return rows


def execute(experiment: Experiment, seed: int, folder: Path, report: Report) -> dict[str, Any]:
    """Return the result of one run: a failure is a result too, with its reason in `reason`."""
    record: dict[str, Any] = {"status": "ok", "reason": ""}
    try:
        _run(experiment, seed, folder, report, record)
    except Diverged as error:
        record.update(status="diverged", reason=str(error))
    except Exception as error:  # whatever went wrong is what the comparison reports
        memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)
        )
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        record.update(
            status="out of memory" if memory else "crashed",
            reason=reason[:600],
            traceback=traceback.format_exc()[-6000:],
        )
    return record


class _ReportSteps(TrainerCallback):
    """Reports how far the training is."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report({"step": state.global_step, "steps": state.max_steps})


def _run(
    experiment: Experiment, seed: int, folder: Path, report: Report, record: dict[str, Any]
) -> None:
    """Train and measure; what is known is put into `record` as soon as it is."""
    report({"phase": "loading"})
    rows = load_rows(experiment.data).cut(experiment)
    model, tokenizer = _model_and_tokenizer(experiment)
    before = metrics.token_loss(model, tokenizer, rows.heldout) if rows.heldout else None

    set_seed(seed)
    arguments = sft_config(experiment, seed, str(folder))
    if rows.validation is None:
        arguments.eval_strategy = "no"
    meter = MeterCallback(MEMORY_STEP)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=_text_columns(rows.train),
        eval_dataset=None if rows.validation is None else _text_columns(rows.validation),
        processing_class=tokenizer,
        peft_config=peft_config(experiment),
        callbacks=[_ReportSteps(report), StopOnDivergence(), meter],
    )
    trainer.remove_callback(PrinterCallback)
    tuned = trainer.model
    record["trainable_parameters"] = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    report({"phase": "training"})
    started = time.perf_counter()
    try:
        trainer.train()
    finally:
        _put_curves(trainer, record)
    seconds = time.perf_counter() - started - record["evaluation_seconds"]
    tokens = int(trainer.state.num_input_tokens_seen)
    record.update(
        steps=trainer.state.global_step,
        training_seconds=round(seconds, 3),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1),
        memory=meter.memory.to_dict() if meter.memory else None,
        process_peak_bytes=_process_peak(),
    )
    evaluated = [step for step, _ in record["validation_loss"]]
    if rows.validation is not None and trainer.state.global_step not in evaluated:
        trainer.evaluate()
        _put_curves(trainer, record)

    report({"phase": "testing"})
    record["metrics"] = _quality(tuned, tokenizer, rows.test, record)
    if before is not None:
        after = metrics.token_loss(tuned, tokenizer, rows.heldout)
        record["forgetting"] = {"before": before, "after": after, "rise": after - before}
    trainer.save_model(str(folder / "saved"))
    weights = (folder / "saved").glob("*.safetensors")
    record["checkpoint_bytes"] = sum(file.stat().st_size for file in weights)


def _model_and_tokenizer(experiment: Experiment) -> tuple[PreTrainedModel, Any]:
    quantized = quantization_config(experiment)
    if quantized is not None:
        hardware.fix_bitsandbytes()
    path = model_path(experiment)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token is None:  # as SFTTrainer does, but a batch is padded before it is made
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=experiment.dtype,
        quantization_config=quantized,
        device_map={"": 0} if torch.cuda.is_available() else None,
        trust_remote_code=False,
    )
    return model, tokenizer


def _text_columns(rows: Dataset) -> Dataset:
    return rows.select_columns(["prompt", "completion"])


def _put_curves(trainer: SFTTrainer, record: dict[str, Any]) -> None:
    """Put what a trainer has logged so far into the record: losses by step, and its evaluations."""
    log = trainer.state.log_history
    for name, curve in (("loss", "loss"), ("eval_loss", "validation_loss")):
        record[curve] = [[entry["step"], entry[name]] for entry in log if name in entry]
    record["evaluation_seconds"] = round(sum(entry.get("eval_runtime", 0.0) for entry in log), 3)


def _quality(model: Any, tokenizer: Any, test: Dataset, record: dict[str, Any]) -> dict[str, float]:
    """Return the test's figures: of a split with a column `kind`, each kind by itself."""
    references = [text.strip() for text in test["completion"]]
    longest = max(len(ids) for ids in tokenizer(references)["input_ids"])
    answers = metrics.generate(
        model, tokenizer, test["prompt"], max_new_tokens=longest + 8, progress=False
    )
    figures: dict[str, float] = {}
    if record["validation_loss"]:
        figures["validation loss"] = record["validation_loss"][-1][1]
        figures["perplexity"] = math.exp(figures["validation loss"])
    kinds = test["kind"] if "kind" in test.column_names else ["test"] * len(references)
    for kind in dict.fromkeys(kinds):
        places = [place for place, one in enumerate(kinds) if one == kind]
        given, right = [answers[i] for i in places], [references[i] for i in places]
        # "seen" is the test proper; other kinds are named.
        name = "" if kind in ("seen", "test") else f", {kind}"
        figures[f"exact match{name}"] = metrics.exact_match(given, right)
        if all(metrics.json_record(text) is not None for text in right):
            figures[f"fields{name}"] = float(metrics.field_accuracy(given, right).mean())
    return figures


def _process_peak() -> int | None:
    """Return the most memory that the process has had, in bytes; None where nobody counts it."""
    # On Linux getrusage tells the peak of the process that started this one, if that is higher.
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", status, flags=re.M):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Run the job that stands in the input; `runner` starts a process with this."""
    # Libraries print; only what this module reports may reach the process that reads.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    job = json.loads(sys.stdin.read())
    experiment = Experiment.from_dict(job["experiment"])
    report({"result": execute(experiment, job["seed"], Path(job["folder"]), report)})
