"""One run of a comparison, in a process of its own, from an experiment to its figures.

`main` reads a job as JSON from its input and writes JSON lines: how far it is, and at last the
result. The process that started it writes the result to disk. If that process ends, so does this
one, at the next line that it cannot write.

Used by lessons: 08.
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
from peft import PeftConfig, PeftModel, get_peft_config
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from course_utils import hardware, metrics, models, quantization
from course_utils.compare import trainers
from course_utils.compare.experiments import Experiment
from course_utils.compare.rows import COURSE_CHATS, COURSE_DATA, Rows, answer, load_rows
from course_utils.divergence import Diverged, StopOnDivergence
from course_utils.memory import MeterCallback
from course_utils.paths import located
from course_utils.tokenizer_setup import PLAIN_TEMPLATE, with_pad_token

OWN_DATA_LENGTH = 1024  # tokens of a row of the reader's own data, unless the experiment says more
# Curves of a result, by the names that trainers log them under.
CURVES = {
    "loss": "loss", "validation_loss": "eval_loss", "reward": "reward", "margin": "rewards/margins",
}  # fmt: skip
OF_ONE_TRAINER = ("reward", "margin")  # GRPO's, and DPO's
MEMORY_STEP = 2  # the first in which the optimizer has its state
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Report = Callable[[dict[str, Any]], None]


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
    return located(experiment.model) if experiment.model else models.base_model().path


def mean_length(path: str, rows: Rows) -> float:
    """Return the mean number of tokens of training rows, from the first hundred of them."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    some = rows.train.select(range(min(100, len(rows.train))))
    texts = [json.dumps([row[name] for name in rows.columns], ensure_ascii=False) for row in some]
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(texts)


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
    rows = load_rows(experiment.data).with_pairs(experiment).cut(experiment)
    model, tokenizer = _model_and_tokenizer(experiment)
    before = metrics.token_loss(model, tokenizer, rows.heldout) if rows.heldout else None

    set_seed(seed)
    sft = experiment.trainer == "sft"
    arguments = trainers.config_of(experiment, seed, str(folder))
    if sft and rows.validation is None:
        arguments.eval_strategy = "no"
    own = experiment.data not in (COURSE_DATA, COURSE_CHATS)
    if sft and own and "max_length" not in experiment.training:
        arguments.max_length = min(metrics.context_length(model), OWN_DATA_LENGTH)
    if experiment.trainer == "grpo" and "max_completion_length" not in experiment.training:
        arguments.max_completion_length = _longest_answer(rows.train, tokenizer)
    callbacks = [_ReportSteps(report), StopOnDivergence()]
    trainer = trainers.made(
        experiment, arguments, model, tokenizer, rows, peft_config(experiment), callbacks
    )
    trainer.remove_callback(PrinterCallback)
    meter = MeterCallback(MEMORY_STEP, reference=getattr(trainer, "ref_model", None))
    trainer.add_callback(meter)
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
    if sft and rows.validation is not None and trainer.state.global_step not in evaluated:
        trainer.evaluate()
        _put_curves(trainer, record)

    report({"phase": "testing"})
    record["metrics"] = _quality(trainer, rows, record)
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
    with_pad_token(tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=experiment.dtype,
        quantization_config=quantized,
        device_map={"": 0} if torch.cuda.is_available() else None,
        trust_remote_code=False,
    )
    if experiment.adapter:
        model = PeftModel.from_pretrained(model, located(experiment.adapter), is_trainable=True)
    return model, tokenizer


def _put_curves(trainer: Trainer, record: dict[str, Any]) -> None:
    """Put what a trainer has logged so far into the record: losses by step, and its evaluations."""
    log = trainer.state.log_history
    for curve, name in CURVES.items():
        points = [[entry["step"], entry[name]] for entry in log if name in entry]
        if points or curve not in OF_ONE_TRAINER:
            record[curve] = points
    record["evaluation_seconds"] = round(sum(entry.get("eval_runtime", 0.0) for entry in log), 3)


def _quality(trainer: Trainer, rows: Rows, record: dict[str, Any]) -> dict[str, float]:
    """Return the test's figures: of a split with a column `kind`, each kind by itself.

    Where the answers are JSON, the model writes its own, and they are compared. Else a right answer
    can be worded in many ways, so it is the loss on the given ones that counts, and the share of
    their tokens that the model would have written.
    """
    figures: dict[str, float] = {}
    if record["validation_loss"]:
        figures["validation loss"] = record["validation_loss"][-1][1]
        figures["perplexity"] = math.exp(figures["validation loss"])
    test, tokenizer = rows.test, trainer.processing_class
    references = [answer(row) for row in test] if "completion" in rows.columns else []
    if not references or not all(metrics.json_record(text) is not None for text in references):
        trainer.evaluate(test.select_columns(rows.columns))
        logged = trainer.state.log_history[-1]
        return figures | {
            "test loss": logged["eval_loss"], "token accuracy": logged["eval_mean_token_accuracy"]
        }  # fmt: skip
    longest = _longest_answer(test, tokenizer)
    answers = metrics.generate(
        trainer.model, tokenizer, test["prompt"], max_new_tokens=longest, progress=False
    )
    kinds = test["kind"] if "kind" in test.column_names else ["test"] * len(references)
    for kind in dict.fromkeys(kinds):
        places = [place for place, one in enumerate(kinds) if one == kind]
        given, right = [answers[i] for i in places], [references[i] for i in places]
        # "seen" is the test proper; other kinds are named.
        name = "" if kind in ("seen", "test") else f", {kind}"
        figures[f"exact match{name}"] = metrics.exact_match(given, right)
        figures[f"fields{name}"] = float(metrics.field_accuracy(given, right).mean())
    return figures


def _longest_answer(rows: Dataset, tokenizer: Any) -> int:
    """Return the tokens of the longest answer, and a few more for its end."""
    return max(len(ids) for ids in tokenizer([answer(row) for row in rows])["input_ids"]) + 8


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
