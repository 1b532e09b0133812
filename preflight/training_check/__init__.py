"""What goes wrong in training without an error: found before it starts.

>>> check_settings(args, peft_config, model)  # before the trainer is built
>>> check_trainer(trainer)  # before trainer.train()
>>> check_resume("out/checkpoint-4", trainer)  # before it goes on from there

What the libraries refuse themselves, in words that help, is left to them.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftConfig, PeftModel
from transformers import Trainer, TrainingArguments

from course_utils.setting_checks import setting_problems
from preflight.findings import Finding, finding
from preflight.lora_targets.discovery import Model, open_model
from preflight.training_check.adapter_rules import rule_findings
from preflight.training_check.adapters import (
    adalora_findings,
    checkpointing_findings,
    copied_findings,
    quantization_findings,
    rank_findings,
    switched_off_findings,
    target_findings,
    unmatched_findings,
)
from preflight.training_check.columns import column_findings
from preflight.training_check.loss import balance_findings, head_findings
from preflight.training_check.merging import merge_findings
from preflight.training_check.method_rules import method_findings
from preflight.training_check.new_parts import new_part_findings
from preflight.training_check.preference import preference_findings
from preflight.training_check.probing import base_of
from preflight.training_check.report import TrainingReport
from preflight.training_check.resume import check_resume
from preflight.training_check.rewards import reward_findings
from preflight.training_check.rows import row_findings
from preflight.training_check.weights import (
    counts,
    reference_findings,
    share_findings,
    step_findings,
)

__all__ = ["TrainingReport", "check_resume", "check_settings", "check_trainer"]


def check_settings(
    args: TrainingArguments | None = None,
    peft_config: PeftConfig | None = None,
    model: Model | None = None,
) -> TrainingReport:
    """Return what is wrong with training arguments and a PEFT config, before a trainer is built.

    With `model` (a model without an adapter, or what `lora_targets.discover` takes) the config's
    target_modules are held against it, too.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `lora_targets.discover`, for `model`.
    """
    given = [type(one).__name__ for one in (args, peft_config) if one is not None]
    findings = list(_setting_findings(args, peft_config))
    targets = getattr(peft_config, "target_modules", None)
    if model is not None and targets:
        findings += target_findings(model, targets if isinstance(targets, str) else sorted(targets))
    if peft_config is not None:
        rules = method_findings(peft_config)
        if model is not None:
            rules = rule_findings(peft_config, open_model(model)[1])
        findings += rules
    return TrainingReport(" and ".join(given) or "no settings", tuple(findings))


def _setting_findings(
    args: TrainingArguments | None, config: PeftConfig | None
) -> Iterator[Finding]:
    """Yield what is wrong with settings by themselves, without a model."""
    for problem in setting_problems(args, config):
        yield finding(problem.code, problem.what, problem.fix)
    yield from checkpointing_findings(args, config)


def check_trainer(trainer: Trainer) -> TrainingReport:
    """Return what is wrong with a trainer that is built and not trained yet.

    It takes Trainer, SFTTrainer, DPOTrainer, GRPOTrainer, and of others what they share.

    Next to its settings: how much is trained, names that matched nothing, ranks above a layer's
    size, an adapter that is another one when merged, switched off, saved or loaded, a base model
    quantized otherwise than meant, steps that rounding undoes, a reference that is another model,
    rows without a label, columns that are dropped. One row goes through the model, to hold the
    trainer's loss against that of the model's logits; of DPOTrainer two pairs, to hold the policy
    against its reference. Of GRPOTrainer the model answers one prompt, and up to four where all
    rewards of a group are equal; its reward functions are called on that, and on a few odd texts.
    Nothing is changed and no random number drawn, so the training goes as it would have (but for
    what a reward function itself keeps).
    """
    model, base = trainer.model, base_of(trainer.model)
    trained, total = counts(model)
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        findings = [
            *_setting_findings(trainer.args, config),
            *unmatched_findings(model, config),
            *rank_findings(model),
            *adalora_findings(trainer, config),
            *rule_findings(config, model),
            *switched_off_findings(trainer, config),
            *copied_findings(trainer, config),
            *merge_findings(model),
            *new_part_findings(model),
        ]
    else:
        findings = list(_setting_findings(trainer.args, None))
    about = (
        f"{type(trainer).__name__} on {type(base).__name__}: trains {trained:,} of {total:,} "
        f"parameters ({trained / total:.2%}) at learning rate {trainer.args.learning_rate}"
    )
    findings += [
        *share_findings(model, trained, total),
        *reference_findings(trainer),
        *step_findings(trainer),
        *quantization_findings(model),
        *head_findings(trainer),
        *balance_findings(trainer),
        *row_findings(trainer.train_dataset, base),
        *column_findings(trainer),
    ]
    findings += preference_findings(trainer, {one.code for one in findings})
    findings += reward_findings(trainer)
    return TrainingReport(about, tuple(findings))
