"""Examines a dataset for fine-tuning before any training: examples, pairs, prompts.

Used by lessons: 01.
"""

from __future__ import annotations

from typing import Any

from preflight.dataset_check.pair_rules import NAMES
from preflight.dataset_check.reading import open_splits
from preflight.dataset_check.rendering import Renderer
from preflight.dataset_check.report import Collector, Report
from preflight.dataset_check.rules import RULES
from preflight.dataset_check.splits import Checked, Checker
from preflight.dataset_check.tokens import tokenizer_faults
from preflight.findings import Finding

__all__ = ["Report", "check"]


def check(
    dataset: object,
    tokenizer: Any = None,
    max_length: int | None = 1024,
    eval_dataset: object = None,
    *,
    trainer: str | None = None,
    num_labels: int | None = None,
    max_rows: int = 5,
    assistant_only_loss: bool = False,
    every_row: bool = False,
) -> Report:
    """Examine a dataset for SFT before training: what is wrong, in which rows, how to fix it.

    `dataset` and `eval_dataset` are a `datasets.Dataset` or `DatasetDict`, a list of dicts, a
    DataFrame, a file (.jsonl, .json, .csv, .tsv, .parquet, also .gz), a folder of such files (a
    split for each name) or a hub id. Lengths are in tokens and need the tokenizer; `max_length` is
    the one you will give to SFTConfig (1024 is its default; None cuts nothing). `num_labels` is the
    number of classes if the rows have labels; `max_rows` is how many row numbers a finding keeps;
    `assistant_only_loss` is the one of your SFTConfig. Of a large split, a part is rendered and
    tokenised, and the report says which share; with `every_row` all of it is.

    `trainer` is "sft", "dpo" or "grpo"; "sft" says nothing of a worse answer. None, the default, is
    what the columns allow: SFT and, where rows have a better answer and a worse one, both.

    Returns a Report. It foresees what SFTTrainer 1.16 does by default: cut at the end, and train on
    the completion only where there is one; or what DPOTrainer or GRPOTrainer does. Raises
    FileNotFoundError, ValueError or RuntimeError for a dataset that cannot be opened, and
    ValueError for a tokenizer, max_length or trainer of another kind.
    """
    if trainer is not None and trainer not in NAMES:
        raise ValueError(
            f"trainer={trainer!r} was given. Allowed are {', '.join(NAMES)}, or None for what the "
            "columns allow. For KTO and reward models leave it out."
        )
    processor, tokenizer = tokenizer, _validate(tokenizer, max_length)
    source, splits = open_splits(dataset)
    if eval_dataset is not None:
        _, held_out = open_splits(eval_dataset)
        for split in held_out:
            split.name = "eval" if len(held_out) == 1 else f"eval {split.name}"
        splits += held_out
    names: set[str] = set()
    for split in splits:
        while split.name in names:
            split.name += " (2)"
        names.add(split.name)
    if not splits:
        raise ValueError(
            "check was given a dict without splits. It takes splits such as {'train': ..., "
            "'validation': ...}, or one dataset. Check how the dataset was made."
        )

    renderer = Renderer(processor, tokenizer, assistant_only_loss)
    checker = Checker(tokenizer, max_length, num_labels, max_rows, renderer, every_row, trainer)
    checked: list[Checked] = []
    for place, split in enumerate(splits):
        checked.append(Checked(checker, split, place))
        checked[-1].read()
    first = checked[0]
    findings: list[Finding] = []
    for one in checked:
        differs = one.form.name != first.form.name
        if differs and one.split.count:
            names = {"here": one.form.name, "first": first.form.name}
            one.found.add("format_differs", example=names)
        if differs or one is first:
            one.note_format()
        findings += one.found.findings()
    of_all = Collector("", max_rows, checker.rules)
    if tokenizer is None:
        of_all.add("not_checked")
    else:
        for code, example in tokenizer_faults(renderer, first.form):
            of_all.add(code, example=example)
    findings += of_all.findings()
    order = [*RULES]
    return Report(
        source=source,
        format=first.form.name,
        mapping=first.form.mapping,
        rows={split.name: split.count for split in splits},
        columns=tuple(first.columns),
        max_length=max_length,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.code))),
    )


def _validate(tokenizer: Any, max_length: int | None) -> Any:
    """Return the tokenizer (that of a processor), or raise ValueError for a bad argument."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer is not None and not hasattr(tokenizer, "apply_chat_template"):
        raise ValueError(
            f"check was given {tokenizer!r} as a tokenizer. It takes a tokenizer of transformers "
            "or None. Load it with AutoTokenizer.from_pretrained(...)."
        )
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(
            f"max_length={max_length!r} was given. It is a whole number of at least 1, or None for "
            "no limit. Give the max_length of your SFTConfig, such as 1024."
        )
    return tokenizer
