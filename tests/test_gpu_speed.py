"""The script that measures a GPU's speed: its code runs here, its claim where a GPU is."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import gpu_memory
import gpu_speed
import pytest
import torch
from helpers import python

from course_utils.paths import COURSE_ROOT, DATA

SCRIPT = COURSE_ROOT / "benchmarks" / "gpu_speed.py"


@pytest.mark.long
def test_its_code_runs_without_a_gpu(tmp_path: Path) -> None:
    """Breaks if the script, which is rarely run, no longer fits the libraries: both recipes."""
    numbers = ["--steps", "1", "--rows", "24", "--length", "64"]
    options = ["--shape", "pocket", "--device", "cpu", *numbers, "--out", tmp_path]
    done = python(SCRIPT, *options, check=True)
    result = json.loads((tmp_path / "gpu_speed.json").read_text())
    assert [(case["method"], case["recipe"]) for case in result["cases"]] == [
        (method, recipe)
        for method in ("full", "lora", "qlora")
        for recipe in ("copied", "recommended")
    ]
    for case in result["cases"]:
        assert case["tokens_per_second"] > 0 and case["tokens"] > 0 and case["peak_bytes"] is None
    assert done.stdout.count("recommended / copied") == 3


def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of a GPU is not lost for the last case."""

    def case(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        name, method, recipe = command[-3:]
        if (method, recipe) == ("lora", "copied"):
            return subprocess.CompletedProcess(command, 1, "")
        measured = {"shape": name, "method": method, "recipe": recipe, "peak_bytes": None}
        printed = json.dumps(measured | {"tokens_per_second": 10.0})
        return subprocess.CompletedProcess(command, 0, f"a word of a library\n{printed}\n")

    monkeypatch.setattr(gpu_speed.subprocess, "run", case)
    command = ["--shape", "pocket", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_speed.main(command) == 1
    cases = json.loads((tmp_path / "gpu_speed.json").read_text())["cases"]
    assert len(cases) == 6
    assert [c["method"] for c in cases if "failed" in c] == ["lora"]
    printed = capsys.readouterr().out
    assert printed.count("recommended / copied") == 2 and printed.count("no ratio") == 1


def test_the_step_of_each_recipe_is_predicted() -> None:
    """It decides on checkpointing, and leaves out a case whose paged state could hang the GPU."""
    options = argparse.Namespace(length=2048)
    config = gpu_memory.shape("8B")
    copied, recommended = (
        gpu_speed.predicted(config, "full", recipe, options) for recipe in gpu_speed.RECIPES
    )
    parameters = 8.03e9
    assert copied.host == pytest.approx(2 * 4 * parameters, rel=0.01)  # two float32 moments
    assert copied.peak > 2 * 4 * parameters
    assert recommended.host == 0 and recommended.peak > (2 + 2 + 2) * parameters


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("Tesla T4", 65e12),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name: str, peak: float | None) -> None:
    """A share of the peak of another chip looks right and is wrong."""
    assert gpu_speed.peak(name) == peak


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_recommended_recipe_is_five_times_as_fast(tmp_path: Path) -> None:
    python(SCRIPT, "--shape", "1B", "--out", tmp_path, check=True)
    cases = json.loads((tmp_path / "gpu_speed.json").read_text())["cases"]
    assert len(cases) == 6
    assert_five_times_as_fast(cases)


def test_it_was_on_the_gpu_of_the_record() -> None:
    cases = json.loads((DATA / "results" / "gpu_speed.json").read_text())["cases"]
    of_1b = [case for case in cases if case["shape"] == "1B"]
    assert [case["method"] for case in of_1b[::2]] == list(gpu_speed.METHODS)
    assert_five_times_as_fast(of_1b)


def assert_five_times_as_fast(cases: list[dict[str, Any]]) -> None:
    for copied, recommended in zip(cases[::2], cases[1::2], strict=True):
        assert recommended["tokens_per_second"] > 5 * copied["tokens_per_second"], copied["method"]
