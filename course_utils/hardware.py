"""What this machine can run, and why. Works where torch is missing or broken: that is then said.

Used by lessons: all.
"""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from course_utils.display import Result
from course_utils.paths import COURSE_ROOT

GIB = 2**30
# Where Linux names a container's memory limit: control groups, version 2 and version 1.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Variables that the services set. Not their prefixes: KAGGLE_KEY, say, is set on many laptops.
PLACES = {
    "COLAB_RELEASE_TAG": "Colab",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle",
    "BINDER_SERVICE_HOST": "Binder",
}


@dataclass(frozen=True)
class Machine(Result):
    """The facts about a machine on which the lessons depend.

    `device` is "cuda", "mps" or "cpu"; `memory` is the accelerator's, or the machine's on "cpu", in
    GiB, as are `ram` and `disk` (free). `bf16` is True only where the hardware itself computes in
    bfloat16: a T4, which emulates it, reads False. `gpus` is how many CUDA GPUs torch sees; the
    facts are the first one's. `problem` says why torch could not be asked.
    """

    device: str
    name: str
    memory: float
    bf16: bool
    capability: tuple[int, int] | None = None
    gpus: int = 0
    cores: int = 1
    ram: float = 0.0
    disk: float = 0.0
    place: str = "local"
    four_bit: str = "not available"
    attention: tuple[str, ...] = ("eager", "sdpa")
    problem: str = ""

    def headers(self) -> tuple[str, str]:
        return ("", "this machine")

    def rows(self) -> list[tuple[str, str]]:
        capability = ".".join(map(str, self.capability)) if self.capability else ""
        rows = [
            ("device", f"{self.device} ({self.name})"),
            ("memory", f"{self.memory:.0f} GiB"),
            ("GPUs", f"{self.gpus}, of which this is the first" if self.gpus > 1 else ""),
            ("compute capability", capability),
            ("bfloat16 in hardware", "yes" if self.bf16 else "no"),
            ("4-bit", self.four_bit),
            ("attention", ", ".join(self.attention)),
            ("cores, RAM, free disk", f"{self.cores}, {self.ram:.0f} GiB, {self.disk:.0f} GiB"),
            ("place", self.place),
            ("problem", self.problem),
        ]
        return [(what, value) for what, value in rows if value]


@dataclass(frozen=True)
class Advice(Result):
    """What to choose on a machine: ``(setting, value, reason)`` rows."""

    choices: tuple[tuple[str, str, str], ...]

    def __getitem__(self, setting: str) -> str:
        """Return what to choose for a setting.

        Raises:
            KeyError: if there is no such setting.
        """
        values = {name: value for name, value, _ in self.choices}
        if setting not in values:
            raise KeyError(
                f"There is no setting {setting!r}. Allowed are {', '.join(values)}. Ask for one of "
                "these."
            )
        return values[setting]

    def headers(self) -> tuple[str, str, str]:
        return ("setting", "choose", "because")

    def rows(self) -> tuple[tuple[str, str, str], ...]:
        return self.choices


def runtime_requirements() -> list[Requirement]:
    """Return what the lessons import, with the supported versions.

    They stand in the first part of requirements.txt; without the file, in the package's metadata.
    """
    path = COURSE_ROOT / "requirements.txt"
    if not path.exists():
        return [Requirement(line) for line in metadata.requires("finetuning-course") or []]
    text = path.read_text(encoding="utf-8").split("# Notebooks and tests.")[0]
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def detect() -> Machine:
    """Return the facts about this machine; where torch fails, `problem` says how."""
    shared = {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "ram": _ram(),
        "disk": shutil.disk_usage(Path.cwd()).free / GIB,
        "place": _place(),
    }
    try:
        import torch

        if torch.cuda.is_available():
            return _cuda(torch, shared)
        if torch.backends.mps.is_available():
            # Memory is shared with the processor. bfloat16 depends on the chip: not assumed.
            return Machine("mps", "Apple GPU", shared["ram"], bf16=False, **shared)
        problem = ""
    except Exception as error:  # any failure of an import of torch is a finding here, not a crash
        first_line = str(error).partition("\n")[0][:120]
        problem = f"torch cannot be used: {type(error).__name__}: {first_line}"
    native = bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())
    return Machine(
        "cpu",
        platform.machine(),
        shared["ram"],
        bf16=native,
        four_bit=_four_bit_on_cpu(),
        problem=problem,
        **shared,
    )


def recommend(machine: Machine) -> Advice:
    """Return dtype, optimizer, quantization and batch size for a machine, each with its reason."""
    if machine.device == "cuda":
        small = machine.memory < 20
        dtype = (
            ("bfloat16", "this GPU computes in it, and it has the range of float32")
            if machine.bf16
            # SFTTrainer leaves the adapter of a 4-bit model in bfloat16, whose gradients the loss
            # scaling of float16 cannot read.
            else (
                "float16",
                "this GPU only emulates bfloat16, which is slow; on a 4-bit base, cast the "
                "adapter to float32 between making the trainer and training",
            )
        )
        optimizer = (
            ("paged_adamw_8bit", "its state is a quarter as large and moves to RAM under pressure")
            if small
            else ("adamw_torch_fused", "one kernel a step, and the memory suffices")
        )
        quantization = (
            ("4-bit NF4", "a model of 7 or 8 billion parameters takes 15 GiB in 16 bits")
            if small
            else ("none up to 8B", "16-bit weights of 8 billion parameters take 15 GiB")
        )
        batch = ("4", "start low, accumulate gradients, and raise it while memory lasts")
    else:
        dtype = (
            "float32",
            "on a CPU or an Apple GPU it is the safe choice, and often the fast one",
        )
        optimizer = ("adamw_torch", "the others save memory that a small model does not need")
        quantization = ("none", "4-bit weights save memory but are not faster here")
        batch = ("16", "it fits the pocket model in under 2 GiB")
    return Advice((
        ("dtype", *dtype), ("optimizer", *optimizer), ("quantization", *quantization),
        ("batch size", *batch),
    ))  # fmt: skip


def fix_bitsandbytes(model: Any = None) -> str:
    """Keep bitsandbytes from training wrongly on some CPUs; return what was found, in a sentence.

    On CPUs with avx512_bf16, bitsandbytes 0.50 repacks 4-bit weights at the first forward in eval
    mode, and gradients, merges and saved files are silently wrong from then on. Whether it does so
    here is tried on a small layer, before and after. Call this before a model is loaded in 4 bits;
    a model that is loaded already, and has not been evaluated, can be passed. Where nothing is
    wrong, it changes nothing.

    Raises:
        ImportError: if bitsandbytes is not installed.
        RuntimeError: if the model passed was evaluated before: its scales are rounded already. Or
            if this version of bitsandbytes has the fault and cannot be fixed from here.
    """
    import bitsandbytes.nn.modules as layers

    if model is not None:
        found = [m for m in model.modules() if isinstance(m, layers.Linear4bit)]
        # Repacking leaves this mark; saving removes the packing, but neither the harm nor the mark.
        states = (getattr(module.weight, "quant_state", None) for module in found)
        if any(hasattr(state, "original_qshape") for state in states):
            raise RuntimeError(
                "This model was evaluated, and bitsandbytes repacked its 4-bit weights, which "
                "cannot be undone exactly. A model can be fixed before its first evaluation. Call "
                "fix_bitsandbytes(), then load the model again."
            )
        for module in found:
            module.support_avx512bf16_for_cpu = False
    if not _evaluation_changes_gradients():
        return "Not needed: a 4-bit layer trains the same after an evaluation on this machine."
    if hasattr(layers, "has_avx512bf16"):
        layers.has_avx512bf16 = lambda: False
    if _evaluation_changes_gradients():
        raise RuntimeError(
            "On this CPU an evaluation changes the gradients of bitsandbytes' 4-bit layers, and "
            "the fix that the course knows does not help with bitsandbytes "
            f"{_installed('bitsandbytes')}. Training in 4 bits is right on a GPU, on another CPU, "
            "or with the version in constraints.txt. Use one of these."
        )
    return "Fixed: bitsandbytes will not repack 4-bit weights, so evaluation leaves training right."


def _evaluation_changes_gradients() -> bool:
    """Return whether a small 4-bit layer on the CPU has other gradients after an evaluation."""
    import torch
    from bitsandbytes.nn import Linear4bit

    inputs = torch.linspace(-1, 1, 128).reshape(2, 64)

    def gradient() -> torch.Tensor:
        tracked = inputs.clone().requires_grad_()
        with warnings.catch_warnings():  # torch warns of an operator without a backward
            warnings.simplefilter("ignore")
            layer.train()(tracked).square().sum().backward()
        return torch.zeros_like(inputs) if tracked.grad is None else tracked.grad

    with torch.random.fork_rng(devices=[]):  # what is random in a lesson stays as it was
        layer = Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    before = gradient()
    with torch.no_grad():
        layer.eval()(inputs)
    return not torch.allclose(before, gradient(), rtol=1e-3, atol=1e-6)


def _cuda(torch: Any, shared: dict[str, Any]) -> Machine:
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    attention = ["eager", "sdpa", "flex_attention"]
    if capability >= (8, 0) and _installed("flash-attn"):
        attention.append("flash_attention_2")
    return Machine(
        "cuda",
        properties.name,
        properties.total_memory / GIB,
        # torch.cuda.is_bf16_supported() says yes for emulation as well.
        bf16=capability >= (8, 0),
        capability=capability,
        gpus=torch.cuda.device_count(),
        four_bit="bitsandbytes on CUDA" if _installed("bitsandbytes") else "not available",
        attention=tuple(attention),
        **shared,
    )


def _four_bit_on_cpu() -> str:
    if not _installed("bitsandbytes"):
        return "not available: bitsandbytes is missing"
    if "avx512_bf16" in _cpu_flags():
        return "bitsandbytes on the CPU, after fix_bitsandbytes()"
    return "bitsandbytes on the CPU"


def _installed(name: str) -> str | None:
    """Return a library's version, or None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    """Return the processor's features as Linux names them; elsewhere nothing is known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].split(":", 1)[1].split()) if lines else set()


def _ram() -> float:
    """Return the memory that this process may use in GiB, 0.0 where psutil is missing."""
    try:
        import psutil
    except ImportError:
        return 0.0
    limits = [psutil.virtual_memory().total]
    # In a container (Binder, Kaggle) the limit is what counts, not the host's memory.
    for file in CONTAINER_LIMITS:
        try:
            limits.append(int(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return min(limits) / GIB


def _place() -> str:
    """Return where the notebook runs: Colab, Kaggle, Binder or local."""
    return next((place for variable, place in PLACES.items() if variable in os.environ), "local")
