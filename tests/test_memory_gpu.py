"""The script that measures GPUs; its code runs here on the CPU, its claim where a GPU is."""

from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path
from typing import Any

import gpu_memory
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from course_utils.paths import DATA

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a machine without a GPU gives a traceback, or a result that looks like a GPU's."""
    assert gpu_memory.main(["headline", "--out", str(tmp_path)]) == 2
    assert "No CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_its_code_runs_without_a_gpu(tmp_path: Path) -> None:
    """Breaks if the script, which is rarely run, no longer fits the libraries: weights quantized
    layer by layer, a step of SFTTrainer, and a result that can be read."""
    options = ["--shape", "pocket", "--device", "cpu", "--length", "32", "--out", str(tmp_path)]
    assert gpu_memory.main(["headline", *options]) == 0
    result = json.loads((tmp_path / "gpu_memory_headline.json").read_text())
    assert result["schema"] == 1
    assert result["device"].startswith("cpu")
    assert set(gpu_memory.LIBRARIES) == set(result["versions"])
    (row,) = result["cases"]
    assert (row["method"], row["gradient_checkpointing"]) == ("qlora", True)
    assert row["ratio"] == pytest.approx(1, rel=0.001)
    assert "GiB" in gpu_memory.describe(row)


def test_the_unquantized_methods_run_too() -> None:
    """Breaks if the comparison's other half fails once it is on a GPU: full fine-tuning, LoRA."""
    options = argparse.Namespace(
        device="cpu", batch_size=2, length=32, gradient_checkpointing=False
    )
    for method in ("full", "lora"):
        assert gpu_memory.case("pocket", method, options)["ratio"] == pytest.approx(1, rel=0.001)


def test_a_case_that_memory_does_not_suffice_for_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next case would be predicted and run under the meter of this one, with its model."""
    made = []

    class Short(gpu_memory.SFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            made.append(weakref.ref(self.model))
            if self.state.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(gpu_memory, "SFTTrainer", Short)
    options = argparse.Namespace(
        device="cpu", batch_size=1, length=32, gradient_checkpointing=False
    )
    row = gpu_memory.case("pocket", "lora", options)
    assert row["out_of_memory"] == "CUDA out of memory"
    assert not _get_current_dispatch_mode_stack()
    assert len(made) == 2 and made[0]() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_gpu_allocates_what_was_predicted(method: str, checkpointing: bool) -> None:
    """Breaks if the prediction and `torch.cuda.max_memory_allocated` part by more than 5% on a 1B
    shape; data/results has the 8B shape."""
    options = argparse.Namespace(
        device="cuda", batch_size=1, length=1024, gradient_checkpointing=checkpointing
    )
    row = gpu_memory.case("1B", method, options)
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert row["ratio"] == pytest.approx(1, rel=0.05)


@pytest.mark.long
def test_the_record_is_of_this_prediction() -> None:
    """Breaks if the prediction has changed since it was held against a GPU: measure again, then."""
    names = ("gpu_memory_compare.json", "gpu_memory_headline.json")
    cases = [c for n in names for c in json.loads((DATA / "results" / n).read_text())["cases"]]
    assert {(case["shape"], case["method"]) for case in cases} == {
        *((name, method) for name in ("1B", "8B") for method in ("full", "lora", "qlora")),
        ("70B", "qlora"),
    }
    for case in cases:
        plan = {key: case[key] for key in ("gradient_checkpointing", "batch_size", "length")}
        options = argparse.Namespace(**plan, device="cuda")
        guess = gpu_memory.predicted(gpu_memory.shape(case["shape"]), case["method"], options)
        assert guess.peak == pytest.approx(case["predicted"]["peak"], rel=0.001)
        assert case["ratio"] == pytest.approx(1, rel=0.06)
        assert case["predicted"]["settings"]["model"] == case["shape"], "a path of a machine?"
