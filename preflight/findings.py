"""What a check finds, and the report of one: findings below a line or two on what was looked at.

Used by lessons: 01, 04, 05a, 06, 09, 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from course_utils.display import html_table


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

    def __str__(self) -> str:
        lines = [f"{self.severity.upper():8}{self.code}  {self.where()}", self.what]
        if self.example:
            lines.append(f"First: {self.example}")
        if self.fix:
            lines.append(f"Fix: {self.fix}")
        return "\n        ".join(lines)


def findings_html(findings: Sequence[Finding]) -> str:
    """Return findings as a table in HTML."""
    if not findings:
        return "<p>Nothing found.</p>"
    return html_table(
        [(f.severity, f.code, f.where(), f.what, f.example, f.fix) for f in findings],
        ["severity", "code", "where", "what", "first", "fix"],
    )


def finding(code: str, what: str, fix: str, severity: str = "error") -> Finding:
    """Return a finding about the whole of what was looked at."""
    return Finding(severity, code, what, 0, (), fix)


@dataclass(frozen=True)
class FindingsReport:
    """What a check found; shows as a table in a notebook. `about` says what was looked at."""

    about: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no finding is an error."""
        return not any(one.severity == "error" for one in self.findings)

    def require_ok(self) -> None:
        """Raise ValueError, with all that is wrong and what to do, unless the report is ok."""
        errors = [one for one in self.findings if one.severity == "error"]
        if errors:
            raise ValueError("\n".join(f"{error.what} {error.fix}" for error in errors))

    def __str__(self) -> str:
        found = [*map(str, self.findings)] or ["Nothing found."]
        return "\n\n".join([self.about, *found])

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.about)}</p>{findings_html(self.findings)}"
