"""Training arguments and PEFT configs: values that no library refuses, or not in plain words.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peft import PeftConfig
from transformers import TrainingArguments

from course_utils.setting_checks import setting_problems
from preflight.dataset_check import Finding
from preflight.lora_targets import check_targets
from preflight.lora_targets.discovery import Model
from preflight.training_check.report import TrainingReport, finding


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
    findings = list(setting_findings(args, peft_config))
    targets = getattr(peft_config, "target_modules", None)
    if model is not None and targets:
        findings += target_findings(model, targets if isinstance(targets, str) else sorted(targets))
    return TrainingReport(" and ".join(given) or "no settings", tuple(findings))


def setting_findings(
    args: TrainingArguments | None, config: PeftConfig | None
) -> Iterator[Finding]:
    """Yield what is wrong with settings by themselves, without a model."""
    for problem in setting_problems(args, config):
        yield finding(problem.code, problem.what, problem.fix)


def target_findings(model: Model, names: Iterable[str] | str) -> Iterator[Finding]:
    """Yield the target names that match nothing in a model, or not what they seem to."""
    check = check_targets(model, names)
    wrong = [(name.name, name.problem, name.nearest) for name in check.names if name.problem]
    if check.error and not wrong:  # of all the names together
        wrong = [(names, check.error, "")]
    for name, problem, nearest in wrong:
        yield finding(
            "target_modules",
            f"target_modules has {name!r}: {problem}. Allowed are names of layers; of a wrong one "
            "next to a right one peft says nothing.",
            (f"Write {nearest}. " if nearest else "")
            + "lora_targets.discover(model) lists the layers.",
        )
