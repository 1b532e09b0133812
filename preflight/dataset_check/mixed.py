"""Which form each row of a split has, and which one most rows have.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from preflight.dataset_check.formats import filled, lacks, other_form, recognise
from preflight.dataset_check.forms import Format, Row, select_code
from preflight.dataset_check.pairs import as_pairs
from preflight.dataset_check.prompts import as_prompts
from preflight.dataset_check.report import Tally


def _form_for(trainer: str, known: Format, columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """Return the form in which a trainer takes columns, of which `known` is the one for SFT."""
    if trainer == "grpo":
        return as_prompts(columns, sample)
    return as_pairs(known, columns, sample) if trainer == "dpo" else known


@dataclass
class _Part:
    """The rows of one form."""

    form: Format
    columns: list[str]
    rows: Tally


class Forms:
    """The forms of the rows of a split, counted while they are read.

    A split has one form, as a rule: that of most rows of `sample`. A row that lacks a column of it
    may have another form of its own, though; the last word is `most`, after the last row.
    """

    def __init__(
        self, columns: Sequence[str], sample: Sequence[Row], max_rows: int, trainer: str = "sft"
    ) -> None:
        known = recognise(columns, sample)
        self.pairs = known if known.worse else None  # what SFTTrainer would take of pairs
        self.form = _form_for(trainer, known, columns, sample)
        self._trainer = trainer
        self._max_rows = max_rows
        names = dict.fromkeys(n for r in sample if not lacks(self.form, r) for n in filled(r))
        self._parts = {self.form.name: _Part(self.form, [*names], Tally(max_rows))}
        self._others: dict[tuple[str, ...], Format | None] = {}

    def of(self, row: Row, number: int) -> Format:
        """Return the form of a row, and count it."""
        form = self.form
        if lacks(form, row):
            names = filled(row)
            if names not in self._others:
                self._others[names] = other_form(row) if self._trainer == "sft" else None
            form = self._others[names] or form
        part = self._parts.get(form.name)
        if part is None:
            part = _Part(form, [*filled(row)], Tally(self._max_rows))
            self._parts[form.name] = part
        part.rows.add(number)
        return part.form

    def most(self) -> Format:
        """Return the form of most rows; its mapping leaves out the rows of other forms."""
        part = self._most
        fewer = sum(other.rows.count for other in self._parts.values()) - part.rows.count
        if not fewer:
            return part.form
        needed = [*part.form.source.values()]
        kept = f"all(row[name] is not None for name in {needed})"
        mapping = f"dataset = dataset.filter(lambda row: {kept})"
        mapping += f"  # leaves out {fewer} rows of another form\n"
        mapping += select_code(part.columns, part.columns)
        mapping += f"\n{part.form.mapping}" if part.form.mapping else ""
        return replace(part.form, mapping=mapping)

    def fewer(self) -> Iterator[Tally]:
        """Yield the rows of each form that fewer rows have."""
        for part in self._parts.values():
            if part is not self._most and part.rows.count:
                names = {"most rows": self._most.form.name, "these": part.form.name}
                part.rows.add(example=names)
                yield part.rows

    @property
    def _most(self) -> _Part:
        return max(self._parts.values(), key=lambda part: part.rows.count)
