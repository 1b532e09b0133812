"""Claims: on the pocket model one that fails stops the lesson, on others it is a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from course_utils import claims
from course_utils.claims import Claim, ClaimFailed, claim


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_made", {})
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    monkeypatch.delenv("COURSE_CLAIMS", raising=False)


def test_a_claim_that_holds_is_printed_with_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    claim("04-rank", "a higher rank trains more", 2 > 1, "2 against 1")
    assert capsys.readouterr().out == "✓ a higher rank trains more (2 against 1)\n"
    assert claims.measured("04", "pocket-llama").to_numpy().tolist() == [
        ["a higher rank trains more", "2 against 1"]
    ]
    assert claims.measured("05a", "pocket-llama").empty


@pytest.mark.parametrize("wrong", [False, 0, float("nan") > 1])
def test_one_that_fails_stops_the_lesson_on_the_pocket_model(wrong: object) -> None:
    with pytest.raises(ClaimFailed, match=r"a higher rank trains more \(1\)"):
        claim("04-rank", "a higher rank trains more", wrong, 1)


def test_on_another_model_it_is_shown_and_the_lesson_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its verdict stands next to the pocket model's figure on record."""
    (tmp_path / "pocket-llama.json").write_text(
        '{"lessons": {"04": {"claims": '
        '[{"name": "04-rank", "text": "old", "figure": "2", "holds": true}]}}}'
    )
    monkeypatch.setattr(claims, "RECORDS", tmp_path)
    monkeypatch.setenv("COURSE_MODEL", "smollm2")
    monkeypatch.setenv("COURSE_CLAIMS", str(tmp_path / "run"))
    claim("04-rank", "a higher rank trains more", False, "1")
    assert capsys.readouterr().out == "✗ does not hold here: a higher rank trains more (1)\n"
    table = claims.measured("04", "smollm2")
    assert table.columns.tolist() == ["claim", "pocket model", "smollm2"]
    assert table.iloc[0].tolist() == ["a higher rank trains more", "2", "does not hold here: 1"]
    claim("04-rank", "a higher rank trains more", True, "3")  # the cell is run again
    made = claims.read(tmp_path / "run", ["04"])
    assert made == [Claim("04-rank", "a higher rank trains more", "3", True)]
    assert claims.read(tmp_path / "run", ["05a"]) == []


def test_a_record_says_of_each_lesson_on_what_it_was_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A lesson that is recorded anew brings its own versions; the others keep theirs."""
    monkeypatch.setattr(claims, "RECORDS", tmp_path)
    old, new = {"versions": {"torch": "2.12"}}, {"versions": {"torch": "2.13"}}
    first, second = Claim("03-a", "one", "1", True), Claim("04-b", "two", "2", True)
    claims.record("pocket", old, [second, first])
    again = Claim("04-c", "three", "3", False)
    claims.record("pocket", new, [again])
    assert claims.recorded("pocket") == {"03-a": first, "04-c": again}
    assert claims.made_on("pocket") == {"03": old, "04": new}
    assert claims.recorded("another") == claims.made_on("another") == {}
