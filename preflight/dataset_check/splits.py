"""A split of a dataset, read once: what its rows show one by one, and then all together.

Used by lessons: 01.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from preflight.dataset_check.contents import Contents
from preflight.dataset_check.forms import MEDIA, SETTINGS, Format, Row
from preflight.dataset_check.labels import LabelTypes
from preflight.dataset_check.mixed import Forms
from preflight.dataset_check.near import NearDuplicates
from preflight.dataset_check.pairs import PairFaults, mark_fault
from preflight.dataset_check.preferences import MARKS
from preflight.dataset_check.prompts import Rewards
from preflight.dataset_check.reading import Split
from preflight.dataset_check.rendering import Renderer, tools_of
from preflight.dataset_check.report import Collector
from preflight.dataset_check.rows import (
    Fault,
    Repeats,
    label_faults,
    row_faults,
    texts_in,
    trainable,
)
from preflight.dataset_check.rules import Rule, rules_of
from preflight.dataset_check.sampling import Sample
from preflight.dataset_check.tokens import TokenFaults

SAMPLE = 200  # rows from which the format is recognised


@dataclass
class Checker:
    """What all splits are checked with, and what is remembered of the rows of those before."""

    tokenizer: Any
    max_length: int | None
    num_labels: int | None
    max_rows: int
    renderer: Renderer
    every_row: bool
    trainer: str | None
    repeats: Repeats = field(default_factory=Repeats)
    near: NearDuplicates = field(init=False)
    seen_pairs: set[bytes] = field(default_factory=set)
    rules: dict[str, Rule] = field(init=False)

    def __post_init__(self) -> None:
        self.near = NearDuplicates(self.max_rows)
        self.rules = rules_of(self.trainer or "sft")

    def pairs(self, form: Format | None) -> PairFaults | None:
        """Return what looks for the faults of pairs, if rows are pairs and looked at as such."""
        if form is None or self.trainer in ("sft", "grpo"):
            return None
        renderer = self.renderer if self.tokenizer is not None else None
        return PairFaults(form, renderer, self.max_length, self.seen_pairs)

    def tokens(self, form: Format) -> TokenFaults:
        """Return what looks for the faults of tokens in rows of a form."""
        return TokenFaults(self.tokenizer, self.max_length, form, self.renderer, self.every_row)


class Checked:
    """A split, and what is found in it while its rows are read, once and in their order."""

    def __init__(self, checker: Checker, split: Split, place: int) -> None:
        self.split = split
        self.found = Collector(split.name, checker.max_rows, checker.rules)
        self._checker, self._place = checker, place
        rows = iter(split.rows)
        sample = [*islice(rows, SAMPLE)]
        known = [row for row in sample if isinstance(row, dict)]
        self._rows = chain(sample, rows)
        self.columns = split.columns or [*dict.fromkeys(str(name) for row in known for name in row)]
        trainer = checker.trainer or "sft"
        self._forms = Forms(self.columns, known, checker.max_rows, trainer)
        self.form = self._forms.form
        self._pairs = checker.pairs(self._forms.pairs)
        prompts = trainer == "grpo"
        self._rewards = Rewards(self.form, self.columns, checker.max_rows) if prompts else None
        self._marks: Counter[bool] = Counter()
        self._tokens = checker.tokens(self.form)
        self._others = _Others(checker, self.found)
        first = [values for row in known for values in self.form.examples(row)]
        self._contents = Contents(split.name, first, checker.near, checker.max_rows)
        self._labels = LabelTypes([] if self.form.target == "tokens" else known)
        features = split.features.items()
        self._classes = {n: f.num_classes for n, f in features if hasattr(f, "num_classes")}

    def read(self) -> None:
        """Look at each row, and then at what they show together."""
        found = self.found
        for number, faults in self._tokens.of(self._usable()):
            found.add_all(number, faults)
        self._others.flush()
        self._note_passed_over([self._tokens.sample, *self._others.samples])
        self._contents.note(found)
        for whole in (self._pairs, self._rewards):
            if whole is not None:
                whole.note(found)
        for code, example in mark_fault(self._marks):
            found.add(code, example=example)
        self.form = self._forms.most()
        for fewer in self._forms.fewer():
            found.add_tally("mixed_forms", fewer)
        self._note_whole()

    def _usable(self) -> Iterator[tuple[int, Row]]:
        """Note what rows show by themselves, and yield those that can be tokenised."""
        for number, row in enumerate(self._rows):
            self.split.count = number + 1
            if not isinstance(row, dict):
                self.found.add("wrong_type", number, row)
                continue
            form, tools = self._forms.of(row, number), tools_of(row)
            faults = [*self.split.loaded.faults(number, row, form.source.values())]
            if self._pairs is not None and form is self._forms.form:
                faults += self._pairs.of(row)
            self._marks.update(row[mark] for mark in MARKS if form.marked and mark in row)
            if form.target not in ("tokens", "prompt"):
                faults += label_faults(row, self._classes, self._checker.num_labels)
                faults += self._labels.faults(row)
            for place, values in enumerate(form.examples(row)):
                texts = texts_in(values)
                own = row_faults(values, form, texts)
                worse = bool(place and form.paired)
                if worse:  # an empty one teaches something, and has a finding of its own
                    own = [fault for fault in own if fault[0] != "empty_value"]
                usable = trainable(values, own)
                if self._rewards is not None:
                    own += self._rewards.of(number, row, values["prompt"])
                # What a worse answer says may be as bad as it likes.
                if usable and not worse:
                    before = [*self._before(form, row, values, texts, tools)]
                    own += before
                    if form.target not in ("tokens", "unknown"):
                        own += self._contents.faults(number, values, tools, bool(before))
                faults += own
                if not usable or form.target == "unknown":
                    continue
                if form.chat:
                    values = _settings(row, tools, form) | values
                if form is self._forms.form:
                    yield number, values
                else:
                    self._others.add(form, number, values)
            if faults:
                self.found.add_all(number, faults)

    def _before(
        self, form: Format, row: Row, values: Row, texts: list[str], tools: Any
    ) -> Iterator[Fault]:
        """Yield a fault if a row came before; to one prompt there may be many pairs."""
        repeats = self._checker.repeats
        if not form.paired:
            yield from repeats.faults(values, texts, self._place, tools)
            return
        values = values | {"rejected": form.examples(row)[-1]["completion"]}
        for code, example in repeats.faults(values, texts_in(values), self._place, tools):
            if code != "conflicting_answers":
                yield code, example

    def _note_passed_over(self, samples: list[Sample]) -> None:
        passed = sum(sample.passed_over for sample in samples)
        if passed:
            total = sum(sample.total for sample in samples)
            self.found.add("sampled", example=f"{total - passed:,} of {total:,} rows looked at")

    def _note_whole(self) -> None:
        """Note what is wrong with the split or with its files as a whole."""
        split, found = self.split, self.found
        if not split.count:
            found.add("empty_dataset")
        elif not self.columns:
            found.add("unknown_format", example="rows without a column")
        texts = [] if self.form.chat else self.form.source.values()
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


def _settings(row: Row, tools: Any, form: Format) -> Row:
    """Return what SFTTrainer gives the chat template next to the messages, where the row has it."""
    given = {name: row[name] for name in SETTINGS if name in row}
    if form.mapping and given.get("tools") == "":  # the mapping makes an empty list of it
        del given["tools"]
    elif "tools" in given:
        given["tools"] = tools
    return given


class _Others:
    """Tokenises rows of other forms than the first rows have, some at a time."""

    def __init__(self, checker: Checker, found: Collector) -> None:
        self._checker, self._found = checker, found
        self._tokens: dict[str, TokenFaults] = {}
        self._waiting: dict[str, list[tuple[int, Row]]] = {}

    def add(self, form: Format, number: int, values: Row) -> None:
        """Keep a row, and look at those kept when they are many."""
        if form.name not in self._tokens:
            self._tokens[form.name] = self._checker.tokens(form)
        waiting = self._waiting.setdefault(form.name, [])
        waiting.append((number, values))
        if len(waiting) >= SAMPLE:
            self.flush()

    @property
    def samples(self) -> list[Sample]:
        """What was looked at, of each form."""
        return [tokens.sample for tokens in self._tokens.values()]

    def flush(self) -> None:
        """Look at all that was kept."""
        for name, waiting in self._waiting.items():
            for number, faults in self._tokens[name].of(iter(waiting)):
                self._found.add_all(number, faults)
        self._waiting.clear()
