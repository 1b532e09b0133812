"""What a trainer computes for a loss, against what it seems to.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, Trainer

from preflight.findings import Finding, finding
from preflight.training_check.probing import base_of, first_tokens, no_trace, tolerance


def head_findings(trainer: Trainer) -> Iterator[Finding]:
    """Yield a finding if trl's fused head does not give the cross entropy of the model's logits.

    Since 1.15 trl multiplies by the head's weight itself: right for a plain linear head alone.
    """
    model, base = trainer.model, base_of(trainer.model)
    code = getattr(base.forward, "__code__", None)
    if code is None or "fused_lm_head" not in code.co_varnames or _own_loss(trainer):
        return
    ids = first_tokens(trainer)
    if ids is None or getattr(trainer, "temperature", 1.0) != 1.0:
        return
    name, head = type(trainer).__name__, base.get_output_embeddings()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with no_trace(trainer):
        try:
            # A prompt that is learned stands in front.
            logits = model(**inputs).logits[0, -ids.shape[1] : -1]
        except Exception as error:  # a model that needs more than tokens is not tried
            if _quantized(head):
                yield finding(
                    "quantized_head",
                    f"The model's head was quantized ({type(head).__name__}) and then tied to the "
                    f"embeddings: {name} trains it, but the model itself raises {_said(error)} in "
                    "generate().",
                    _head_fix(head),
                )
            return
        allowed, logits = tolerance(logits, base.dtype), logits.float()
        own = cross_entropy(logits, ids[0, 1:].to(logits.device), reduction="none")
        try:
            fused = -model(**inputs, labels=ids, fused_lm_head=True).log_probs[0].float()
            fused = fused[-len(own) :].to(own.device)
        except Exception as error:  # whatever another kind of head, or of adapter, raises
            adapter = getattr(model, "active_peft_config", None)
            parts = [type(part).__name__ for part in (head, adapter) if part is not None]
            yield finding(
                "fused_head",
                f"{name} takes its loss from the weight of the model's head without calling it. "
                f"With {' and '.join(parts)} the first step raises {_said(error)}.",
                _head_fix(head),
            )
            return
    if not (fused - own).abs().max() <= allowed:
        yield finding(
            "fused_head",
            f"{name}'s loss is not the model's: {float(fused.mean()):,.4g} on the first "
            f"{fused.numel()} tokens, where the cross entropy of the logits is "
            f"{float(own.mean()):,.4g}. It multiplies by the weight of the model's head "
            f"({type(head).__name__}, {head.weight.dtype}) itself, and the model does otherwise.",
            _head_fix(head),
        )


def _head_fix(head: nn.Module) -> str:
    if isinstance(head, TrainableTokensWrapper):
        return (
            "Of a model with tied embeddings trainable_token_indices wraps the head, too. Train "
            'with Trainer, which calls the head; or train all rows: modules_to_save=["lm_head"].'
        )
    if _quantized(head):
        return (
            'Quantize all but the head: llm_int8_skip_modules replaces the default, so "lm_head" '
            "belongs in your list."
        )
    return "Train with Trainer, which takes the model's own loss."


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _quantized(head: nn.Module) -> bool:
    return type(head).__module__.startswith("bitsandbytes")


def _own_loss(trainer: Trainer) -> bool:
    """Return whether the loss is made from the whole logits, by the user or by label smoothing."""
    smoothed = trainer.label_smoother is not None and trainer.args.label_smoothing_factor > 0
    return trainer.compute_loss_func is not None or smoothed


def balance_findings(trainer: Trainer) -> Iterator[Finding]:
    """Yield a finding if a mixture of experts trains without its balancing loss."""
    config = getattr(base_of(trainer.model), "config", None)
    config = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    weight = getattr(config, "router_aux_loss_coef", 0.0)
    if not (getattr(config, "output_router_logits", False) and weight and _own_loss(trainer)):
        return
    function = trainer.compute_loss_func
    if function is not None and (
        not hasattr(function, "__code__") or "aux_loss" in function.__code__.co_names
    ):
        return  # it may add the balancing loss itself
    why = "compute_loss_func" if function is not None else "label_smoothing_factor"
    yield finding(
        "balancing_loss",
        f"With {why} the loss leaves out the balancing loss of the experts "
        f"(router_aux_loss_coef={weight}): it has no gradient, though SFTTrainer logs aux_loss. "
        "Allowed, and then nothing keeps the router from a few experts.",
        "Do without label_smoothing_factor."
        if function is None
        else "Add router_aux_loss_coef * outputs.aux_loss in your function.",
        "warning",
    )
