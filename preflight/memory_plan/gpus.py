"""Real GPUs and the memory that a program gets on each.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from course_utils.display import text_table


@dataclass(frozen=True)
class GPU:
    """A device and what training on it can count on.

    `memory` is what a program can allocate in GiB: on NVIDIA's the "total capacity" in PyTorch's
    out-of-memory messages, which is smaller than the figure on the box because the driver and error
    correction keep a part (drivers differ by about 0.2 GiB); on Apple's the share of the unified
    memory that Metal recommends to a GPU program. `sold_as` is the figure on the box in GB. `bf16`
    is True where the hardware itself computes in bfloat16, `cuda` where it runs CUDA (bitsandbytes'
    8-bit optimizers need it), `fp8` where transformers keeps weights in FP8 (compute capability 8.9
    on). `source` says where `memory` was read.
    """

    name: str
    memory: float
    sold_as: int = 0
    bf16: bool = True
    source: str = "given"
    cuda: bool = True
    fp8: bool = True

    @property
    def bytes(self) -> int:
        """What a program can allocate, in bytes."""
        return int(self.memory * 2**30)


# The figures are from reports with the device's name in them: GitHub issues and pull requests, as
# owner/repository#number with the year. Turing (T4) has no bfloat16: NVIDIA, TensorRT-RTX support
# matrix (2025). Computing in FP8 begins with Ada and Hopper: transformers' FP8 quantizer
# (5.24). Apple's share: `torch.mps.recommended_max_memory()`, which passes on Metal's
# recommendedMaxWorkingSetSize (pytorch/pytorch#128289, 2024); newer systems give a larger share.
GPUS = (
    GPU("T4", 14.56, 16, False, "Zheng-Chong/CatVTON#133 (2025)", fp8=False),
    GPU("L4", 21.96, 24, True, "vllm-project/vllm#12539 (2025)"),
    GPU("A10G", 22.06, 24, True, "torch.cuda on AWS g5, in public logs (2025)", fp8=False),
    GPU("RTX 3090", 23.59, 24, True, "Stable-X/StableNormal#33 (2025)", fp8=False),
    GPU("RTX 4090", 23.52, 24, True, "Soul-AILab/SoulX-FlashTalk#5 (2026)"),
    GPU("RTX 5090", 31.36, 32, True, "TrajectoryCrafter/TrajectoryCrafter#20 (2025)"),
    GPU("A100 40GB", 39.50, 40, True, "TianheWu/CoSeR#10 (2025)", fp8=False),
    GPU("L40S", 44.53, 48, True, "vllm-project/vllm#15598 (2025)"),
    GPU("A100 80GB", 79.25, 80, True, "HiDream-ai/VAREdit#6 (2025)", fp8=False),
    GPU("H100 80GB", 79.11, 80, True, "vllm-project/vllm#27508 (2025)"),
    GPU("H200", 139.80, 141, True, "torch.cuda on 8xH200 machines, in public logs (2025)"),
    GPU("B200", 178.35, 180, True, "pytorch/ao#4002 (2026)"),
    GPU(
        "Apple 16GB", 10.67, 16, False, "abetlen/llama-cpp-python#687 (2023)", cuda=False, fp8=False
    ),
    GPU("Apple 32GB", 21.33, 32, False, "ollama/ollama#434 (2023)", cuda=False, fp8=False),
    GPU(
        "Apple 64GB",
        48.00,
        64,
        False,
        "llama-cpp-python, docs/install/macos.md (2023)",
        cuda=False,
        fp8=False,
    ),
    GPU("Apple 128GB", 107.52, 128, False, "antirez/ds4#893 (2026)", cuda=False, fp8=False),
)
LARGEST = 1000  # GiB; larger numbers are names, such as 4090


def gpu_table() -> str:
    """Return the GPUs as a table of text."""
    rows = [
        (
            gpu.name,
            f"{gpu.sold_as} GB",
            f"{gpu.memory:.2f} GiB",
            "yes" if gpu.bf16 else "no" if gpu.cuda else "depends on the chip",
            gpu.source,
        )
        for gpu in GPUS
    ]
    return text_table(rows, ("GPU", "sold as", "memory", "bfloat16", "source of the memory figure"))


def find_gpu(name: str | float | GPU) -> GPU:
    """Return the GPU of a name, such as "T4", "rtx4090" or "A100 80GB".

    Spaces, punctuation and case do not matter, and a part of the name does where it fits one GPU
    only. A number below 1000 is a GPU with that many GiB; a `GPU` is returned as it is.

    Raises:
        ValueError: if no GPU, or more than one, has such a name, or if the number is no such size.
    """
    if isinstance(name, GPU):
        return name
    try:
        memory = float(name)
    except (TypeError, ValueError):
        return _by_name(str(name))
    if isinstance(name, str) and memory >= LARGEST:  # "4090" is a name
        return _by_name(name)
    if not 0 < memory < LARGEST:
        raise ValueError(
            f"A GPU with {name} GiB was given. It needs a size above 0 and below {LARGEST}. Give "
            "its memory in GiB, such as 24."
        )
    return GPU(f"{memory:g} GiB", memory)


def _by_name(name: str) -> GPU:
    wanted = _key(name)
    matches = [gpu for gpu in GPUS if _key(gpu.name) == wanted]
    if not matches and not re.fullmatch(r"\d+gi?b|", wanted):  # "16GB" is in Apple names alone
        matches = [gpu for gpu in GPUS if wanted in _key(gpu.name)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(gpu.name for gpu in matches or GPUS)
    problem = "names more than one GPU" if matches else "is not a GPU that the course knows"
    raise ValueError(
        f"{name!r} {problem}. Allowed are {names}, or any size in GiB as a number. Give one of "
        "these."
    )


def _key(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
