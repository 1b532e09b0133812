"""What a check of a dataset returns: findings, in tables that are safe to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from course_utils.display import html_table
from preflight.dataset_check.rules import RULES

if TYPE_CHECKING:
    import pandas as pd

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split.

    `severity` is "error" (training stops, or the row teaches nothing or something wrong), "warning"
    (it trains, probably not as you mean) or "info". `rows` holds the first few row numbers, counted
    from 0 as in `dataset[row]`; for the code "broken_line" they are line numbers of the file,
    counted from 1. `count` is 0 for a finding about the whole dataset or the tokenizer. `example`
    quotes the first place, shortened.
    """

    severity: str
    code: str
    what: str
    count: int
    rows: tuple[int, ...]
    fix: str
    split: str = ""
    example: str = ""

    def where(self) -> str:
        """Return the split and the row numbers in words, such as "train: 3, 7, ... (12 rows)"."""
        if not self.count:
            return self.split or "all"
        unit = "line" if self.code == "broken_line" else "row"
        numbers = ", ".join(map(str, self.rows)) + (", ..." if self.count > len(self.rows) else "")
        return f"{self.split}: {numbers} ({self.count} {unit}{'s' if self.count != 1 else ''})"

    def to_text(self) -> str:
        """Return the finding for a terminal, in several lines."""
        lines = [f"{self.severity.upper():8}{self.code}  {self.where()}", f"        {self.what}"]
        if self.example:
            lines.append(f"        First: {self.example}")
        if self.fix:
            lines.append(f"        Fix: {self.fix}")
        return "\n".join(lines)


def findings_html(findings: Sequence[Finding]) -> str:
    """Return findings as a table in HTML."""
    if not findings:
        return "<p>Nothing found.</p>"
    return html_table(
        [(f.severity, f.code, f.where(), f.what, f.example, f.fix) for f in findings],
        ["severity", "code", "where", "what", "first", "fix"],
    )


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
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """True if no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def summary(self) -> str:
        """Return one line: the source, its rows, its format and the number of findings."""
        rows = ", ".join(f"{name} {count:,}" for name, count in self.rows.items())
        counts = [sum(f.severity == severity for f in self.findings) for severity in SEVERITIES[:2]]
        return (
            f"{self.source}: {rows} rows, format {self.format}; "
            f"{counts[0]} kinds of error, {counts[1]} of warning"
        )

    def to_text(self) -> str:
        """Return the report for a terminal."""
        lines = [self.summary()]
        if self.mapping:
            lines.append(f"To train on it: {self.mapping}")
        for finding in self.findings:
            lines += ["", finding.to_text()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists, dicts, strings and numbers, ready for JSON."""
        plain = asdict(self)
        plain["columns"] = list(self.columns)
        plain["findings"] = [{**f, "rows": list(f["rows"])} for f in plain["findings"]]
        return {"ok": self.ok, **plain}

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a DataFrame, one row for each."""
        import pandas as pd

        names = ["severity", "code", "split", "count", "rows", "what", "fix", "example"]
        return pd.DataFrame(
            [[getattr(finding, name) for name in names] for finding in self.findings], columns=names
        )

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        head = f"<p>{escape(self.summary())}</p>"
        if self.mapping:
            head += f"<p>To train on it: <code>{escape(self.mapping)}</code></p>"
        return head + findings_html(self.findings)


class Collector:
    """Gathers the faults of one split: counts all, keeps the first few row numbers."""

    def __init__(self, split: str, max_rows: int) -> None:
        self.split = split
        self.max_rows = max_rows
        self._count: dict[str, int] = defaultdict(int)
        self._rows: dict[str, list[int]] = defaultdict(list)
        self._example: dict[str, str] = {}

    def add(self, code: str, row: int | None = None, example: object = None) -> None:
        """Note a fault of the kind `code` at a row, or of the whole split if `row` is None."""
        if example is not None and code not in self._example:
            self._example[code] = quote(example)
        self._count[code] += 0 if row is None else 1
        if row is not None and len(self._rows[code]) < self.max_rows:
            self._rows[code].append(row)

    def add_all(self, row: int, faults: Iterable[tuple[str, object]]) -> None:
        """Note the faults of one row, each kind once."""
        for code, example in {code: example for code, example in reversed([*faults])}.items():
            self.add(code, row, example)

    def findings(self) -> list[Finding]:
        """Return what was gathered, one finding for each kind of fault."""
        return [
            Finding(
                RULES[code].severity,
                code,
                RULES[code].what,
                count,
                tuple(self._rows[code]),
                RULES[code].fix,
                self.split,
                self._example.get(code, ""),
            )
            for code, count in self._count.items()
        ]


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, errors first, else in the order of the rules."""
    codes: Sequence[str] = list(RULES)
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), codes.index(f.code)))
    )


def quote(value: object, limit: int = 100) -> str:
    """Return a short `repr`, in which a control character shows as its escape."""
    try:
        text = repr(value[:limit] if isinstance(value, str) else value)
    except RecursionError:
        return "(nested too deeply to show)"
    cut = len(text) > limit + 2 or (isinstance(value, str) and len(value) > limit)
    return text[: limit + 2] + ("..." if cut else "")
