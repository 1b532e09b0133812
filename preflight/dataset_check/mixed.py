"""Which form each row of a split has, and which one most rows have.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from preflight.dataset_check.formats import filled, lacks, other_form, recognise
from preflight.dataset_check.forms import Format, Row, select_code


@dataclass
class _Part:
    """The rows of one form: how many, and the first of them."""

    form: Format
    columns: list[str]
    count: int = 0
    rows: list[int] = field(default_factory=list)


class Forms:
    """The forms of the rows of a split, counted while they are read.

    A split has one form, as a rule: that of most rows of `sample`. A row that lacks a column of it
    may have another form of its own, though; the last word is `most`, after the last row.
    """

    def __init__(self, columns: Sequence[str], sample: Sequence[Row], max_rows: int) -> None:
        self.form = recognise(columns, sample)
        self._max_rows = max_rows
        names = dict.fromkeys(n for r in sample if not lacks(self.form, r) for n in filled(r))
        self._parts = {self.form.name: _Part(self.form, [*names])}
        self._others: dict[tuple[str, ...], Format | None] = {}

    def of(self, row: Row, number: int) -> Format:
        """Return the form of a row, and count it."""
        form = self.form
        if lacks(form, row):
            names = filled(row)
            if names not in self._others:
                self._others[names] = other_form(row)
            form = self._others[names] or form
        part = self._parts.get(form.name)
        if part is None:
            part = self._parts[form.name] = _Part(form, [*filled(row)])
        part.count += 1
        if len(part.rows) < self._max_rows:
            part.rows.append(number)
        return part.form

    def most(self) -> Format:
        """Return the form of most rows; its mapping leaves out the rows of other forms."""
        part = self._most
        fewer = sum(other.count for other in self._parts.values()) - part.count
        if not fewer:
            return part.form
        needed = [*part.form.source.values()]
        kept = f"all(row[name] is not None for name in {needed})"
        mapping = f"dataset = dataset.filter(lambda row: {kept})"
        mapping += f"  # leaves out {fewer} rows of another form\n"
        mapping += select_code(part.columns, part.columns)
        mapping += f"\n{part.form.mapping}" if part.form.mapping else ""
        return replace(part.form, mapping=mapping)

    def fewer(self) -> Iterator[tuple[dict[str, str], int, list[int]]]:
        """Yield each form that fewer rows have: what to quote, how many rows, the first ones."""
        for part in self._parts.values():
            if part is not self._most and part.count:
                names = {"most rows": self._most.form.name, "these": part.form.name}
                yield names, part.count, part.rows

    @property
    def _most(self) -> _Part:
        return max(self._parts.values(), key=lambda part: part.count)
