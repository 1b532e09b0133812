"""The optimizer of the pretraining: Muon for the layers' matrices, AdamW for embeddings and norms.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes the update of a matrix
orthogonal. On this model and corpus it reaches a given loss in about half the steps of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that look like one to a trainer and its learning-rate schedule.

    `learning_rate` is AdamW's; Muon's is `muon_ratio` times as high. T5's relative position biases
    are added to attention scores as they are, so to look at one position and no other they have to
    grow to about 5, from nearly 0: at AdamW's rate that takes thousands of steps, and no layer can
    look at the token before until then. They learn `bias_ratio` times as fast.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        muon_ratio: float = 7.0,
        bias_ratio: float = 30.0,
    ) -> None:
        biases = [p for name, p in model.named_parameters() if "relative_attention_bias" in name]
        embeddings = {
            id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        }
        parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
        chosen = {id(p) for p in [*matrices, *biases]}
        others = [p for p in parameters if id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": others}]
        if biases:
            groups.append({"params": biases, "lr": bias_ratio * learning_rate})
        self.parts = [
            torch.optim.Muon(matrices, lr=muon_ratio * learning_rate, weight_decay=0.1),
            torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        super().__init__([{"params": parameters}], {})
        # The parts' own groups, so that a schedule that changes their rates reaches the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
