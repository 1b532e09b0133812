"""What an optimizer keeps between steps, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# bitsandbytes pages a parameter's state from this many elements on (optim/optimizer.py).
PAGED_FROM = 100_000


def states(optimizer: Any, device: str) -> Iterator[tuple[torch.Tensor, str]]:
    """Yield the tensors that an optimizer keeps, each with where it lives: "device" or "host".

    On the host live paged states (bitsandbytes pages on GPUs only), and the step counters of
    torch's optimizers that are not fused.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
    paged = getattr(optimizer, "is_paged", False)
    counters = not any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                large = name in ("state1", "state2") and parameter.numel() >= PAGED_FROM
                away = device == "cuda" and ((paged and large) or (counters and name == "step"))
                yield value, "host" if away else "device"
