"""What a training that is resumed keeps of its checkpoint, whatever its trainer says.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

from course_utils.checkpoints import written_by
from preflight.findings import Finding, finding
from preflight.training_check.probing import no_trace
from preflight.training_check.report import TrainingReport

ANEW = (
    "Set it back; or begin a new training from the weights alone: load the adapter with "
    "is_trainable=True, and call train() without resume_from_checkpoint."
)
# What torch calls a setting of the optimizer, and what TrainingArguments does.
SETTINGS = {
    "initial_lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1, adam_beta2",
    "eps": "adam_epsilon",
}
# Of a config of peft: who made it and where it is used, but not what the adapter computes.
ABOUT = {one.name for one in dataclasses.fields(PeftConfig)} - {"peft_type"}


def check_resume(folder: str | Path, trainer: Trainer) -> TrainingReport:
    """Return what goes otherwise than meant when a built trainer resumes from a checkpoint.

    Settings that the checkpoint overrules, an adapter that is another one, another number of
    processes, a training that has ended. Nothing is changed, and training_args.bin, which could
    run code, is not opened.

    Raises:
        FileNotFoundError: if the folder is not a checkpoint.
        ValueError: if one of its files cannot be read.
    """
    folder = Path(folder)
    if not (folder / TRAINER_STATE_NAME).is_file():
        inside = ", ".join(
            sorted(path.parent.name for path in folder.glob(f"*/{TRAINER_STATE_NAME}"))
        )
        raise FileNotFoundError(
            f"'{folder}' is not a checkpoint: it has no {TRAINER_STATE_NAME}. Allowed is the "
            "folder of one, as a trainer saves it. "
            + (f"Name one of those in it: {inside}." if inside else "Check the path.")
        )
    state = _read(folder / TRAINER_STATE_NAME, TrainerState.load_from_json)
    groups = _groups(folder / OPTIMIZER_NAME)
    per_epoch, steps = _steps(trainer)
    findings = [*_ended(state, per_epoch, steps), *_process_findings(folder, trainer)]
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):  # they keep it elsewhere
        findings += _optimizer_findings(trainer, groups)
        if groups and state.global_step < steps:
            findings += _schedule_findings(trainer, state, groups[0], steps)
    if isinstance(trainer.model, PeftModel):
        # Adapters that are not called "default" have a folder of their own.
        name = trainer.model.active_adapter
        adapter = folder if name == "default" else folder / name
        if (adapter / SAFETENSORS_WEIGHTS_NAME).is_file():
            findings += _adapter_findings(trainer, adapter)
    about = f"{folder}: step {state.global_step:,} of {state.max_steps:,}, to go on to {steps:,}"
    return TrainingReport(about, tuple(findings))


def _read(path: Path, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(str(path))
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}). Allowed is a file as a trainer "
            "saves it. Take the checkpoint before this one."
        ) from error


def _groups(path: Path) -> list[dict[str, Any]]:
    """Return the settings of a saved optimizer, without its tensors."""
    if not path.is_file():
        return []
    # As transformers reads it: what a pickle might run is refused. On "meta" no tensor is loaded.
    load = partial(torch.load, weights_only=True, map_location="meta")
    return _read(path, lambda name: load(name)["param_groups"])


def _steps(trainer: Trainer) -> tuple[int, int]:
    """Return the steps of an epoch, 0 if rows stream, and of the whole training."""
    args = trainer.args
    loader = DataLoader(
        trainer.train_dataset,
        batch_size=args.train_batch_size * args.world_size,
        drop_last=args.dataloader_drop_last,
    )
    _, per_epoch, *_, steps = trainer.set_initial_training_values(args, loader)
    return per_epoch if has_length(loader) else 0, steps


def _ended(state: TrainerState, per_epoch: int, steps: int) -> Iterator[Finding]:
    done = state.global_step
    if done >= steps:
        yield finding(
            "ended",
            f"The training has ended: {done:,} of {steps:,} steps are made. Resumed it makes at "
            "most one more and logs a train_loss of 0.0; rows that are new are never seen.",
            "Raise num_train_epochs or max_steps; or train from the weights alone, without "
            "resume_from_checkpoint.",
        )
    elif per_epoch and state.epoch is not None and abs(state.epoch * per_epoch - done) > 1:
        yield finding(
            "position",
            f"Step {done:,} was epoch {state.epoch:.2f} of the checkpoint, and is epoch "
            f"{done / per_epoch:.2f} of these rows: there are more or fewer, or batches have "
            f"another size. As many batches as those {done:,} steps took are skipped all the same.",
            "Give the rows and the batch size of before, or train from the weights alone.",
            "warning",
        )


def _process_findings(folder: Path, trainer: Trainer) -> Iterator[Finding]:
    there, here = written_by(folder), trainer.args.world_size
    if there and there != here:
        yield finding(
            "processes",
            f"The number of processes is {here} here and {there} in the checkpoint. Each skips as "
            "many batches as before, but of another part of the rows: of a stream some are "
            + ("seen twice" if here < there else "never seen")
            + ", and an update has the rows of more or fewer processes.",
            f"Start {there}, or train from the weights alone, without resume_from_checkpoint.",
            "warning",
        )


def _optimizer_findings(trainer: Trainer, groups: list[dict[str, Any]]) -> Iterator[Finding]:
    if not groups:
        yield finding(
            "optimizer",
            f"The checkpoint has no {OPTIMIZER_NAME} (save_only_model=True leaves it out): Adam's "
            "means and the schedule of the learning rate begin anew.",
            "Resume from a checkpoint that has one, or choose a rate for a new start.",
            "warning",
        )
        return
    # Most trainers make one when they train; so a copy is asked for it.
    now = (trainer.optimizer or copy.copy(trainer).create_optimizer()).param_groups
    if len(now) != len(groups):  # torch refuses to load them, and says so
        return
    told = set()
    for here, there in zip(now, groups, strict=True):
        # A schedule writes the rate of the start next to the rate of now.
        here = {"initial_lr": here["lr"]} | here
        for key, name in SETTINGS.items():
            pair = name, here.get(key), there.get(key)
            if None in pair or pair[1] == pair[2] or pair in told:
                continue
            told.add(pair)
            yield finding(
                "kept_setting",
                f"{name} is {here[key]} here and {there[key]} in the checkpoint: resumed, the "
                f"training keeps {there[key]} and says nothing.",
                ANEW,
                "warning",
            )


def _schedule_findings(
    trainer: Trainer, state: TrainerState, group: dict[str, Any], steps: int
) -> Iterator[Finding]:
    """Yield a finding if the rates that were logged are not those of the trainer's schedule."""
    if trainer.lr_scheduler is not None or "initial_lr" not in group:
        return
    peak = group["initial_lr"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = copy.copy(trainer).create_scheduler(steps, optimizer)
    if not isinstance(schedule, LambdaLR):  # one that looks at a metric
        return
    rate = schedule.lr_lambdas[0]
    off = [
        (row["step"], row["learning_rate"], peak * rate(row["step"] - 1))
        for row in state.log_history
        if row.get("learning_rate") is not None
    ]
    off = [one for one in off if abs(one[1] - one[2]) > 0.01 * peak]
    if off:
        step, was, here = off[-1]
        done = state.global_step
        yield finding(
            "schedule",
            f"Step {step:,} was made at a rate of {was:.3g}; the schedule here has {here:.3g} for "
            "it, since lr_scheduler_type, the warmup or the number of steps is another. Resumed, "
            f"step {done + 1:,} takes {group['lr']:.3g}, and those after it "
            f"follow the new schedule from {peak * rate(done + 1):.3g} on.",
            "Right if you mean it, as for more epochs. Else set the arguments back.",
            "warning",
        )


def _adapter_findings(trainer: Trainer, folder: Path) -> Iterator[Finding]:
    saved, now = {}, trainer.model.active_peft_config
    if (folder / CONFIG_NAME).is_file():
        saved = _read(folder / CONFIG_NAME, PeftConfig.from_json_file)
    here = json.loads(json.dumps(now.to_dict(), default=_plain))
    other = [
        name
        for name, value in here.items()
        if name in saved and _plain(saved[name]) != _plain(value) and not _idle(name)
    ]
    if other:
        pairs = ", ".join(f"{name}={here[name]} (there {saved[name]})" for name in other)
        factor = _scale(here) / _scale(saved) if {"r", "lora_alpha"} <= saved.keys() else 1.0
        yield finding(
            "adapter_settings",
            f"The adapter is not the checkpoint's: {pairs}. Resumed, it gets the checkpoint's "
            "weights all the same."
            + (f" What they add counts {factor:.3g} times." if abs(factor - 1) > 1e-6 else ""),
            "Take the config of the checkpoint: PeftConfig.from_pretrained(folder).",
        )
    yield from _tensor_findings(trainer, folder / SAFETENSORS_WEIGHTS_NAME)


def _tensor_findings(trainer: Trainer, path: Path) -> Iterator[Finding]:
    model = trainer.model
    with _read(path, lambda name: safe_open(name, framework="pt")) as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    with no_trace(trainer):  # a prompt encoder is run, which may have dropout
        tensors = get_peft_model_state_dict(
            model, adapter_name=model.active_adapter, save_embedding_layers=False
        )
    here = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lost = there.keys() - here.keys() - model.state_dict().keys()
    begun = here.keys() - there.keys()
    shapes = {name for name in there.keys() & here.keys() if there[name] != here[name]}
    said = [
        f"{len(names)} {what} (such as {min(names)})"
        for names, what in (
            (lost, "have no place in this adapter and are dropped"),
            (shapes, "have another shape, which is an error at the start"),
        )
        if names
    ]
    if begun:
        said.append(f"{len(begun)} of this adapter's are not there and begin anew")
    if said:
        yield finding(
            "adapter_tensors",
            f"Of {len(there)} tensors of the checkpoint's adapter " + "; ".join(said) + ".",
            "Give the trainer the target_modules and the rank of the checkpoint.",
        )


def _plain(value: Any) -> Any:
    """Return a value of a config as JSON has it, the names of layers in order."""
    if isinstance(value, set | list | tuple):
        return sorted(value, key=str)
    return value


def _idle(name: str) -> bool:
    """Return whether a setting of an adapter changes nothing of one that is trained."""
    return name in ABOUT or "dropout" in name or name.startswith("init_")


def _scale(config: dict[str, Any]) -> float:
    """Return what LoRA multiplies its two matrices by."""
    return config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
