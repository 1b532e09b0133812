"""The share of a lesson's work: all of it with the pocket model, less with a slower one."""

from __future__ import annotations

import pytest
from datasets import Dataset

from course_utils import budget, models
from course_utils.budget import Budget
from course_utils.models import BaseModel
from course_utils.paths import POCKET_MODEL

OTHER = BaseModel(str(POCKET_MODEL), "other", is_pocket=False)


def test_the_pocket_model_does_all_of_a_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever COURSE_SHARE says: its claims are asserted."""
    monkeypatch.setenv("COURSE_SHARE", "0.1")
    work = budget.measure(models.base_model())
    rows = Dataset.from_dict({"n": range(100)})
    assert (work.share, work.steps(40), len(work.rows(rows))) == (1, 40, 100)
    assert str(work) == "all rows and steps"


def test_a_slower_model_does_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COURSE_SHARE", raising=False)
    times = {OTHER.path: 60.0}
    monkeypatch.setattr(budget, "seconds_per_token", lambda path: times.pop(path, 1.0))
    work = budget.measure(OTHER, patience=6.0)
    assert work == Budget(0.1, 60.0)
    assert "60 times as long" in str(work) and "10%" in str(work)


def test_rows_are_spread_evenly_and_there_is_a_least_number() -> None:
    rows, work = Dataset.from_dict({"n": range(100)}), Budget(0.1, 60.0)
    assert work.rows(rows, at_least=5)["n"] == list(range(0, 100, 10))
    assert len(work.rows(rows)) == 32 and len(work.rows(rows.select(range(8)))) == 8
    assert (work.steps(100), work.steps(12), work.steps(2)) == (10, 4, 2)


@pytest.mark.parametrize("given", ["0", "1.5", "ten", "0.0", "-0.1"])
def test_a_wrong_share_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_SHARE", given)
    with pytest.raises(ValueError, match=r"COURSE_SHARE is .* Allowed is a number above 0"):
        budget.measure(OTHER)


def test_a_token_is_timed() -> None:
    assert 0 < budget.seconds_per_token(str(POCKET_MODEL)) < 1
