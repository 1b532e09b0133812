"""A training process that is killed and resumed ends with the same bits as one that was not.

The script is the one that lesson 06 writes. The lesson itself kills it once and resumes it to the
same bits; its deeper notebook starts it again without `resume`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import KILLS
from safetensors.torch import load_file
from transformers import TrainerState

from course_utils.paths import COURSE_ROOT

LESSON = COURSE_ROOT / "notebooks" / "06_training_arguments.ipynb"
LAST = "checkpoint-12"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="to the bit on a CPU alone")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lesson's own training script."""
    sources = [cell.source for cell in nbformat.read(LESSON, as_version=4).cells]
    (cell,) = [source for source in sources if source.startswith("%%writefile runs/06/train.py\n")]
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(cell.partition("\n")[2], encoding="utf-8")
    return path


def start(script: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the script in a process of its own."""
    variables = {"PYTHONPATH": str(COURSE_ROOT), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | variables,
    )  # fmt: skip


def train(script: Path, folder: Path, *more: str) -> list[int]:
    """Run the script in a process; return the steps that it printed."""
    process = start(script, folder, *more)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return [int(line.split()[1]) for line in printed.splitlines() if line.startswith("step ")]


def outcome(script: Path, folder: Path) -> dict[str, object]:
    """Return all that a training ended with: weights, optimizer, schedule and logged losses.

    The optimizer's state is read as a trainer reads it: a copy is resumed by the script. Trainer
    makes a step more even where `max_steps` is reached, so what is compared is the state after it,
    in which all that was loaded plays a part, the random numbers too.
    """
    last = folder / LAST
    history = TrainerState.load_from_json(str(last / "trainer_state.json")).log_history
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        shutil.copytree(last, Path(place) / LAST)
        patch.setattr(sys, "argv", [str(script), place, "resume"])
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = runpy.run_path(str(script))["trainer"]
    return {
        "weights": load_file(last / "adapter_model.safetensors"),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "schedule": trainer.lr_scheduler.state_dict(),
        "losses": [(row["step"], row["loss"]) for row in history if "loss" in row],
    }


def same(a: object, b: object) -> bool:
    """Return whether two results are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def assert_same_outcome(script: Path, whole: Path, other: Path) -> None:
    expected, found = outcome(script, whole), outcome(script, other)
    assert len(expected["losses"]) == 12 and len(expected["optimizer"]) > 20
    for name, value in expected.items():
        assert same(value, found[name]), name


@pytest.fixture(scope="module")
def whole(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(script, folder) == list(range(1, 13))
    return folder


def test_without_the_state_of_the_random_numbers_it_does_not(script, whole, tmp_path) -> None:
    """The comparison can fail: dropout draws other numbers, and other weights come of it."""
    shutil.copytree(whole / "checkpoint-8", tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-8" / "rng_state.pth").unlink()
    assert train(script, tmp_path, "resume") == [9, 10, 11, 12]
    undisturbed, other = outcome(script, whole), outcome(script, tmp_path)
    assert undisturbed["losses"][:8] == other["losses"][:8]
    for name in ("weights", "optimizer"):
        assert not same(undisturbed[name], other[name])


@pytest.mark.long
def test_killed_at_random_moments(script, whole, tmp_path, rng) -> None:
    """Wherever it is, half of the times while it saves: it resumes to the same bits.

    What a kill left that is not whole is refused before a step is made from it; it is removed then,
    as the lesson says, and the checkpoint before is taken.
    """
    kills = refused = trainings = 0
    limit = 30.0  # seconds in which to kill; shorter where a whole training is
    while kills < KILLS:
        trainings += 1
        folder = tmp_path / str(trainings)
        ended = False
        while not ended:
            checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
            process = start(script, folder, *(["resume"] if checkpoints else []))
            began = time.monotonic()
            if kills < KILLS and rng.random() < 0.5:  # while it saves, after every fourth step
                printed = until(process, f"step {rng.choice((4, 8, 12))}\n")
                time.sleep(rng.uniform(0, 0.15))
                process.kill()
            elif kills < KILLS:
                time.sleep(rng.uniform(0, limit))
                process.kill()
                printed = ""
            else:
                printed = ""
            printed += process.communicate()[0]
            if process.returncode == 0:
                ended, limit = True, min(limit, time.monotonic() - began)
            elif process.returncode == -9:
                kills += 1
                ended = saved(folder / LAST)  # resumed, it would make a step too many
            else:
                assert checkpoints and "step" not in printed, printed
                shutil.rmtree(checkpoints[-1])
                refused += 1
        assert_same_outcome(script, whole, folder)
    print(f"{kills} kills, {trainings} trainings, {refused} checkpoints that were not whole")


def saved(checkpoint: Path) -> bool:
    """Return whether a checkpoint is whole: the state of the trainer is written last."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] > 0
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def until(process: subprocess.Popen[str], wanted: str) -> str:
    """Return what a process prints up to a line, or to its end."""
    printed = ""
    for line in process.stdout:
        printed += line
        if line == wanted:
            break
    return printed
