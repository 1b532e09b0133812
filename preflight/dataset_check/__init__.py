"""Examines a dataset for supervised fine-tuning before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from preflight.dataset_check.formats import Format, Row, recognise
from preflight.dataset_check.reading import Split, open_splits
from preflight.dataset_check.report import Collector, Finding, Report, in_order
from preflight.dataset_check.rows import Repeats, label_faults, row_faults, trainable
from preflight.dataset_check.tokens import TokenFaults, tokenizer_faults

__all__ = ["Finding", "Report", "check"]

SAMPLE = 200  # rows from which the format is recognised
BATCH = 500  # rows tokenised at once


def check(
    dataset: object,
    tokenizer: Any = None,
    max_length: int | None = 1024,
    eval_dataset: object = None,
    *,
    num_labels: int | None = None,
    max_rows: int = 5,
) -> Report:
    """Examine a dataset for SFT before training: what is wrong, in which rows, how to mend it.

    `dataset` and `eval_dataset` are a `datasets.Dataset` or `DatasetDict`, a list of dicts, a
    DataFrame, a file (.jsonl, .json, .csv, .tsv, .parquet, also .gz), a folder of such files (a
    split for each name) or a hub id. Lengths are in tokens and need the tokenizer; `max_length` is
    the one you will give to SFTConfig (1024 is its default; None cuts nothing). `num_labels` is the
    number of classes if the rows have labels; `max_rows` is how many row numbers a finding keeps.

    Returns a Report. It foresees what SFTTrainer 1.16 does by default: cut at the end, and train on
    the completion only where there is one. Raises FileNotFoundError, ValueError or RuntimeError for
    a dataset that cannot be opened, and ValueError for a tokenizer or max_length of another kind.
    """
    tokenizer = _validate(tokenizer, max_length)
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

    settings = _Settings(tokenizer, max_length, num_labels, max_rows)
    repeats = Repeats()
    checked = [_check_split(split, n, repeats, settings) for n, split in enumerate(splits)]
    form = checked[0].form
    findings: list[Finding] = []
    for place, one in enumerate(checked):
        if place and one.rows and one.form.name != form.name:
            one.found.add("format_differs", example={"here": one.form.name, "first": form.name})
        if place == 0 or one.form.name != form.name:
            _note_format(one)
        findings += [*one.found.findings(), *one.of_files]
    whole = Collector("", max_rows)
    if tokenizer is None:
        whole.add("not_checked")
    else:
        for code, example in tokenizer_faults(tokenizer, form):
            whole.add(code, example=example)
    return Report(
        source=source,
        format=form.name,
        mapping=form.mapping,
        rows={split.name: one.rows for split, one in zip(splits, checked, strict=True)},
        columns=tuple(checked[0].columns),
        max_length=max_length,
        findings=in_order([*findings, *whole.findings()]),
    )


@dataclass(frozen=True)
class _Settings:
    tokenizer: Any
    max_length: int | None
    num_labels: int | None
    max_rows: int


@dataclass(frozen=True)
class _Checked:
    form: Format
    columns: Sequence[str]
    rows: int
    found: Collector
    of_files: Sequence[Finding]


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


def _check_split(split: Split, place: int, repeats: Repeats, settings: _Settings) -> _Checked:
    """Read one split once, from its first row to its last, and note the faults on the way."""
    found = Collector(split.name, settings.max_rows)
    rows = iter(split.rows)
    sample = list(islice(rows, SAMPLE))
    known = [row for row in sample if isinstance(row, dict)]
    columns = split.columns or list(dict.fromkeys(str(name) for row in known for name in row))
    form = recognise(columns, known)
    classes = {n: f.num_classes for n, f in split.features.items() if hasattr(f, "num_classes")}
    tokens = TokenFaults(settings.tokenizer, settings.max_length, form)
    waiting: list[tuple[int, Row]] = []
    count = 0
    for number, row in enumerate(chain(sample, rows)):
        count += 1
        if not isinstance(row, dict):
            found.add("wrong_type", number, row)
            continue
        values = form.extract(row)
        faults = row_faults(values, form)
        if form.target != "tokens":
            faults += label_faults(row, classes, settings.num_labels)
        usable = trainable(values, faults)
        if usable:
            faults += repeats.faults(values, place)
        found.add_all(number, faults)
        if usable and form.target != "unknown":
            waiting.append((number, values))
        if len(waiting) == BATCH:
            _note_tokens(waiting, tokens, found)
            waiting = []
    _note_tokens(waiting, tokens, found)
    if not count:
        found.add("empty_dataset")
    elif not columns:
        found.add("unknown_format", example="rows without a column")
    texts = [] if form.chat else form.source.values()
    as_json = [name for name in texts if type(split.features.get(name)).__name__ == "Json"]
    if as_json:
        found.add("json_column", example=as_json)
    of_files: list[Finding] = []
    for file, faults_of_file in split.faults.items():  # a finding each: lines count in one file
        of_file = Collector(split.name, settings.max_rows)
        for code, line, reason in faults_of_file:
            of_file.add(code, line, f"{file}: {reason}" if file else reason)
        of_files += of_file.findings()
    return _Checked(form, columns, count, found, of_files)


def _note_format(checked: _Checked) -> None:
    form, columns, found = checked.form, list(checked.columns), checked.found
    absent = [name for name in form.source.values() if name not in columns]
    if absent:
        found.add("missing_column", example={"needed": absent, "there are": columns})
    elif form.target == "unknown" and columns:
        found.add("unknown_format", example=columns)
    if form.mapping:
        found.add("mapping_needed", example=columns)


def _note_tokens(waiting: list[tuple[int, Row]], tokens: TokenFaults, found: Collector) -> None:
    for (number, _), faults in zip(waiting, tokens.of([row for _, row in waiting]), strict=True):
        found.add_all(number, faults)
