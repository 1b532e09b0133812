"""Examines a dataset for supervised fine-tuning before any training.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from preflight.dataset_check.contents import Contents
from preflight.dataset_check.forms import MEDIA, SETTINGS, Format, Row
from preflight.dataset_check.labels import LabelTypes
from preflight.dataset_check.mixed import Forms
from preflight.dataset_check.near import NearDuplicates
from preflight.dataset_check.reading import Split, open_splits
from preflight.dataset_check.rendering import Renderer
from preflight.dataset_check.report import Collector, Finding, Report
from preflight.dataset_check.rows import Repeats, label_faults, row_faults, trainable
from preflight.dataset_check.rules import RULES
from preflight.dataset_check.tokens import TokenFaults, tokenizer_faults

__all__ = ["Finding", "Report", "check"]

SAMPLE = 200  # rows from which the format is recognised


def check(
    dataset: object,
    tokenizer: Any = None,
    max_length: int | None = 1024,
    eval_dataset: object = None,
    *,
    num_labels: int | None = None,
    max_rows: int = 5,
    assistant_only_loss: bool = False,
) -> Report:
    """Examine a dataset for SFT before training: what is wrong, in which rows, how to fix it.

    `dataset` and `eval_dataset` are a `datasets.Dataset` or `DatasetDict`, a list of dicts, a
    DataFrame, a file (.jsonl, .json, .csv, .tsv, .parquet, also .gz), a folder of such files (a
    split for each name) or a hub id. Lengths are in tokens and need the tokenizer; `max_length` is
    the one you will give to SFTConfig (1024 is its default; None cuts nothing). `num_labels` is the
    number of classes if the rows have labels; `max_rows` is how many row numbers a finding keeps;
    `assistant_only_loss` is the one of your SFTConfig.

    Returns a Report. It foresees what SFTTrainer 1.16 does by default: cut at the end, and train on
    the completion only where there is one. Raises FileNotFoundError, ValueError or RuntimeError for
    a dataset that cannot be opened, and ValueError for a tokenizer or max_length of another kind.
    """
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
    checker = _Checker(tokenizer, max_length, num_labels, max_rows, renderer)
    checked = [checker.check(split, place) for place, split in enumerate(splits)]
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
    of_all = Collector("", max_rows)
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


@dataclass
class _Checked:
    """A split whose rows were read, and what was found in it."""

    split: Split
    form: Format
    columns: list[str]
    found: Collector

    def note_format(self) -> None:
        """Note what the columns lack, or what has to be done with them before training."""
        form, columns = self.form, self.columns
        absent = [name for name in form.source.values() if name not in columns]
        if absent:
            self.found.add("missing_column", example={"needed": absent, "there are": columns})
        elif form.target == "unknown" and columns:
            self.found.add("unknown_format", example=columns)
        if form.mapping:
            self.found.add("mapping_needed", example=columns)
        if form.note:
            self.found.add(form.note[0], example=form.note[1])
        media = [name for name in columns if name in MEDIA]
        if media and form.target in ("messages", "prompt-completion"):
            self.found.add("media", example=media)


@dataclass
class _Checker:
    """Looks for faults in one split after the other, and remembers the rows of those before."""

    tokenizer: Any
    max_length: int | None
    num_labels: int | None
    max_rows: int
    renderer: Renderer
    repeats: Repeats = field(default_factory=Repeats)
    near: NearDuplicates = field(init=False)

    def __post_init__(self) -> None:
        self.near = NearDuplicates(self.max_rows)

    def check(self, split: Split, place: int) -> _Checked:
        """Read a split once, from its first row to its last, and note the faults on the way."""
        found = Collector(split.name, self.max_rows)
        rows = iter(split.rows)
        sample = [*islice(rows, SAMPLE)]
        known = [row for row in sample if isinstance(row, dict)]
        columns = split.columns or [*dict.fromkeys(str(name) for row in known for name in row)]
        forms = Forms(columns, known, self.max_rows)
        checked = _Checked(split, forms.form, columns, found)
        tokens = TokenFaults(self.tokenizer, self.max_length, checked.form, self.renderer)
        others = _Others(self.tokenizer, self.max_length, self.renderer, found)
        first = [values for row in known for values in forms.form.examples(row)]
        contents = Contents(split.name, first, self.near, self.max_rows)
        labels = LabelTypes([] if checked.form.target == "tokens" else known)
        usable = self._usable(chain(sample, rows), place, checked, forms, others, contents, labels)
        for number, faults in tokens.of(usable):
            found.add_all(number, faults)
        others.flush()
        contents.note(found)
        checked.form = forms.most()
        for names, count, first in forms.fewer():
            found.add_rows("mixed_forms", first, count, names)
        if not split.count:
            found.add("empty_dataset")
        elif not columns:
            found.add("unknown_format", example="rows without a column")
        texts = [] if checked.form.chat else checked.form.source.values()
        as_json = [name for name in texts if type(split.features.get(name)).__name__ == "Json"]
        for code, of_part, said in split.loaded.of_parts():
            for number in of_part:
                found.add(code, number, said)
        as_json += split.loaded.as_json.values()
        if as_json:
            found.add("json_column", example=as_json)
        for file, of_file in split.faults.items():
            for code, line, reason in of_file:
                found.add(code, line, f"{file}: {reason}" if file else reason, file)
        return checked

    def _usable(
        self,
        rows: Iterable[Any],
        place: int,
        checked: _Checked,
        forms: Forms,
        others: _Others,
        contents: Contents,
        labels: LabelTypes,
    ) -> Iterator[tuple[int, Row]]:
        """Note what rows show by themselves, and yield those that can be tokenised."""
        split, found = checked.split, checked.found
        classes = {n: f.num_classes for n, f in split.features.items() if hasattr(f, "num_classes")}
        for number, row in enumerate(rows):
            split.count = number + 1
            if not isinstance(row, dict):
                found.add("wrong_type", number, row)
                continue
            form = forms.of(row, number)
            faults = [*split.loaded.faults(number, row, form.source.values())]
            if form.target != "tokens":
                faults += [*label_faults(row, classes, self.num_labels), *labels.faults(row)]
            for values in form.examples(row):
                own = row_faults(values, form)
                usable = trainable(values, own)
                if usable:
                    before = [*self.repeats.faults(values, place, row.get("tools"))]
                    own += before
                    if form.target not in ("tokens", "unknown"):
                        own += contents.faults(number, values, row.get("tools"), bool(before))
                faults += own
                if not usable or form.target == "unknown":
                    continue
                if form.chat:
                    values = _settings(row, form) | values
                if form is forms.form:
                    yield number, values
                else:
                    others.add(form, number, values)
            if faults:
                found.add_all(number, faults)


def _settings(row: Row, form: Format) -> Row:
    """Return what SFTTrainer gives the chat template next to the messages, where the row has it."""
    given = {name: row[name] for name in SETTINGS if name in row}
    if form.mapping and given.get("tools") == "":  # the mapping makes an empty list of it
        del given["tools"]
    return given


class _Others:
    """Tokenises rows of other forms than the first rows have, some at a time."""

    def __init__(
        self, tokenizer: Any, max_length: int | None, renderer: Renderer, found: Collector
    ) -> None:
        self._how, self._renderer, self._found = (tokenizer, max_length), renderer, found
        self._forms: dict[str, Format] = {}
        self._waiting: dict[str, list[tuple[int, Row]]] = {}

    def add(self, form: Format, number: int, values: Row) -> None:
        """Keep a row, and look at those kept when they are many."""
        self._forms[form.name] = form
        waiting = self._waiting.setdefault(form.name, [])
        waiting.append((number, values))
        if len(waiting) >= SAMPLE:
            self.flush()

    def flush(self) -> None:
        """Look at all that was kept."""
        for name, waiting in self._waiting.items():
            tokens = TokenFaults(*self._how, self._forms[name], self._renderer)
            for number, faults in tokens.of(iter(waiting)):
                self._found.add_all(number, faults)
        self._waiting.clear()
