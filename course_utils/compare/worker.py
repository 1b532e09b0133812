"""One run of a comparison, in a process of its own: ``python -m course_utils.compare.worker``.

It reads a job as JSON from its input and writes JSON lines: how far it is, and at last the result.
The process that started it writes the result to disk. If that process ends, so does this one, at
the next line that it cannot write.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import SFTTrainer

from course_utils import hardware, metrics
from course_utils.compare import build
from course_utils.compare.experiment import Experiment
from course_utils.compare.inputs import Inputs, load_inputs
from course_utils.memory import MeterCallback

MEMORY_STEP = 2  # the first in which the optimizer has its state
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Report = Callable[[dict[str, Any]], None]


class Diverged(RuntimeError):
    """A loss or a gradient that is not a finite number."""


class Watch(TrainerCallback):
    """Keeps the curves, tells how far the training is, and ends it if it diverges."""

    def __init__(self, report: Report, record: dict[str, Any]) -> None:
        self.report = report
        self.record = record
        record["loss"], record["validation_loss"] = [], []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.report({"step": state.global_step, "steps": state.max_steps})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for key, curve in (("loss", "loss"), ("eval_loss", "validation_loss")):
            if key in (logs or {}):
                self.record[curve].append([state.global_step, logs[key]])
        for key in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(key, 0.0)
            if not math.isfinite(value):
                raise Diverged(
                    f"{key} is {value} at step {state.global_step}. The learning rate is "
                    f"{args.learning_rate:g}: a lower one is the first thing to try."
                )


class TimedTrainer(SFTTrainer):
    """SFTTrainer that keeps apart how long it evaluates."""

    evaluation_seconds = 0.0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        figures = super().evaluate(*args, **kwargs)
        self.evaluation_seconds += time.perf_counter() - started
        return figures


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


def _run(
    experiment: Experiment, seed: int, folder: Path, report: Report, record: dict[str, Any]
) -> None:
    """Train and measure; what is known is put into `record` as soon as it is."""
    report({"phase": "loading"})
    inputs = load_inputs(experiment)
    quantization = build.quantization_config(experiment)
    if quantization is not None:
        hardware.fix_bitsandbytes()
    path = build.model_path(experiment)
    cuda = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token is None:  # as SFTTrainer does, but a batch is padded before it is made
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=experiment.dtype,
        quantization_config=quantization,
        device_map={"": 0} if cuda else None,
        trust_remote_code=False,
    )
    before = metrics.token_loss(model, tokenizer, inputs.heldout) if inputs.heldout else None

    set_seed(seed)
    arguments = build.sft_config(experiment, seed, str(folder))
    if inputs.validation is None:
        arguments.eval_strategy = "no"
    meter = MeterCallback(MEMORY_STEP)
    trainer = TimedTrainer(
        model=model,
        args=arguments,
        train_dataset=_text_columns(inputs.train),
        eval_dataset=None if inputs.validation is None else _text_columns(inputs.validation),
        processing_class=tokenizer,
        peft_config=build.peft_config(experiment),
        callbacks=[Watch(report, record), meter],
    )
    trainer.remove_callback(PrinterCallback)
    tuned = trainer.model
    record["trainable_parameters"] = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    report({"phase": "training"})
    started = time.perf_counter()
    state = trainer.train()
    seconds = time.perf_counter() - started - trainer.evaluation_seconds
    tokens = int(trainer.state.num_input_tokens_seen)
    record.update(
        steps=state.global_step,
        training_seconds=round(seconds, 3),
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1),
        memory=meter.memory.to_dict() if meter.memory else None,
        process_peak_bytes=_process_peak(),
    )
    if inputs.validation is not None and not _evaluated(record, state.global_step):
        trainer.evaluate()
    record["evaluation_seconds"] = round(trainer.evaluation_seconds, 3)

    report({"phase": "testing"})
    record["metrics"] = _quality(tuned, tokenizer, inputs, record)
    if before is not None:
        after = metrics.token_loss(tuned, tokenizer, inputs.heldout)
        record["forgetting"] = {"before": before, "after": after, "rise": after - before}
    trainer.save_model(str(folder / "saved"))
    weights = (folder / "saved").glob("*.safetensors")
    record["checkpoint_bytes"] = sum(file.stat().st_size for file in weights)


def _text_columns(rows: Dataset) -> Dataset:
    return rows.select_columns(["prompt", "completion"])


def _evaluated(record: dict[str, Any], step: int) -> bool:
    return bool(record["validation_loss"]) and record["validation_loss"][-1][0] == step


def _quality(
    model: Any, tokenizer: Any, inputs: Inputs, record: dict[str, Any]
) -> dict[str, float]:
    """Return the test's figures: of a split with a column `kind`, each kind by itself."""
    references = [text.strip() for text in inputs.test["completion"]]
    longest = max(len(ids) for ids in tokenizer(references)["input_ids"])
    answers = metrics.generate(
        model, tokenizer, inputs.test["prompt"], max_new_tokens=longest + 8, progress=False
    )
    figures: dict[str, float] = {}
    if record["validation_loss"]:
        figures["validation loss"] = record["validation_loss"][-1][1]
        figures["perplexity"] = math.exp(figures["validation loss"])
    has_kinds = "kind" in inputs.test.column_names
    kinds = inputs.test["kind"] if has_kinds else ["test"] * len(references)
    for kind in dict.fromkeys(kinds):
        chosen = [i for i, one in enumerate(kinds) if one == kind]
        said, right = [answers[i] for i in chosen], [references[i] for i in chosen]
        # "seen" is the test proper; other kinds are named.
        name = "" if kind in ("seen", "test") else f", {kind}"
        figures[f"exact match{name}"] = metrics.exact_match(said, right)
        if all(metrics.json_record(text) is not None for text in right):
            figures[f"fields{name}"] = float(metrics.field_accuracy(said, right).mean())
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
    # Libraries print; only what this module reports may reach the process that reads.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    job = json.loads(sys.stdin.read())
    experiment = Experiment.from_dict(job["experiment"])
    result = execute(experiment, job["seed"], Path(job["folder"]), report)
    report({"result": result})


if __name__ == "__main__":
    main()
