"""The report of a training: findings, and what is trained in a line.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from preflight.dataset_check import Finding
from preflight.dataset_check.report import findings_html


@dataclass(frozen=True)
class TrainingReport:
    """What is wrong with settings or a trainer; shows as a table in a notebook.

    `about` says in a line what is trained.
    """

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


def finding(code: str, what: str, fix: str, severity: str = "error") -> Finding:
    """Return a finding about the whole training."""
    return Finding(severity, code, what, 0, (), fix)
