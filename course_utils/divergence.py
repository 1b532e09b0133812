"""Stops a training whose weights or losses become infinite or NaN.

Used by lessons: 06, 08.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Diverged(FloatingPointError):
    """A loss, a gradient or a weight that is not a finite number."""


class StopOnDivergence(TrainerCallback):
    """Ends a training that diverges, where the trainer goes on and logs a loss of 0.0.

    The gradients are looked at before the optimizer's step, so the weights are still those of the
    step before. Under fp16, gradients overflow now and then and the step is left out; there only
    the weights are looked at, after it. Losses are looked at when they are logged: that of an
    evaluation can be the first to be infinite.
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise Diverged if a gradient is not finite."""
        if not args.fp16:
            gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
            self._require_finite_norm("gradients", gradients, args, state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise Diverged if a trained weight is not finite."""
        weights = [p.detach() for p in kwargs["model"].parameters() if p.requires_grad]
        self._require_finite_norm("weights", weights, args, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise Diverged if the loss of the training or of an evaluation is not finite."""
        for name in ("loss", "eval_loss"):
            self._require_finite(name, kwargs["logs"].get(name, 0.0), args, state.global_step)

    def _require_finite_norm(
        self, what: str, tensors: list[torch.Tensor], args: TrainingArguments, step: int
    ) -> None:
        norm = nn.utils.get_total_norm(tensors).item()
        self._require_finite(f"the norm of the {what}", norm, args, step)

    @staticmethod
    def _require_finite(what: str, value: float, args: TrainingArguments, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"At step {step} {what} is {value:g}. Allowed is a finite number; the training has "
                f"diverged, with learning_rate={args.learning_rate:g} and "
                f"max_grad_norm={args.max_grad_norm:g}. Load the model again, or an earlier "
                "checkpoint, and train with a tenth of the learning rate; instead of fp16 take "
                "bf16 where the GPU has it."
            )
