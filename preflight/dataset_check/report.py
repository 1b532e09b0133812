"""What a check of a dataset returns: findings, in tables that are safe to show.

Used by lessons: 01.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from preflight.dataset_check.private import redacted
from preflight.dataset_check.rules import RULES, Rule
from preflight.findings import Finding, findings_html

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """The findings about a dataset; shows as a table in a notebook.

    `format` names the form that was recognised, `mapping` is the line of code that turns it into
    one that SFTTrainer takes ("" if it takes it as it is), `rows` counts the rows of each split.
    """

    source: str
    format: str
    mapping: str
    rows: dict[str, int]
    columns: tuple[str, ...]
    max_length: int | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no finding is an error."""
        return not self._count("error")

    def _count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def summary(self) -> str:
        """Return one line: the source, its rows, its format and the number of findings."""
        rows = ", ".join(f"{name} {count:,}" for name, count in self.rows.items())
        return (
            f"{self.source}: {rows} rows, format {self.format}; "
            f"{self._count('error')} kinds of error, {self._count('warning')} of warning"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a DataFrame, one row for each."""
        import pandas as pd

        names = ["severity", "code", "split", "count", "rows", "what", "fix", "example"]
        return pd.DataFrame([*self.findings], columns=names)

    def __str__(self) -> str:
        mapping = f"\nTo train on it: {self.mapping}" if self.mapping else ""
        return "\n\n".join([self.summary() + mapping, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        head = f"<p>{escape(self.summary())}</p>"
        if self.mapping:
            head += f"<p>To train on it: <code>{escape(self.mapping)}</code></p>"
        return head + findings_html(self.findings)


class Tally:
    """In how many rows something was found, the first few of them, and an example."""

    def __init__(self, max_rows: int) -> None:
        self.count = 0
        self.rows: list[int] = []
        self.example = ""
        self._max_rows = max_rows
        self._last: int | None = None

    def add(self, row: int | None = None, example: object = None) -> None:
        """Count a row, or only keep the example if `row` is None."""
        if example is not None and not self.example:
            self.example = quote(example)
        if row is not None and row != self._last:  # a row that becomes two has a fault once
            self._last = row
            self.count += 1
            if len(self.rows) < self._max_rows:
                self.rows.append(row)

    def join(self, other: Tally) -> None:
        """Add what another one counted, of other rows."""
        self.count += other.count
        self.rows = sorted({*self.rows, *other.rows})[: self._max_rows]
        self.example = self.example or other.example


class Collector:
    """Gathers the faults of one split."""

    def __init__(self, split: str, max_rows: int, rules: Mapping[str, Rule] = RULES) -> None:
        self.split, self._rules = split, rules
        # By the kind of fault and, for lines, which count in one file, the file.
        self._found: dict[tuple[str, str], Tally] = defaultdict(partial(Tally, max_rows))

    def add(
        self, code: str, row: int | None = None, example: object = None, file: str = ""
    ) -> None:
        """Note a fault of the kind `code` at a row, or of the whole split if `row` is None."""
        self._found[code, file].add(row, example)

    def add_tally(self, code: str, tally: Tally) -> None:
        """Note a fault that was counted elsewhere."""
        self._found[code, ""].join(tally)

    def add_all(self, row: int, faults: Iterable[tuple[str, object]]) -> None:
        """Note the faults of one row, each kind once, with the first of its examples."""
        for code, example in dict(reversed([*faults])).items():
            self.add(code, row, example)

    def findings(self) -> list[Finding]:
        """Return what was gathered, one finding for each kind of fault."""
        found = []
        for (code, _), one in self._found.items():
            severity, what, fix = self._rules[code]
            where = what, one.count, tuple(one.rows), fix, self.split
            found.append(Finding(severity, code, *where, one.example))
        return found


def quote(value: object, limit: int = 100) -> str:
    """Return a short `repr`, with control characters as escapes and without private data."""
    try:
        # More than is shown, so that a key at the edge is recognised.
        text = repr(redacted(value[: 20 * limit])[:limit] if isinstance(value, str) else value)
    except RecursionError:
        return "(nested too deeply to show)"
    if not isinstance(value, str):
        text = redacted(text[: 20 * limit])
    cut = len(text) > limit + 2 or (isinstance(value, str) and len(value) > limit)
    return text[: limit + 2] + ("..." if cut else "")
