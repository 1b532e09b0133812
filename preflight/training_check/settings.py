"""Training arguments and PEFT configs: values that no library refuses, or not in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from peft import LoraConfig, PeftConfig
from transformers import TrainingArguments

from preflight.dataset_check import Finding
from preflight.lora_targets import check_targets
from preflight.lora_targets.discovery import Model
from preflight.training_check.report import TrainingReport, finding


@dataclass(frozen=True)
class Range:
    """The values that a setting may have, and what to give."""

    right: Callable[[Any], bool]
    allowed: str
    fix: str


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


# torch has words of its own for a learning rate below 0, peft for a rank below 1.
ARGUMENTS = {
    "learning_rate": Range(
        lambda rate: _number(rate) and rate != 0 and not rate > 10,
        "a number above 0 and at most 10",
        "At 0 no weight moves; above 10 AdamW moves each by more than 10 a step, which "
        "destroys the model. Usual are 2e-4 for LoRA and 2e-5 for all weights of a large model.",
    ),
    "gradient_accumulation_steps": Range(_whole, "a whole number from 1 on", "1 is the default."),
    "max_length": Range(
        lambda length: length is None or _whole(length),
        "a whole number from 1 on, or None for no limit",
        "It is in tokens; 1024 is SFTConfig's default.",
    ),
}
ADAPTER = {
    "r": Range(lambda r: type(r) is int, "a whole number from 1 on", "8 and 16 are usual."),
    "lora_alpha": Range(
        lambda alpha: _number(alpha) and alpha > 0,
        "a number above 0",
        "What the adapter adds is multiplied by lora_alpha / r: at 0 nothing is learned, and a "
        "minus means nothing. r and 2 r are usual.",
    ),
    "lora_dropout": Range(
        lambda share: _number(share) and 0 <= share < 1,
        "a number from 0 on and below 1",
        "At 1 the adapter gets nothing but zeros and learns nothing; below 0, or nan, there is no "
        "dropout at all. 0 and 0.05 are usual.",
    ),
}


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
    if args is not None:
        yield from _outside(args, ARGUMENTS)
        if args.max_steps <= 0 and args.num_train_epochs <= 0:
            yield finding(
                "no_steps",
                f"num_train_epochs is {args.num_train_epochs!r} and max_steps {args.max_steps!r}: "
                "train() makes no step and says nothing. Allowed is a number above 0 for one.",
                "Set num_train_epochs=1.",
            )
    if isinstance(config, LoraConfig):
        yield from _outside(config, ADAPTER)


def _outside(settings: object, ranges: dict[str, Range]) -> Iterator[Finding]:
    for name, range_ in ranges.items():
        value = getattr(settings, name, None)
        if hasattr(settings, name) and not range_.right(value):
            yield finding(name, f"{name} is {value!r}. Allowed is {range_.allowed}.", range_.fix)


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
            "beside a right one peft says nothing.",
            (f"Write {nearest}. " if nearest else "")
            + "lora_targets.discover(model) lists the layers.",
        )
