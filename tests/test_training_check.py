"""The checks before a training and the stop in it; book/bad_input.yaml has what they say.

Here: that sound settings pass, that a check changes nothing, and what a stopped training leaves.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CALM
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from course_utils import quantization
from course_utils.divergence import StopOnDivergence
from course_utils.paths import POCKET_MODEL
from preflight.training_check import check_settings, check_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = Dataset.from_dict({"prompt": ["the cat sat"] * 8, "completion": [" on the mat"] * 8})
LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4}


def trainer(
    folder: Path, peft_config: PeftConfig | None = None, *callbacks: Any, **arguments: Any
) -> SFTTrainer:
    """Return a trainer of the pocket model that makes three steps."""
    settings = CALM | {"max_steps": 3, "learning_rate": 1e-3, "activation_checkpointing": False}
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        args=SFTConfig(str(folder), **settings | arguments),
        train_dataset=ROWS,
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        peft_config=peft_config,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA),
        LoraConfig(**LORA | {"target_modules": "all-linear"}, lora_dropout=0.1),
        LoraConfig(**LORA | {"target_modules": r".*\.layers\.[01]\.mlp\.\w+_proj"}),
        LoraConfig(**LORA, modules_to_save=["lm_head"], lora_alpha=0.5),
        IA3Config(task_type="CAUSAL_LM"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["list", "all-linear", "pattern", "modules_to_save", "ia3", "prompt"],
)
def test_a_sound_trainer_passes(config: PeftConfig, tmp_path: Path) -> None:
    """A check that cries wolf is not read when it matters."""
    assert check_settings(trainer(tmp_path).args, config, POCKET_MODEL).findings == ()
    report = check_trainer(trainer(tmp_path, config, learning_rate=1.0))
    assert report.findings == () and report.ok
    report.require_ok()
    assert "Nothing found." in str(report) and "Nothing found." in report._repr_html_()


def test_how_much_is_trained_is_said_in_figures(tmp_path: Path) -> None:
    """A forgotten peft_config shows in the first line: everything is trained."""
    built = trainer(tmp_path, LoraConfig(**LORA))
    counts = built.model.get_nb_trainable_parameters()
    assert "trains {:,} of {:,} parameters".format(*counts) in check_trainer(built).about
    report = check_trainer(trainer(tmp_path))
    assert "(100.00%)" in report.about
    assert [(f.code, f.severity) for f in report.findings] == [("all_weights", "warning")]
    assert report.ok, "full fine-tuning is no error"


class DropRanks(TrainerCallback):
    """What AdaLoRA needs after each step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].base_model.update_and_allocate(state.global_step)


def test_both_traps_of_adalora_are_found(tmp_path: Path) -> None:
    """It trains without its callback and without its penalty, and no library says so."""
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=3)
    silent = trainer(tmp_path, copy.deepcopy(config))
    found = check_trainer(silent)
    assert [f.code for f in found.findings] == ["adalora_ranks", "adalora_penalty"]
    assert found.ok, "it trains, if not as it was meant"
    helped = trainer(tmp_path, copy.deepcopy(config), DropRanks())
    assert [f.code for f in check_trainer(helped).findings] == ["adalora_penalty"]
    plain = Trainer(
        get_peft_model(AutoModelForCausalLM.from_pretrained(POCKET_MODEL), config),
        TrainingArguments(str(tmp_path), use_cpu=True),
        callbacks=[DropRanks()],
    )
    assert check_trainer(plain).findings == ()
    no_penalty = trainer(tmp_path, dataclasses.replace(config, orth_reg_weight=0.0), DropRanks())
    assert check_trainer(no_penalty).findings == ()


def test_a_check_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    """Dropout draws random numbers: one that the check had drawn would change the result."""
    weights = []
    for check in (False, True):
        built = trainer(tmp_path, LoraConfig(**LORA, lora_dropout=0.5), StopOnDivergence())
        if check:
            check_trainer(built)
        built.train()
        weights.append({n: p for n, p in built.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_rows_without_a_label_are_named(tmp_path: Path) -> None:
    """Of a plain Trainer, which keeps such rows; SFTTrainer drops them."""
    rows = {"input_ids": [[5, 6, 7]] * 3, "labels": [[5, 6, 7], [-100] * 3, [5, -100, -100]]}
    built = Trainer(
        AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        TrainingArguments(str(tmp_path), use_cpu=True),
        train_dataset=Dataset.from_dict(rows),
    )
    found = next(f for f in check_trainer(built).findings if f.code == "no_labels")
    assert found.rows == (1, 2), "the first token of a row is never predicted"
    assert found.where() == "train: 1, 2 (2 rows)"


def test_a_pattern_that_hits_too_much_is_found() -> None:
    """It fits layers, but others than peft can adapt, too."""
    report = check_settings(None, LoraConfig(target_modules=r".*\.mlp\.\w+"), POCKET_MODEL)
    assert "SiLUActivation, which peft cannot adapt" in report.findings[0].what


def test_all_errors_are_raised_at_once() -> None:
    report = check_settings(None, LoraConfig(lora_alpha=0, lora_dropout=1.0))
    with pytest.raises(ValueError, match=r"(?s)lora_alpha is 0.*lora_dropout is 1\.0"):
        report.require_ok()


def test_a_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    """Else it goes on to its end and logs a loss of 0.0: "silent-divergence" of the errors."""
    settings = {"learning_rate": 1e9, "max_steps": 12, "logging_steps": 1, "save_steps": 1}
    settings["save_strategy"] = "steps"
    stopped = trainer(tmp_path, None, StopOnDivergence(), **settings)
    with pytest.raises(FloatingPointError, match=r"At step 2 .* learning_rate=1e\+09"):
        stopped.train()
    assert all(map(isfinite, stopped.model.parameters())), "stopped before the weights were lost"
    saved = sorted(tmp_path.glob("checkpoint-*"))
    assert [path.name for path in saved] == ["checkpoint-1"]
    assert all(map(isfinite, load_file(saved[0] / "model.safetensors").values()))


def test_what_counts_as_diverged(tmp_path: Path) -> None:
    """fp16 leaves a step out whose gradients overflow, so there the weights decide."""
    stop, state, control = StopOnDivergence(), TrainerState(), TrainerControl()
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), math.inf)
    whole = TrainingArguments(str(tmp_path), use_cpu=True)
    half = TrainingArguments(str(tmp_path), use_cpu=True, fp16=True)
    with pytest.raises(FloatingPointError, match="the norm of the gradients is inf"):
        stop.on_pre_optimizer_step(whole, state, control, model=model)
    stop.on_pre_optimizer_step(half, state, control, model=model)
    stop.on_step_end(half, state, control, model=model)
    model.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="the norm of the weights is nan"):
        stop.on_step_end(half, state, control, model=model)
    model.weight.requires_grad_(False)
    stop.on_step_end(half, state, control, model=model)
    stop.on_log(half, state, control, logs={"loss": 2.5, "grad_norm": math.inf})
    for name in ("loss", "eval_loss"):
        with pytest.raises(FloatingPointError, match=f"At step 0 {name} is nan"):
            stop.on_log(half, state, control, logs={name: math.nan})


def isfinite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_8bit": True, "llm_int8_threshold": 0.0},
        {"load_in_4bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float16},
    ],
)
def test_sound_arguments_of_a_quantization_pass(arguments: dict[str, Any]) -> None:
    assert quantization.checked_arguments(**arguments) == arguments


def test_all_that_is_wrong_with_a_quantization_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)'int4'.*'half precision'.*No width.*no quanttype"):
        quantization.checked_arguments(
            bnb_4bit_quant_type="int4", bnb_4bit_compute_dtype="half precision", quanttype="nf4"
        )
