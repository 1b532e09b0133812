"""check_resume: what it says of a checkpoint and a trainer is what happens on resuming.

Seen with transformers 5.24.0 and peft 0.21.2, which say nothing of most of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CALM, everything
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from test_training_faults import PAIRS, built
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from course_utils.checkpoints import last_whole, written_by
from course_utils.paths import POCKET_MODEL
from preflight.training_check import check_resume

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2,
    "activation_checkpointing": False, "lr_scheduler_type": "constant",
}  # fmt: skip


def adapter(**options: Any) -> LoraConfig:
    targets = {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    return LoraConfig(**targets | options)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of four steps, with a checkpoint after two and four."""
    folder = tmp_path_factory.mktemp("training")
    built(folder, peft_config=adapter(), **SETTINGS).train()
    return folder


def again(folder: Path, times: int = 1, config: Any = None, **arguments: Any) -> Any:
    rows = {name: column * times for name, column in PAIRS.items()}
    return built(folder, None, rows, peft_config=config or adapter(), **SETTINGS | arguments)


def rates(trainer: Any, folder: Path) -> list[float]:
    trainer.train(resume_from_checkpoint=str(folder))
    return [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("given", "codes", "words"),
    [
        ({}, [], "Nothing found."),
        ({"learning_rate": 1e-5}, ["kept_setting"], "learning_rate is 1e-05 here and 0.001 in"),
        ({"weight_decay": 0.5}, ["kept_setting"], "keeps 0.0 and says nothing"),
        ({"adam_beta1": 0.5}, ["kept_setting"], "(0.5, 0.999) here and (0.9, 0.999) in"),
        ({"lr_scheduler_type": "linear"}, ["schedule"],
         "Step 2 was made at a rate of 0.001; the schedule here has 0.00075"),
        ({"config": adapter(lora_alpha=64)}, ["adapter_settings"],
         "lora_alpha=64 (there 8). Resumed, it gets the checkpoint's weights all the same. What "
         "they add counts 8 times."),
        ({"config": adapter(use_rslora=True)}, ["adapter_settings"], "counts 2 times"),
        ({"config": adapter(lora_dropout=0.1)}, [], "Nothing found."),
        ({"config": adapter(target_modules=["o_proj"])}, ["adapter_settings", "adapter_tensors"],
         "Of 8 tensors of the checkpoint's adapter 8 have no place in this adapter"),
        ({"config": adapter(r=8, lora_alpha=16)}, ["adapter_settings", "adapter_tensors"],
         "8 have another shape"),
        ({"max_steps": 2}, ["ended"], "2 of 2 steps are made"),
        ({"max_steps": -1, "num_train_epochs": 1}, ["ended"], "rows that are new are never seen"),
        ({"times": 4, "max_steps": 8}, ["position"],
         "epoch 1.00 of the checkpoint, and is epoch 0.25"),
    ],
)  # fmt: skip
def test_what_is_said(
    given: dict[str, Any], codes: list[str], words: str, training: Path, tmp_path: Path
) -> None:
    trainer = again(tmp_path, **given)
    files, random = everything(training), torch.get_rng_state()
    report = check_resume(training / "checkpoint-2", trainer)
    assert [one.code for one in report.findings] == codes and words in str(report)
    assert everything(training) == files and torch.equal(torch.get_rng_state(), random)
    assert trainer.optimizer is None and trainer.lr_scheduler is None


def test_it_is_what_happens(training: Path, tmp_path: Path) -> None:
    checkpoint = training / "checkpoint-2"
    plain = rates(again(tmp_path), checkpoint)
    assert plain == [1e-3] * 4
    assert rates(again(tmp_path, learning_rate=1e-5), checkpoint) == plain
    new = again(tmp_path, lr_scheduler_type="linear")
    said = str(check_resume(checkpoint, new))
    assert "step 3 takes 0.001, and those after it follow the new schedule from 0.00025" in said
    assert rates(new, checkpoint) == pytest.approx([1e-3, 1e-3, 1e-3, 2.5e-4])
    # With new rows max_steps makes one step more; with epochs none at all.
    ended = again(tmp_path, 4, max_steps=2)
    assert len(rates(ended, checkpoint)) == 3
    ended = again(tmp_path, max_steps=-1, num_train_epochs=1)
    assert len(rates(ended, checkpoint)) == 2 and ended.state.log_history[-1]["train_loss"] == 0.0


class OwnOptimizer(Trainer):
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        return self.optimizer


def plain(folder: Path, way: str) -> Trainer:
    """Return a trainer of sound settings that stand elsewhere than in its arguments."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(POCKET_MODEL), adapter())
    rows, given, kind = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 4, {}, Trainer
    settings = dict(SETTINGS)
    if way == "loraplus":
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16
        )
        given["optimizers"] = optimizer, None
    if way == "class":
        given["optimizer_cls_and_kwargs"] = torch.optim.AdamW, {"lr": 7e-3, "weight_decay": 0.3}
    if way == "subclass":
        kind = OwnOptimizer
    if way == "second adapter":
        model.add_adapter("second", adapter(r=2, target_modules=["k_proj"]))
        model.set_adapter("second")
    if way == "streams":
        rows = Dataset.from_list(rows).to_iterable_dataset()
        settings |= {"max_steps": 10, "save_steps": 5}
    return kind(
        model, TrainingArguments(str(folder), **CALM | settings), train_dataset=rows, **given
    )


@pytest.mark.parametrize("way", ["loraplus", "class", "subclass", "second adapter", "streams"])
def test_going_on_with_the_same_training_is_no_fault(way: str, tmp_path: Path) -> None:
    """Breaks if settings are taken from the arguments alone, or of an adapter that is idle."""
    plain(tmp_path, way).train()
    step = 5 if way == "streams" else 2
    new = plain(tmp_path, way)
    report = check_resume(tmp_path / f"checkpoint-{step}", new)
    assert report.findings == (), str(report)
    assert (new.optimizer is None) is (way != "loraplus"), "no optimizer was made for it"


def test_weights_of_another_layer_are_dropped(training: Path, tmp_path: Path) -> None:
    other = again(tmp_path, config=adapter(target_modules=["o_proj"]), max_steps=3)
    other.train(resume_from_checkpoint=str(training / "checkpoint-2"))
    losses = [row["loss"] for row in other.state.log_history if "loss" in row]
    assert losses[2] == pytest.approx(losses[0], abs=1e-4), "as if nothing had been learned"


def test_a_checkpoint_without_an_optimizer(training: Path, tmp_path: Path) -> None:
    shutil.copytree(training / "checkpoint-2", tmp_path / "model-only")
    (tmp_path / "model-only" / "optimizer.pt").unlink()
    report = check_resume(tmp_path / "model-only", again(tmp_path, learning_rate=1e-5))
    assert [one.code for one in report.findings] == ["optimizer"] and report.ok


def test_no_pickle_is_run(training: Path, tmp_path: Path) -> None:
    """One that makes a folder if it is loaded is refused, or not opened."""
    copied, trace = tmp_path / "checkpoint-2", tmp_path / "trace"
    shutil.copytree(training / "checkpoint-2", copied)
    makes_a_folder = f"cos\nmkdir\n(V{trace}\ntR.".encode()
    (copied / "training_args.bin").write_bytes(makes_a_folder)
    assert check_resume(copied, again(tmp_path)).findings == ()
    (copied / "optimizer.pt").write_bytes(makes_a_folder)
    with pytest.raises(ValueError, match=r"optimizer\.pt' cannot be read"):
        check_resume(copied, again(tmp_path))
    assert not trace.exists()


def test_what_is_no_checkpoint(training: Path, tmp_path: Path) -> None:
    trainer = again(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Name one of those .* checkpoint-2, checkpoint-4"):
        check_resume(training, trainer)
    with pytest.raises(FileNotFoundError, match="Check the path"):
        check_resume(tmp_path / "nowhere", trainer)
    shutil.copytree(training / "checkpoint-2", tmp_path / "cut")
    for name in ("trainer_state.json", "adapter_model.safetensors"):
        file = tmp_path / "cut" / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            check_resume(tmp_path / "cut", trainer)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("processes", "words"), [(1, "Nothing found."), (2, "1 here and 2 in the checkpoint")]
)
def test_another_number_of_processes_is_told(processes, words, training, tmp_path) -> None:
    """Each process would skip as many batches of another part of the rows."""
    folder = shutil.copytree(training / "checkpoint-2", tmp_path / "checkpoint-2")
    if processes > 1:
        state = (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
        shutil.copy(state, folder / "rng_state_1.pth")
    assert words in str(check_resume(folder, again(tmp_path)))


def test_half_a_checkpoint_is_not_taken_for_whole(training, tmp_path) -> None:
    """Killed while it saves, a training leaves a folder that lacks its last files, or half of one.

    transformers takes the folder of the highest number all the same.
    """
    folder = shutil.copytree(training, tmp_path / "out")
    last, before = folder / "checkpoint-4", folder / "checkpoint-2"
    assert last_whole(folder) == last and last_whole(tmp_path) is None
    assert last_whole(folder, processes=2) is None, "the second one's random numbers are not there"
    state = last / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    assert last_whole(folder) == before and get_last_checkpoint(folder) == str(last)
    state.unlink()
    assert last_whole(folder) == before
    (before / "rng_state.pth").unlink()
    assert last_whole(folder) is None and written_by(before) == 0
