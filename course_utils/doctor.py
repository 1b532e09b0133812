"""The doctor: is this machine ready for the lessons? One line a check, with the fix.

Used by lessons: all.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from importlib import metadata
from pathlib import Path

from packaging.version import InvalidVersion, Version

from course_utils.hardware import Machine, detect, recommend, runtime_requirements
from course_utils.paths import COURSE_ROOT, DATA, POCKET_MODEL

INSTALL = "pip install -r requirements.txt -c constraints.txt"
# Without one of these most lessons stop at their imports; the others are needed here and there.
ESSENTIAL = {
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "pandas", "numpy",
    "bitsandbytes", "matplotlib",
}  # fmt: skip
TORCHAO_MINIMUM = Version("0.16")  # below it, peft refuses to make any adapter
RAM_NEEDED, DISK_NEEDED = 3, 2  # GiB, for the pocket model


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: `status` is "OK", "WARN" or "FAIL"; `fix` says what to do."""

    name: str
    status: str
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<5} {self.name}: {self.detail}"
        return f"{line}\n      fix: {self.fix}" if self.fix else line


@dataclass(frozen=True)
class Diagnosis:
    """All checks and the machine; `ok` is False if one of them failed."""

    machine: Machine
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.status != "FAIL" for check in self.checks)

    def __str__(self) -> str:
        lines = [*map(str, self.checks), "", str(self.machine), "", str(recommend(self.machine))]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lines = "\n".join(map(str, self.checks))
        return f"<pre>{escape(lines)}</pre>{self.machine._repr_html_()}"

    def to_json(self) -> str:
        """Return everything as JSON."""
        data = {
            "ok": self.ok,
            "checks": [asdict(check) for check in self.checks],
            "machine": self.machine.to_dict(),
            "recommendation": [list(row) for row in recommend(self.machine).choices],
        }
        return json.dumps(data, indent=2)


def examine() -> Diagnosis:
    """Return the diagnosis of this machine. Nothing is raised: what is broken is a FAIL line."""
    machine = detect()
    checks = [_python(), *_libraries(), *_torchao(), _device(machine), *_gpus(machine)]
    checks += [*_four_bit(machine), *_resources(machine), *_files(), *_folder(), *_model()]
    return Diagnosis(machine, tuple(checks))


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 (somebody may run an older one all the same)
        return Check("Python", "FAIL", found, "install Python 3.11 or newer")
    return Check("Python", "OK", found)


def _libraries() -> Iterator[Check]:
    for requirement in runtime_requirements():
        worst = "FAIL" if requirement.name in ESSENTIAL else "WARN"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, worst, "not installed", INSTALL)
            continue
        try:
            supported = requirement.specifier.contains(Version(found).public, prereleases=True)
        except (InvalidVersion, TypeError):  # an installation that was broken off
            yield Check(requirement.name, worst, "its version cannot be read", INSTALL)
            continue
        if supported:
            yield Check(requirement.name, "OK", found)
        else:
            detail = f"{found} is outside the supported range {requirement.specifier}"
            yield Check(requirement.name, "WARN", detail, INSTALL)


def _torchao() -> Iterator[Check]:
    try:
        found = metadata.version("torchao")
    except metadata.PackageNotFoundError:
        return
    if Version(found) < TORCHAO_MINIMUM:
        detail = f"{found} is too old for peft, which then refuses to make any adapter"
        yield Check("torchao", "FAIL", detail, "pip uninstall torchao, or pip install -U torchao")


def _device(machine: Machine) -> Check:
    if machine.problem:
        return Check("device", "FAIL", machine.problem, f"{INSTALL}, in a fresh environment")
    if machine.device == "cpu":
        return Check("device", "OK", "cpu: the pocket model needs no more")
    detail = f"{machine.device}, {machine.name}, {machine.memory:.0f} GiB"
    if machine.device == "cuda" and not machine.bf16:
        fix = (
            "set fp16=True, bf16=False, since bfloat16 would be emulated, and slow; on a 4-bit "
            "base, cast the adapter to float32 after SFTTrainer is made"
        )
        return Check("device", "WARN", f"{detail}, without bfloat16", fix)
    return Check("device", "OK", detail)


def _gpus(machine: Machine) -> Iterator[Check]:
    if machine.gpus > 1:
        detail = (
            f"{machine.gpus} at once: SFTTrainer refuses to train, Trainer multiplies the batch"
        )
        fix = (
            "set CUDA_VISIBLE_DEVICES=0 before Python starts (in a notebook: restart the kernel, "
            'and run os.environ["CUDA_VISIBLE_DEVICES"] = "0" before all else); to train a script '
            "on all of them, start it with torchrun or accelerate launch"
        )
        yield Check("GPUs", "WARN", detail, fix)


def _four_bit(machine: Machine) -> Iterator[Check]:
    if "fix_bitsandbytes" in machine.four_bit:
        detail = "bitsandbytes trains 4-bit models wrongly on this CPU once they were evaluated"
        fix = "call hardware.fix_bitsandbytes() before loading one, as the lessons do"
        yield Check("4-bit", "WARN", detail, fix)
    elif machine.four_bit.startswith("not available"):
        fix = f"{INSTALL}, if bitsandbytes is missing; else leave out what trains in 4 bits"
        yield Check("4-bit", "WARN", machine.four_bit, fix)
    else:
        yield Check("4-bit", "OK", machine.four_bit)


def _resources(machine: Machine) -> Iterator[Check]:
    for name, found, needed in (
        ("memory", machine.ram, RAM_NEEDED),
        ("disk", machine.disk, DISK_NEEDED),
    ):
        enough = found >= needed
        fix = "" if enough else f"free some: the lessons want {needed} GiB"
        yield Check(name, "OK" if enough else "WARN", f"{found:.0f} GiB", fix)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        yield Check("temporary files", "OK", "can be written")
    except OSError as error:
        fix = "point TMPDIR to a folder that you may write to"
        yield Check("temporary files", "FAIL", str(error.strerror), fix)


def _files() -> Iterator[Check]:
    """Check that the model and the datasets are there and not placeholders of a partial clone."""
    fix = "fetch them again: git checkout -- data"
    weights = POCKET_MODEL / "model.safetensors"
    tickets = ("prompt_completion/train.jsonl", "text/train.csv", "messages/train.parquet")
    needed = [weights, POCKET_MODEL / "tokenizer.json", *(DATA / "tickets" / t for t in tickets)]
    missing = [str(path.relative_to(COURSE_ROOT)) for path in needed if not path.exists()]
    if missing:
        yield Check("course files", "FAIL", f"missing: {', '.join(missing)}", fix)
    elif not _complete(weights):
        yield Check("course files", "FAIL", "the pocket model's weights are cut off", fix)
    else:
        yield Check("course files", "OK", "the pocket model and the datasets are there")


def _folder() -> Iterator[Check]:
    """Check that the lessons can write where they do: in notebooks/runs, and their pages in build.

    The folders are only asked, not tried: nothing but a lesson should write there.
    """
    if not (COURSE_ROOT / "notebooks").is_dir():  # the package alone
        return
    needed = (COURSE_ROOT / "notebooks" / "runs", COURSE_ROOT / "build")
    existing = [next(p for p in (path, *path.parents) if p.exists()) for path in needed]
    if all(os.access(path, os.W_OK) for path in existing):
        yield Check("course folder", "OK", "can be written")
    else:
        detail = f"'{COURSE_ROOT}' cannot be written, and lessons save what they make there"
        fix = "copy the folder to one of your own and work there; the commands here run as it is"
        yield Check("course folder", "FAIL", detail, fix)


def _model() -> Iterator[Check]:
    """Check the model that COURSE_MODEL names, if it does: its config, and its tokenizer."""
    if not os.environ.get("COURSE_MODEL", "").strip():
        return
    unset = "name another in COURSE_MODEL, or unset it for the pocket model"
    try:
        # Slow to import, so only where they are needed.
        from transformers import AutoTokenizer

        from course_utils.models import base_model
        from course_utils.tokenizer_setup import first_token_differs

        model = base_model()
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
        differs = first_token_differs(tokenizer)
    except Exception as error:  # each library raises its own; the doctor only tells
        yield Check("model", "FAIL", str(error).strip().splitlines()[0], unset)
        return
    detail = f"{model.name}, a vocabulary of {len(tokenizer):,} tokens"
    if differs:
        detail += ", to which transformers 4 and 5 give different first tokens: " + ", ".join(
            f"{name} {value!r}" for name, value in differs.items()
        )
        fix = "train and use it with one version of transformers, and save the tokenizer with it"
        yield Check("model", "WARN", detail, fix)
    else:
        yield Check("model", "OK", detail)


def _complete(weights: Path) -> bool:
    """Return whether a safetensors file is as long as its header says."""
    try:
        from safetensors import safe_open

        with safe_open(weights, "np"):
            return True
    except ImportError:  # comes with transformers, which has a line of its own
        return True
    except Exception:  # SafetensorError, or of an empty file another
        return False
