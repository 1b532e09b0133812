"""Two processes killed while they save: what is half-written is never gone on from.

Lesson 10's deeper notebook kills one of them between two checkpoints; here both are killed, as by
a machine that is switched off, as soon as a checkpoint begins to appear on the disk.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import KILLS, QUIET
from safetensors.torch import load_file

from course_utils.checkpoints import last_whole
from course_utils.paths import COURSE_ROOT

STEPS = 8
COMMAND = (
    "-m torch.distributed.run --standalone --nproc_per_node 2 recipes/train.py --processes 2 "
    f"--resume --config recipes/recipe.yaml --use_cpu --bf16 false --max_steps {STEPS} "
    "--per_device_train_batch_size 2 --save_strategy steps --save_steps 2 --output_dir"
).split()

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(torch.cuda.is_available(), reason="to the bit on a CPU alone"),
]


def start(folder: Path, log: Path) -> psutil.Popen:
    """Start the recipe on two processes, to go on from what is in the folder."""
    variables = {"PYTHONPATH": str(COURSE_ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with log.open("a", encoding="utf-8") as file:
        return psutil.Popen(
            [sys.executable, *COMMAND, str(folder)], cwd=COURSE_ROOT / "notebooks",
            env=os.environ | QUIET | variables, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


def kill_while_it_saves(launcher: psutil.Popen, folder: Path, rng: random.Random) -> None:
    """Wait for a new checkpoint to begin, and a moment more, then kill all at once."""
    there = set(folder.glob("checkpoint-*"))
    while launcher.poll() is None and set(folder.glob("checkpoint-*")) == there:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.08))
    for one in (launcher, *launcher.children(recursive=True)):
        one.kill()
    launcher.wait()


def test_killed_while_it_saves_it_ends_with_the_same_bits(tmp_path: Path, rng) -> None:
    """A checkpoint without its last files, or with half of one, would be another training."""
    log, whole, killed = (tmp_path / name for name in ("log", "whole", "killed"))
    assert start(whole, log).wait(300) == 0, log.read_text(encoding="utf-8")
    killed.mkdir()
    for _ in range(KILLS):
        kill_while_it_saves(start(killed, log), killed, rng)
        left, taken = sorted(killed.glob("checkpoint-*")), last_whole(killed, 2)
        print([path.name for path in left], "whole:", taken and taken.name)
        if last_whole(killed, 2) == killed / f"checkpoint-{STEPS}":
            break
    assert start(killed, log).wait(300) == 0, log.read_text(encoding="utf-8")
    one, two = (
        load_file(folder / f"checkpoint-{STEPS}" / "adapter_model.safetensors")
        for folder in (whole, killed)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
