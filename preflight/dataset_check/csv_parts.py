"""What load_dataset makes of a CSV file, of which it reads 10,000 rows at a time.

The first part gives each column its type. In a later one text that looks like numbers throughout is
read as numbers, and these become text again: '007' comes back as '7'.

Used by lessons: 01.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from preflight.dataset_check.parsing import suffix_of
from preflight.dataset_check.report import quote

PART = 10_000  # rows
FEW = 500  # rows, of which it shows which columns may be no texts
# A quick look; pandas has the last word.
MAYBE = re.compile(r"\s*([-+]?[\d.]+([eE][-+]?\d+)?|true|false|[-+]?inf(inity)?)\s*", re.I)
Found = tuple[str, list[int], str]  # a code, the rows, the first of them in words


def schema_of(path: Path) -> Iterable[pa.Field]:
    """Return the columns that are no text to load_dataset.

    Raises ValueError for a file that is no CSV.
    """
    separator = "\t" if suffix_of(path) == ".tsv" else ","
    start = pd.read_csv(path, sep=separator, nrows=FEW)
    # The texts are left out of the rest, so that it needs little memory.
    other = [n for n, kind in enumerate(start.dtypes) if not pd.api.types.is_string_dtype(kind)]
    if not other:
        return ()
    frame = pd.read_csv(path, sep=separator, nrows=PART, usecols=other, low_memory=False)
    return pa.Schema.from_pandas(frame, preserve_index=False)


class LaterTexts:
    """Finds the later parts in which a column of texts looks like numbers throughout."""

    def __init__(self) -> None:
        self._next = 0  # the row at which the next part begins
        self._values: dict[str, list[tuple[int, str]]] = {}
        self._found: list[Found] = []

    def needs(self, number: int) -> bool:
        """Return whether it has to see this row: a part begins, or may hold only numbers."""
        return number == self._next or bool(self._values)

    def see(self, number: int, row: dict[str, Any], columns: Iterable[str], new: bool) -> None:
        """Take the next row; `new` says that a file begins with it."""
        if new or number == self._next:
            self._close()
            self._next = number + PART
            self._values = {name: [] for name in columns} if number else {}
        for name in [*self._values]:
            text = row.get(name)
            if isinstance(text, str) and not MAYBE.fullmatch(text):
                del self._values[name]
            else:
                self._values[name].append((number, text or ""))

    def found(self) -> list[Found]:
        """Return what was found, once all rows were seen."""
        self._close()
        return self._found

    def _close(self) -> None:
        for name, values in self._values.items():
            texts = [text for _, text in values]
            code, read = "load_changes", _as_read(texts)
            if read is None:
                code, read = "load_stops", [""] * len(texts)
            rows = [n for (n, text), now in zip(values, read, strict=True) if text and text != now]
            if rows:
                place = [number for number, _ in values].index(rows[0])
                now = f" becomes {quote(read[place])}" if code == "load_changes" else ""
                self._found.append((code, rows, f"{name}: the text {quote(texts[place], 30)}{now}"))
        self._values = {}


def _as_read(texts: list[str]) -> list[str | None] | None:
    """Return the cells of a column as pandas and then load_dataset read them; None if it stops."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["text", "row"], *([text, "x"] for text in texts)])
    file.seek(0)
    try:
        column = pa.Table.from_pandas(pd.read_csv(file, usecols=["text"]))["text"]
    except (OverflowError, pa.ArrowException):
        return None
    return column.cast(pa.string()).to_pylist()
