"""The report of a training: findings, and what is trained in a line.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from preflight.findings import FindingsReport


class TrainingReport(FindingsReport):
    """What is wrong with settings or a trainer; `about` says in a line what is trained."""
