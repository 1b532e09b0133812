"""From an experiment's plain data to the objects of the libraries, checked before anything runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_config
from transformers import BitsAndBytesConfig
from trl import SFTConfig

from course_utils import hardware, models, quantization
from course_utils.compare.experiment import Experiment, require_unique
from course_utils.compare.inputs import load_inputs
from course_utils.configs import load_config
from preflight.training_check import check_settings

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
# What the comparison sets itself: a seed per run, a folder that is thrown away, nothing hidden.
OWN = (
    "output_dir", "seed", "data_seed", "report_to", "disable_tqdm", "save_strategy",
    "include_num_input_tokens_seen", "logging_nan_inf_filter",
)  # fmt: skip


def sft_config(experiment: Experiment, seed: int, folder: str) -> SFTConfig:
    """Return the training arguments of one run."""
    cuda = torch.cuda.is_available()
    device = {"use_cpu": not cuda, "bf16": cuda and hardware.detect().bf16}
    return SFTConfig(
        **{**TRAINING, **device, **experiment.training},
        output_dir=folder,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        include_num_input_tokens_seen="non_padding",
        logging_nan_inf_filter=False,  # a loss that is not a number has to be seen
    )


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


def require_valid(experiments: Sequence[Experiment]) -> None:
    """Raise ValueError with all that is wrong with experiments, before anything is trained."""
    if not experiments:
        raise ValueError("There is no experiment. Give a list of one or more.")
    require_unique(experiments)
    wrong = [f"- {e.name}: {problem}" for e in experiments for problem in _problems(e)]
    if wrong:
        raise ValueError(
            "These experiments cannot run as they are:\n" + "\n".join(wrong) + "\nNothing was run. "
            "Correct them and start again."
        )


def _problems(experiment: Experiment) -> list[str]:
    """Return what is wrong with one experiment, in the words of the library that refuses it."""
    problems = []
    own = [key for key in experiment.training if key in OWN]
    if own:
        problems.append(f"training: {', '.join(own)} cannot be set, a comparison sets it itself")
    # transformers takes the old names only where the new ones are not set, as TRAINING sets one.
    old = [key for key in experiment.training if key.startswith("gradient_checkpointing")]
    new = [key.replace("gradient", "activation") for key in old]
    if old:
        problems.append(f"training: {', '.join(old)} has another name, write {', '.join(new)}")
    kind = (experiment.peft or {}).get("peft_type", "LORA")
    if kind not in PeftType.__members__:
        problems.append(f"peft: there is no peft_type {kind!r}, there is {_listed(PeftType)}")
    elif experiment.peft is not None and "peft_type" not in experiment.peft:
        problems.append('peft: peft_type is missing, such as "LORA"')
    if experiment.quantization is not None and experiment.peft is None:
        problems.append("quantization: quantized weights cannot be trained, so peft is required")
    if problems:
        return problems
    model = load_config(model_path(experiment))
    for part, build in (
        ("training", lambda: check_settings(sft_config(experiment, 0, "unused")).require_ok()),
        ("peft", lambda: check_settings(None, peft_config(experiment), model).require_ok()),
        ("quantization", lambda: quantization_config(experiment)),
        ("data", lambda: load_inputs(experiment)),
    ):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                build()
        except Exception as error:  # whatever a library raises for it is the answer
            said = " ".join(str(error).split())
            problems.append(f"{part}: {said[:400] or type(error).__name__}")
    return problems


def _listed(names: Any) -> str:
    return ", ".join(getattr(name, "name", name) for name in names)
