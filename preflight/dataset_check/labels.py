"""Labels of another type than the others of their column.

Used by lessons: 01.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from preflight.dataset_check.forms import Row
from preflight.dataset_check.rows import LABEL_COLUMNS, Fault

USUAL = 0.8  # of the labels of a column, the share that have one type
FRACTIONS = 0.05  # the share of fractions from which whole numbers among them are right


class LabelTypes:
    """The types that the columns of labels have, as the first rows show them."""

    def __init__(self, sample: Sequence[Row]) -> None:
        self._usual: dict[str, str] = {}
        for name in LABEL_COLUMNS:
            kinds = Counter(_kind(row[name]) for row in sample if row.get(name) is not None)
            if kinds["float"] > FRACTIONS * kinds.total():
                kinds["float"] += kinds.pop("int", 0)
            kind, count = next(iter(kinds.most_common(1)), ("", 0))
            if count and count >= USUAL * kinds.total():
                self._usual[name] = kind

    def faults(self, row: Row) -> Iterator[Fault]:
        """Yield a fault for each label of another type; one that is absent is none."""
        for name, usual in self._usual.items():
            if name not in row:
                continue
            kind = _kind(row[name])
            fits = kind == usual or (kind, usual) == ("int", "float")
            if not fits and not (kind == "list" and usual.startswith("list")):
                yield "label_type", {name: row[name], "most are": usual}


def _kind(value: Any) -> str:
    if isinstance(value, list):
        kinds = sorted({_kind(item) for item in value})
        return f"list of {' and '.join(kinds)}" if kinds else "list"
    return type(value).__name__
