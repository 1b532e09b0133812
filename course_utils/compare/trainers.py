"""The trainer of a run: SFTTrainer, DPOTrainer or GRPOTrainer, with its arguments and rewards.

Used by lessons: 08.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from course_utils import hardware, metrics
from course_utils.compare.experiments import Experiment
from course_utils.compare.rows import Rows, answer, text_of
from course_utils.paths import located

# Arguments for every run, unless its experiment says otherwise.
TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "activation_checkpointing": False,
    "logging_steps": 5,
}
# What else a trainer gets: SFT alone has a validation loss.
MORE: dict[str, dict[str, Any]] = {
    "sft": {
        "max_length": 320,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "steps",
        "eval_steps": 0.25,
    },
    "dpo": {"max_length": None},
    "grpo": {},
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
Reward = Callable[..., list[float]]


def config_of(experiment: Experiment, seed: int = 0, folder: str = "unused") -> TrainingArguments:
    """Return the training arguments of one run."""
    cuda = torch.cuda.is_available()
    device = {"use_cpu": not cuda, "bf16": cuda and hardware.detect().bf16}
    kind, own = SFTConfig, {**OWN, "output_dir": folder, "seed": seed}
    if experiment.trainer == "dpo":
        from trl import DPOConfig as kind
    elif experiment.trainer == "grpo":
        from trl import GRPOConfig as kind

        own["include_num_input_tokens_seen"] = "no"  # GRPOTrainer counts them itself
    arguments = {**TRAINING, **MORE[experiment.trainer], **device, **experiment.training, **own}
    return kind(**arguments)


def made(
    experiment: Experiment,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Rows,
    peft_config: PeftConfig | None,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """Return the trainer of a run, ready to train."""
    shared = {
        "model": model, "args": arguments, "processing_class": tokenizer,
        "peft_config": peft_config, "callbacks": list(callbacks),
    }  # fmt: skip
    if experiment.trainer == "dpo":
        from trl import DPOTrainer

        return DPOTrainer(train_dataset=rows.train, **shared)
    if experiment.trainer == "grpo":
        from trl import GRPOTrainer

        # The answer goes to the rewards, as `completion` is what the model writes.
        prompts = rows.train.select_columns("prompt").add_column(
            "answer", [answer(row) for row in rows.train]
        )
        return GRPOTrainer(
            reward_funcs=rewards(experiment.rewards), train_dataset=prompts, **shared
        )
    return SFTTrainer(
        train_dataset=rows.train.select_columns(rows.columns),
        eval_dataset=rows.validation and rows.validation.select_columns(rows.columns),
        **shared,
    )


def valid_json(completions: list[Any], **columns: Any) -> list[float]:
    """Return 1 for each completion that is a JSON record, whatever it says; else 0."""
    return [float(metrics.json_record(text_of(one)) is not None) for one in completions]


def exact(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """Return 1 for each completion that is the right answer; else 0."""
    pairs = zip(completions, answer, strict=True)
    return [float(text_of(one).strip() == right.strip()) for one, right in pairs]


REWARDS: dict[str, Reward] = {"valid_json": valid_json, "exact": exact}


def rewards(names: Iterable[str]) -> list[Reward]:
    """Return reward functions by their names, or as "module:function".

    Raises:
        ValueError: if there is no such function.
    """
    return [REWARDS[name] if name in REWARDS else _imported(name) for name in names]


def reward_files(names: Iterable[str]) -> dict[str, Path]:
    """Return the source files of the reader's own reward functions, by their names."""
    return {name: Path(inspect.getfile(_imported(name))) for name in names if name not in REWARDS}


def require_records(experiment: Experiment, rows: Rows) -> None:
    """Raise ValueError if answers are no JSON records where a trainer has no other test."""
    if experiment.trainer == "sft":
        return
    answers = [answer(row) for row in rows.test] if "completion" in rows.columns else []
    if not answers or any(metrics.json_record(text) is None for text in answers):
        raise ValueError(
            f"the test's answers are no JSON records. {experiment.trainer} has no loss to be "
            "tested by, so the answers that the model writes are compared. Give such rows, or "
            "train by sft."
        )


def require_adapter(experiment: Experiment) -> None:
    """Raise FileNotFoundError if the adapter to start from is no adapter's folder."""
    if not experiment.adapter:
        return
    folder = Path(located(experiment.adapter))
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"'{experiment.adapter}' has no adapter_config.json. Allowed is a folder that "
            "trainer.save_model wrote with a peft_config. Correct the path."
        )


def _imported(name: str) -> Reward:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"there is no reward {name!r} ({error}). Allowed are {', '.join(REWARDS)}, or a "
            "function of your own as module:function, where Python finds the module. Correct it."
        ) from error
    if not callable(found):
        raise ValueError(f"the reward {name!r} is no function. Name a function of the module.")
    return found
