"""What DPOTrainer and its like learn from pairs, against what they seem to: read off trl 1.16.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import Trainer

from preflight.findings import Finding, finding
from preflight.training_check.probing import base_of, first_tokens, is_a, no_trace, tolerance
from preflight.training_check.rows import row_finding

ANSWERS = ("chosen_ids", "rejected_ids")
PAIRS = 2  # of which the first loss is measured
# Arguments of DPOConfig that are read with some of its losses only.
READ_BY = {
    "label_smoothing": ("robust", "exo_pair", "aot", "aot_unpaired"),
    "discopop_tau": ("discopop",),
}
# Those that are read with another argument only: its name, and the value that it must have.
READ_WITH = {
    "f_alpha_divergence_coef": ("f_divergence_type", "alpha_divergence"),
    "ref_model_mixup_alpha": ("sync_ref_model", True),
    "ref_model_sync_steps": ("sync_ref_model", True),
}


def preference_findings(trainer: Trainer, known: set[str]) -> Iterator[Finding]:
    """Yield what is wrong with the pairs of a trainer, its reference and its loss.

    `known` holds the codes of what was found before; a wrong reference is said once.
    """
    rows = trainer.train_dataset
    if isinstance(rows, Dataset) and {*ANSWERS} <= {*rows.column_names}:
        yield from _pair_findings(trainer, rows.with_format(None))
    if not is_a(trainer, "DPOTrainer"):
        return
    yield from _setting_findings(trainer)
    if known.isdisjoint({"reference", "reference_off"}):
        yield from _start_findings(trainer)


def _pair_findings(trainer: Trainer, rows: Dataset) -> Iterator[Finding]:
    """Find pairs that are equal as they are, or as the collator cuts them."""
    collator = trainer.data_collator
    length, end = getattr(collator, "max_length", None), getattr(collator, "truncation_mode", "")
    part = slice(-length, None) if length and end == "keep_end" else slice(None, length)
    equal, cut = [], []
    prompts = rows["prompt_ids"] if "prompt_ids" in rows.column_names else [[]] * len(rows)
    columns = (rows[name] for name in ANSWERS)
    for place, (prompt, chosen, rejected) in enumerate(zip(prompts, *columns, strict=True)):
        if chosen == rejected:
            equal.append(place)
        elif length and len(prompt) + min(len(chosen), len(rejected)) >= length:
            # What is learned of an answer, after what it is learned from.
            sides = [(prompt + one)[part] for one in (chosen, rejected)]
            learned = [len(one[part] if end == "keep_end" else one) for one in (chosen, rejected)]
            if sides[0] == sides[1] and (end != "keep_end" or learned[0] == learned[1]):
                cut.append(place)
    if equal:
        what = (
            "Pairs whose chosen answer has the tokens of the rejected one: both terms of the loss "
            "cancel, and they teach nothing."
        )
        yield row_finding("equal_answers", what, "Drop these rows.", equal)
    if cut:
        what = (
            f"Pairs whose answers differ only in what max_length={length} cuts off: what is left "
            "of both is the same, and they teach nothing."
        )
        yield row_finding("equal_truncated", what, "Raise max_length, or drop these rows.", cut)


def _setting_findings(trainer: Trainer) -> Iterator[Finding]:
    args, losses = trainer.args, trainer.args.loss_type
    names = " + ".join(losses)
    default = {field.name: field.default for field in fields(args)}
    if args.beta == 0 and {*losses} - {"sft"}:
        yield finding(
            "beta",
            f"beta is 0, which the loss {names} multiplies the preference with: it is the same for "
            "all answers (0.693 for sigmoid), and nothing is learned from the pairs. Allowed is a "
            "number above 0; 0.1 is usual.",
            "Give beta=0.1. (In GRPOConfig 0 is a sound value: no reference.)",
        )
    unread = [name for name, by in READ_BY.items() if not {*by} & {*losses}]
    unread += [n for n, (other, value) in READ_WITH.items() if getattr(args, other) != value]
    if {*losses} == {"sft"}:
        unread.append("beta")
    for name in unread:
        if (value := getattr(args, name)) != default[name]:
            others = READ_BY.get(name) or (READ_WITH[name] if name in READ_WITH else ("sigmoid",))
            allowed = (
                f"{others[0]}={others[1]!r}"
                if name in READ_WITH
                else f"loss_type {', '.join(others)}"
            )
            yield finding(
                "no_effect",
                f"{name}={value} has no effect with loss_type {names}: DPOTrainer reads it only "
                f"with {allowed}.",
                f"Leave {name} out, or choose a loss that reads it.",
                "warning",
            )
    rate = getattr(getattr(trainer.model, "active_peft_config", None), "lora_dropout", 0.0)
    if args.disable_dropout and rate:
        yield finding(
            "dropout",
            f"lora_dropout={rate} has no effect: DPOTrainer sets all dropout to 0 "
            "(disable_dropout=True), so that the policy is held against its reference without "
            "noise.",
            "Allowed, and right as a rule; leave lora_dropout out.",
            "info",
        )
    elif not args.disable_dropout and (layers := _dropping(trainer.model)):
        yield finding(
            "dropout",
            f"disable_dropout=False, and {layers} layers of the policy drop out. In training the "
            "loss then is noise around that of the model that is used: it does not begin at ln 2.",
            "Leave disable_dropout out; True is its default.",
            "warning",
        )


def _dropping(model: nn.Module) -> int:
    return sum(isinstance(one, nn.Dropout) and one.p > 0 for one in model.modules())


def _start_findings(trainer: Trainer) -> Iterator[Finding]:
    """Hold the policy against its reference on a few pairs, before the first step."""
    given, base = trainer.ref_model, base_of(trainer.model)
    if given is not None:
        sizes = [one.get_input_embeddings().weight.shape[0] for one in (base, given)]
        if sizes[0] != sizes[1]:
            yield finding(
                "reference_vocabulary",
                f"The reference has {sizes[1]:,} tokens and the policy {sizes[0]:,}: the ids of "
                "the policy's tokenizer mean others to it, or none. Allowed is a model of the same "
                "tokenizer, as a rule the one that the training starts from.",
                "Leave ref_model out: with an adapter the reference is the model without it.",
            )
            return
    if first_tokens(trainer) is None or trainer.args.ld_alpha is not None:
        return
    rows = trainer.train_dataset.with_format(None)
    device = next(trainer.model.parameters()).device
    examples = [rows[place] for place in range(min(PAIRS, len(rows)))]
    reference = trainer.model if given is None else given
    batch = {name: one.to(device) for name, one in trainer.data_collator(examples).items()}
    try:
        with no_trace(trainer):
            ours, allowed = _log_probs(trainer.model, batch, base.dtype)
            theirs = [batch[name] for name in ("ref_chosen_logps", "ref_rejected_logps")
                      if name in batch]  # fmt: skip
            theirs = theirs or [*trainer.compute_ref_log_probs(reference, batch)]
    except Exception:  # head_findings says what a first step raises
        return
    change = ours - torch.cat(theirs).to(ours.device)
    if change.abs().max() <= allowed:
        return
    chosen, rejected = change.chunk(2)
    loss = float(-logsigmoid(trainer.beta * (chosen - rejected)).mean())
    yield finding(
        "first_loss",
        f"{_source(trainer)} is not the model that the training starts from: of the first "
        f"{len(examples)} pairs the log-probabilities of an answer differ by up to "
        f"{float(change.abs().max()):.3g}, and the loss of sigmoid begins at {loss:.3f}, not at "
        f"ln 2 ({math.log(2):.3f}). Allowed, if it is meant: the policy is then held near that "
        "other model.",
        _way_out(trainer),
        "error" if given is None or not isinstance(trainer.model, PeftModel) else "warning",
    )


def _log_probs(
    model: nn.Module, batch: dict[str, Any], dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """Return the log-probability of each answer, and by how much rounding may change one."""
    mask = batch["completion_mask"]
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    each = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    each = each[:, -(mask.shape[1] - 1) :]
    return each.sum(dim=1), tolerance(each, dtype) * max(1.0, float(mask.sum(1).max()) ** 0.5)


def _source(trainer: Trainer) -> str:
    if trainer.args.precompute_ref_log_probs:
        return "What the reference's log-probabilities were computed with"
    if trainer.ref_model is None:
        return "The reference (the model with its adapter switched off, or with the copy 'ref')"
    name = getattr(trainer.ref_model.config, "name_or_path", "") or "a model in memory"
    return f"The reference ({name})"


def _way_out(trainer: Trainer) -> str:
    if trainer.args.precompute_ref_log_probs:
        return "Build the trainer anew after the last change of the model."
    if trainer.ref_model is None:
        return "Change no weight between building the trainer and training."
    if isinstance(trainer.model, PeftModel):
        return "Leave ref_model out: DPOTrainer keeps a copy of the adapter as it starts."
    return (
        "Without ref_model DPOTrainer loads the reference anew from model.config.name_or_path, "
        "which knows nothing of an adapter that was merged in. Save the merged model and load it "
        "from there; or give it peft_config, and the reference is the model without the adapter."
    )
