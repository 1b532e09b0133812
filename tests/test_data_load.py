"""Loading the course's datasets by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest

from course_utils import data, paths


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what load_dataset caches out of the reader's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a dataset in data/, which `load` takes for all of it."""
    root = tmp_path / "data"
    shutil.copytree(paths.DATA / "mood", root / "mood")
    monkeypatch.setattr(paths, "DATA", root)
    return root


def test_labels_know_their_names() -> None:
    """The task-type lesson reads the class names from the features; a bare int has none."""
    for name, column in (("mood", "label"), ("entities", "tags")):
        feature = data.load(name, "train").features[column]
        names = json.loads((paths.DATA / name / "labels.json").read_text())
        assert getattr(feature, "feature", feature).names == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mood", None, "text"), ["form='text'", "'mood'", "tickets"]),
        (("heldout", "train"), ["'train'", "'validation'"]),
    ],
)
def test_wrong_names_say_what_there_is(arguments: tuple, words: list[str]) -> None:
    """Of a dataset that has not all forms or splits; book/bad_input.yaml has the rest."""
    with pytest.raises(ValueError) as error:
        data.load(*arguments)
    for word in words:
        assert word in str(error.value)


def test_missing_file_names_the_file_and_the_command(root: Path) -> None:
    """Without its files the course must say which one is missing and how to make it."""
    (root / "mood/test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl.*make data") as error:
        data.load("mood")
    assert str(root) in str(error.value)
    assert data.load("mood", "train").num_rows == 1200, "the other splits still load"


def test_quiet_and_leaves_no_file(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A progress bar in a notebook, or a cache inside the repository, would dirty both."""
    before = sorted(root.rglob("*"))
    bars = datasets.are_progress_bars_disabled()
    data.load("mood")
    assert capfd.readouterr() == ("", "")
    assert sorted(root.rglob("*")) == before
    assert datasets.are_progress_bars_disabled() == bars, "the reader's setting is left alone"


def test_changed_file_is_read_again(root: Path) -> None:
    """A cache that outlives the file would show a learner the data of before their change."""
    assert data.load("mood", "train").num_rows == 1200
    (root / "mood/train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert data.load("mood", "train")["text"][:] == ["a", "b"]


@pytest.mark.parametrize("name", data.names())
def test_real_datasets_load(name: str) -> None:
    """Every name that `names` offers must have its files in the repository."""
    for split, rows in data.load(name).items():
        assert rows.num_rows > 0, (name, split)


@pytest.mark.parametrize("split", data.SPLITS)
def test_the_forms_of_the_tickets_say_the_same(split: str) -> None:
    """Lesson 01 compares the three forms row by row, which needs the same rows in each."""
    pairs, texts, chats = (data.load("tickets", split, form) for form in data.FORMS)
    assert pairs.column_names == ["prompt", "completion", "kind"]
    assert texts.column_names == ["text", "kind"]
    for pair, text, chat in zip(pairs, texts, chats, strict=True):
        assert pair["prompt"] + pair["completion"] == text["text"]
        assert [m["role"] for m in chat["messages"]] == ["user", "assistant"]
        user, assistant = (m["content"] for m in chat["messages"])
        assert pair["prompt"] == f"Message: {user}\nTicket:"
        assert assistant == pair["completion"].strip()
        assert pair["kind"] == text["kind"] == chat["kind"]
