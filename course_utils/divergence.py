"""Stops a training whose weights become infinite or NaN."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnDivergence(TrainerCallback):
    """Ends a training that diverges, where the trainer goes on and logs a loss of 0.0.

    The gradients are looked at before the optimizer's step, so the weights are still those of the
    step before. Under fp16, gradients overflow now and then and the step is left out; there only
    the weights are looked at, after it.
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise FloatingPointError if a gradient is not finite."""
        if not args.fp16:
            gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
            self._require_finite("gradients", gradients, args, state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise FloatingPointError if a trained weight is not finite."""
        weights = [p.detach() for p in kwargs["model"].parameters() if p.requires_grad]
        self._require_finite("weights", weights, args, state.global_step)

    @staticmethod
    def _require_finite(
        what: str, tensors: list[torch.Tensor], args: TrainingArguments, step: int
    ) -> None:
        norm = nn.utils.get_total_norm(tensors)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"At step {step} the norm of the {what} is {norm:g}. Allowed is a finite number; "
                f"the training has diverged, with learning_rate={args.learning_rate:g} and "
                f"max_grad_norm={args.max_grad_norm:g}. Load the model again, or an earlier "
                "checkpoint, and train with a tenth of the learning rate; instead of fp16 take "
                "bf16 where the GPU has it."
            )
