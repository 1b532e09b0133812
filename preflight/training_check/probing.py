"""One row through a model, before a training and without a trace of it.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import Trainer

TOKENS = 64  # of the row; enough to tell two losses apart


def is_a(trainer: Trainer, name: str) -> bool:
    """Return whether a trainer is of a class, by name: a plain Trainer needs no trl for that."""
    return any(one.__name__ == name for one in type(trainer).__mro__)


def base_of(model: nn.Module) -> nn.Module:
    """Return a model without the class that peft wraps it in; its layers keep their adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def first_tokens(trainer: Trainer) -> torch.Tensor | None:
    """Return the first tokens of the first row as a batch of one.

    None where the row has no tokens yet, or where a GPU does not have the whole model.
    """
    rows, weight = trainer.train_dataset, next(trainer.model.parameters())
    shared = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or weight.is_meta
    if shared or not isinstance(rows, Dataset) or not len(rows):
        return None
    row = rows.with_format(None)[0]
    # DPOTrainer's names are the last two.
    ids = [*row.get("input_ids", ()), *row.get("prompt_ids", ()), *row.get("chosen_ids", ())]
    if not ids and is_a(trainer, "GRPOTrainer") and isinstance(row.get("prompt"), str):
        ids = trainer.processing_class(text=row["prompt"])["input_ids"]
    return torch.tensor([ids[:TOKENS]], device=weight.device) if len(ids) > 1 else None


@contextmanager
def no_trace(trainer: Trainer) -> Iterator[None]:
    """Let forward passes change neither the model's modes nor the random numbers."""
    model, device = trainer.model, trainer.args.device
    drawn_on = [device] if device.type == "cuda" else []
    training = [(module, module.training) for module in model.modules()]
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        for module, _ in training:
            # In evaluation bitsandbytes 0.50 packs its weights anew on a CPU, for good.
            module.training = type(module).__module__.startswith("bitsandbytes")
        with torch.random.fork_rng(drawn_on), torch.no_grad():
            with trainer.compute_loss_context_manager():
                yield
    finally:
        for module, was in training:
            module.training = was
        for weight, was in trained:
            weight.requires_grad_(was)


def tolerance(logits: torch.Tensor, dtype: torch.dtype) -> float:
    """Return by how much logits may differ that were rounded at other places."""
    dtypes, device = {logits.dtype, dtype}, logits.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return 0.01 + 2 * max(torch.finfo(one).eps for one in dtypes) * float(logits.abs().max())
