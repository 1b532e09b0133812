"""Hardware facts, and the advice that follows from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import python

from course_utils import doctor, hardware
from course_utils.hardware import Machine
from course_utils.paths import COURSE_ROOT, POCKET_MODEL

T4 = Machine("cuda", "Tesla T4", 14.6, bf16=False, capability=(7, 5), ram=12, disk=50)
A100 = Machine("cuda", "A100", 39.4, bf16=True, capability=(8, 0), ram=80, disk=100)
LAPTOP = Machine("cpu", "x86_64", 8, bf16=False, cores=4, ram=8, disk=20)


def test_detect_agrees_with_torch() -> None:
    """The table at the top of every lesson is about this machine."""
    import torch

    machine = hardware.detect()
    assert machine.device == ("cuda" if torch.cuda.is_available() else machine.device)
    assert machine.ram > 0.5
    assert machine.disk > 0
    assert machine.problem == ""


@pytest.mark.parametrize(
    "machine, dtype, optimizer, quantization",
    [
        (T4, "float16", "paged_adamw_8bit", "4-bit NF4"),
        (A100, "bfloat16", "adamw_torch_fused", "none up to 8B"),
        (LAPTOP, "float32", "adamw_torch", "none"),
    ],
    ids=["T4", "A100", "laptop"],
)
def test_advice_fits_the_machine(
    machine: Machine, dtype: str, optimizer: str, quantization: str
) -> None:
    """A T4 told to use bfloat16 runs it emulated; a laptop told to quantize only gets slower."""
    advice = hardware.recommend(machine)
    assert advice["dtype"] == dtype
    assert advice["optimizer"] == optimizer
    assert advice["quantization"] == quantization
    assert all(len(reason) > 20 for _, _, reason in advice.choices)
    with pytest.raises(KeyError, match=r"'dtyp'.*Allowed are dtype, optimizer, quantization"):
        advice["dtyp"]


@pytest.mark.parametrize(
    "name, capability, expected", [("T4", (7, 5), False), ("L4", (8, 9), True)]
)
def test_bf16_on_a_gpu_is_decided_by_its_capability(
    name: str, capability: tuple[int, int], expected: bool
) -> None:
    """torch.cuda.is_bf16_supported() says yes on a T4, since emulation counts there."""
    from types import SimpleNamespace

    properties = SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], total_memory=16 * 2**30
    )
    torch = SimpleNamespace(
        cuda=SimpleNamespace(get_device_properties=lambda index: properties, device_count=lambda: 2)
    )
    machine = hardware._cuda(torch, {})
    assert machine.bf16 is expected
    assert machine.memory == 16
    assert machine.gpus == 2


@pytest.mark.parametrize(
    "variable, place",
    [
        ("COLAB_RELEASE_TAG", "Colab"),
        ("KAGGLE_KERNEL_RUN_TYPE", "Kaggle"),
        ("BINDER_SERVICE_HOST", "Binder"),
    ],
)
def test_the_place_is_recognised(
    monkeypatch: pytest.MonkeyPatch, variable: str, place: str
) -> None:
    """Colab and Kaggle need other advice than a laptop."""
    for other in hardware.PLACES:
        monkeypatch.delenv(other, raising=False)
    # The key of Kaggle's command line is set on many a laptop.
    monkeypatch.setenv("KAGGLE_KEY", "1")
    assert hardware.detect().place == "local"
    monkeypatch.setenv(variable, "1")
    assert hardware.detect().place == place


@pytest.mark.parametrize("written, limited", [(str(2**30), True), ("max", False)])
def test_a_containers_limit_counts_as_its_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, limited: bool
) -> None:
    """Binder gives 2 GiB of a host that reports 100: a kernel that trusts the host is killed."""
    file = tmp_path / "memory.max"
    file.write_text(written + "\n")
    monkeypatch.setattr(hardware, "CONTAINER_LIMITS", (str(file), str(tmp_path / "absent")))
    assert (hardware.detect().ram == 1.0) is limited


@pytest.mark.parametrize("message", ["libtorch.so: undefined symbol", ""])
def test_a_broken_torch_is_a_fail_line_and_no_traceback(message: str) -> None:
    """The doctor is called when things are broken, so it must survive them."""
    code = "import sys\nclass Broken:\n    def find_spec(self, name, *rest):\n"
    code += f"        if name == 'torch': raise ImportError({message!r})\n"
    code += "sys.meta_path.insert(0, Broken())\n"
    code += "from course_utils.__main__ import main; sys.exit(main(['doctor']))"
    done = python("-c", code)
    assert done.returncode == 1
    assert f"FAIL  device: torch cannot be used: ImportError: {message}".strip() in done.stdout
    assert "fix: pip install" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_diagnosis_holds_no_path() -> None:
    """Outputs are committed."""
    assert str(COURSE_ROOT) not in str(doctor.examine())


@pytest.mark.parametrize(
    ("name", "version", "status", "fix"),
    [
        # Colab's makes peft refuse every adapter, with a message about versions only.
        ("torchao", "0.10.0", "FAIL", "pip uninstall torchao"),
        ("trl", "9.9.9", "WARN", ""),  # was never tested
        # What the lessons import at the top is essential.
        ("peft", None, "FAIL", "requirements.txt"),
        ("bitsandbytes", None, "FAIL", "requirements.txt"),
        ("matplotlib", None, "FAIL", "requirements.txt"),
    ],
)
def test_a_library_of_another_version_or_none(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, status: str, fix: str
) -> None:
    """The doctor says which it is, and the command that helps."""
    real = doctor.metadata.version

    def installed(asked: str) -> str:
        if asked == name and version is None:
            raise doctor.metadata.PackageNotFoundError(asked)
        return version if asked == name else real(asked)

    monkeypatch.setattr(doctor.metadata, "version", installed)
    diagnosis = doctor.examine()
    (check,) = [check for check in diagnosis.checks if check.name == name]
    assert check.status == status and fix in check.fix
    assert diagnosis.ok == (status != "FAIL")


@pytest.mark.parametrize("gpus", [1, 2])
def test_several_gpus_are_warned_of(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """On Kaggle's two T4s SFTTrainer refuses to train, and Trainer takes twice the batch."""
    machine = replace(T4, gpus=gpus)
    monkeypatch.setattr(doctor, "detect", lambda: machine)
    diagnosis = doctor.examine()
    found = [check for check in diagnosis.checks if check.name == "GPUs"]
    assert [check.status for check in found] == ["WARN"] * (gpus - 1)
    assert all("CUDA_VISIBLE_DEVICES=0" in check.fix for check in found)
    assert ("2, of which" in str(machine)) is (gpus == 2)


def test_a_clone_without_weights_fails(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A clone that left the weights out stops with a fix, not in the middle of a lesson."""
    monkeypatch.setattr(doctor, "POCKET_MODEL", COURSE_ROOT / "data" / "models" / "absent")
    (check,) = [c for c in doctor.examine().checks if c.name == "course files"]
    assert check.status == "FAIL"
    assert "git checkout" in check.fix


def test_the_doctor_reads_the_chosen_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tokenizer that two versions of transformers read differently trains another model."""
    shutil.copytree(POCKET_MODEL, tmp_path / "own")
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path / "own"))

    def checked() -> doctor.Check:
        (check,) = [c for c in doctor.examine().checks if c.name == "model"]
        return check

    assert (checked().status, checked().detail) == ("OK", "own, a vocabulary of 3,072 tokens")
    file = tmp_path / "own" / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    config |= {"tokenizer_class": "LlamaTokenizerFast", "bos_token": config["eos_token"]}
    file.write_text(json.dumps(config), "utf-8")
    assert checked().status == "WARN" and "add_bos_token True" in checked().detail
    file.write_text("{", "utf-8")
    assert checked().status == "FAIL" and "unset it" in checked().fix
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path / "absent"))
    assert checked().status == "FAIL" and "does not exist" in checked().detail
