"""What of a model is trained, what stands still, and what it is compared with.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer

from preflight.findings import Finding, finding
from preflight.training_check.probing import base_of, first_tokens, no_trace, tolerance

SAMPLE = 10_000  # entries of a tensor that are looked at


def counts(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are, in the active adapter.

    DPOTrainer keeps its reference as a second adapter, and some of that asks for gradients.
    """
    if not isinstance(model, PeftModel):
        sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
        return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
    trained, total = model.get_nb_trainable_parameters()
    idle = {*model.peft_config} - {*model.active_adapters}
    for name, weight in model.named_parameters():
        if idle & {*name.split(".")}:
            total -= weight.numel()
            trained -= weight.numel() * weight.requires_grad
    return trained, total


def share_findings(model: nn.Module, trained: int, total: int) -> Iterator[Finding]:
    if not trained:
        loaded = isinstance(model, PeftModel) and model.active_peft_config.inference_mode
        yield finding(
            "nothing_trained",
            f"0 of {total:,} parameters are trained"
            + (": the adapter was loaded to be used, not trained. " if loaded else ". ")
            + "With activation checkpointing no error comes, and no weight changes.",
            "Load it with PeftModel.from_pretrained(model, folder, is_trainable=True)."
            if loaded
            else "Look for requires_grad in your code; for LoRA give peft_config=LoraConfig(...).",
        )
    if trained == total:
        yield finding(
            "all_weights",
            f"All {total:,} parameters are trained: there is no adapter. Allowed, and right "
            "for full fine-tuning.",
            "For LoRA give the trainer peft_config=LoraConfig(...).",
            "warning",
        )


def reference_findings(trainer: Trainer) -> Iterator[Finding]:
    """Yield a finding if the adapter that a trainer keeps as its reference is not the trained one.

    trl 1.16 copies what has ".default." in its name, and leaves what ends in ".default".
    """
    model = trainer.model
    if not isinstance(model, PeftModel) or "ref" not in model.peft_config:
        return
    if model.active_adapters != ["default"] or getattr(trainer, "ref_model", None) is not None:
        return
    weights = dict(model.named_parameters())
    pairs = {name: _twin(name) for name in weights if "default" in name.split(".")}
    other = [
        name
        for name, twin in pairs.items()
        if twin in weights and not torch.equal(weights[name], weights[twin])
    ]
    ids = first_tokens(trainer)
    if not other or ids is None:
        return
    base = base_of(model)
    with no_trace(trainer):
        trained = base(input_ids=ids, use_cache=False).logits
        model.set_adapter("ref")
        try:
            change = (base(input_ids=ids, use_cache=False).logits - trained).abs().max()
        finally:
            model.set_adapter("default")
        allowed = tolerance(trained, base.dtype)
    if change > allowed:  # two adapters that begin in other ways may both do nothing yet
        yield finding(
            "reference",
            f"{type(trainer).__name__}'s reference is not the model that it starts from: "
            f"{len(other)} of {len(pairs)} tensors of the adapter were not copied "
            f"(such as {other[0].removeprefix('base_model.model.')}), and its logits differ by up "
            f"to {float(change):.2g}.",
            "Call merge_and_unload() on the model, and give the trainer a new adapter as "
            "peft_config: its reference is then the model without it.",
        )


def _twin(name: str) -> str:
    """Return the reference's name of a parameter."""
    return ".".join("ref" if part == "default" else part for part in name.split("."))


def step_findings(trainer: Trainer) -> Iterator[Finding]:
    """Yield a finding if most steps are lost when they are rounded to the weights' dtype.

    In its first steps Adam moves an entry by about the learning rate. A sum is rounded to the
    nearest number of the dtype, so a step below half the distance to the next one is lost.
    """
    rate = trainer.args.learning_rate
    # DeepSpeed and FSDP keep what is trained in float32; an own optimizer has its own rate.
    shared = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if shared or trainer.optimizer is not None or "adam" not in str(trainer.args.optim).lower():
        return
    halves, dtype = [], None
    for weight in trainer.model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            dtype = weight.dtype
            entries = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)]
            _, exponent = torch.frexp(entries[entries != 0].float().abs())
            halves.append(torch.finfo(dtype).eps * (exponent.cpu() - 2.0).exp2())
    half = torch.cat(halves) if halves else torch.zeros(0)
    still = float((half > rate).float().mean()) if half.numel() else 0.0
    if still > 0.5:
        yield finding(
            "lost_steps",
            f"At learning_rate={rate} a step of Adam is below half of {dtype}'s spacing for "
            f"{still:.0%} of the entries that are trained (those that are not 0): these stay as "
            "they are.",
            f"Above a rate of {float(half.median()):.1g} most move. Or keep what is trained in "
            "float32: load the model with dtype=torch.float32; under QLoRA set param.data = "
            "param.data.float() for what requires_grad once the trainer is built.",
            "warning",
        )
