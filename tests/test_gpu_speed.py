"""The script that measures a GPU's speed: its code runs here, its claim where a GPU is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_utils.paths import COURSE_ROOT

SCRIPT = COURSE_ROOT / "scripts" / "gpu_speed.py"


@pytest.mark.long
def test_its_code_runs_without_a_gpu(tmp_path: Path) -> None:
    """Breaks if the script, which is rarely run, no longer fits the libraries: both recipes."""
    numbers = ["--steps", "1", "--rows", "24", "--length", "64"]
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            "--shape",
            "pocket",
            "--device",
            "cpu",
            *numbers,
            "--out",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads((tmp_path / "gpu_speed.json").read_text())
    assert [(case["method"], case["recipe"]) for case in result["cases"]] == [
        (method, recipe)
        for method in ("full", "lora", "qlora")
        for recipe in ("copied", "recommended")
    ]
    for case in result["cases"]:
        assert case["tokens_per_second"] > 0 and case["tokens"] > 0 and case["peak_bytes"] is None
    assert done.stdout.count("recommended / copied") == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_recommended_recipe_is_five_times_as_fast(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--shape", "1B", "--out", tmp_path], check=True)
    cases = json.loads((tmp_path / "gpu_speed.json").read_text())["cases"]
    for copied, recommended in zip(cases[::2], cases[1::2], strict=True):
        assert recommended["tokens_per_second"] > 5 * copied["tokens_per_second"], copied["method"]
