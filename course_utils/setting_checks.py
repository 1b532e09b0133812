"""Training arguments and PEFT configs: values that no library refuses, or not in plain words.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

from course_utils.configs import build_empty


@dataclass(frozen=True)
class Range:
    """The values that a setting may have, and what to give."""

    right: Callable[[Any], bool]
    allowed: str
    fix: str


@dataclass(frozen=True)
class SettingProblem:
    """What is wrong with a setting, with what is allowed, and how to fix it."""

    code: str
    what: str
    fix: str


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


# torch has words of its own for a learning rate below 0, peft for a rank below 1.
ARGUMENTS = {
    "learning_rate": Range(
        lambda rate: _number(rate) and rate != 0 and not rate > 10,
        "a number above 0 and at most 10",
        "At 0 no weight moves; above 10 AdamW moves each by more than 10 a step, which "
        "destroys the model. Usual are 2e-4 for LoRA and 2e-5 for all weights of a large model.",
    ),
    "gradient_accumulation_steps": Range(_count, "a whole number from 1 on", "1 is the default."),
    "max_length": Range(
        lambda length: length is None or _count(length),
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


def setting_problems(
    args: TrainingArguments | None = None,
    config: PeftConfig | None = None,
    model: PretrainedConfig | None = None,
) -> Iterator[SettingProblem]:
    """Yield what is wrong with training arguments and a PEFT config.

    With `model` the PEFT config is tried on the model that it describes, without weights.

    Raises:
        Exception: whatever peft raises for a config that it refuses for the model.
    """
    if args is not None:
        yield from _outside(args, ARGUMENTS)
        if args.max_steps <= 0 and args.num_train_epochs <= 0:
            yield SettingProblem(
                "no_steps",
                f"num_train_epochs is {args.num_train_epochs!r} and max_steps {args.max_steps!r}: "
                "train() makes no step and says nothing. Allowed is a number above 0 for one.",
                "Set num_train_epochs=1.",
            )
    if isinstance(config, LoraConfig):
        yield from _outside(config, ADAPTER)
    if config is not None and model is not None:
        yield from _unmatched(config, build_empty(model))


def require_none(problems: Iterable[SettingProblem]) -> None:
    """Raise ValueError with all problems, if there are any."""
    found = [f"{problem.what} {problem.fix}".rstrip() for problem in problems]
    if found:
        raise ValueError("\n".join(found))


def matching(target_modules: Collection[str] | str, names: Iterable[str]) -> list[str]:
    """Return the whole names, in their order, that peft takes for targets.

    A string is a regular expression for the whole name; an entry of a list is the whole name, or
    its last parts up to a dot.
    """
    config = LoraConfig(target_modules=target_modules)
    return [name for name in names if name and check_target_module_exists(config, name)]


def unmatched_targets(model: PeftModel) -> list[str]:
    """Return the names in a config's target_modules of which the model adapts no layer.

    Of all the names together peft raises, and a pattern is one name; of one among others it says
    nothing.
    """
    adapted = getattr(model, "targeted_module_names", None)
    targets = getattr(model.active_peft_config, "target_modules", None) or ()
    if adapted is None or isinstance(targets, str):
        return []
    return [name for name in sorted(targets) if not matching([name], adapted)]


def _unmatched(config: PeftConfig, empty: PreTrainedModel) -> Iterator[SettingProblem]:
    leaves = {name.rpartition(".")[2] for name, _ in empty.named_modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(empty, config, low_cpu_mem_usage=True)
    except RuntimeError:  # adapters that begin with a decomposition of the weights, such as PiSSA
        return
    for target in unmatched_targets(adapted):
        close = difflib.get_close_matches(target, leaves, n=1)
        yield SettingProblem(
            "target_modules",
            f"target_modules has {target!r}: matches nothing. Allowed are names of layers; of "
            "a wrong one next to a right one peft says nothing.",
            f"Write {close[0]}." if close else "",
        )


def _outside(settings: object, ranges: dict[str, Range]) -> Iterator[SettingProblem]:
    for name, range_ in ranges.items():
        value = getattr(settings, name, None)
        if hasattr(settings, name) and not range_.right(value):
            what = f"{name} is {value!r}. Allowed is {range_.allowed}."
            yield SettingProblem(name, what, range_.fix)
