"""Loading the course's datasets by name."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from course_utils import data, paths

PROMPT = "Message: I am {}.\nTicket:"
COMPLETION = ' {{"name": "{}"}}'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what load_dataset caches out of the reader's home."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of the layout of data/, which `load` takes for the real one."""
    root = tmp_path / "data"
    for split in data.SPLITS:
        rows = [{"kind": "seen", "name": f"{split} {i}"} for i in range(3)]
        pairs = [
            {"prompt": PROMPT.format(r["name"]), "completion": COMPLETION.format(r["name"])}
            for r in rows
        ]
        kinds = [{"kind": row["kind"]} for row in rows]
        write_jsonl(
            root / "tickets/prompt_completion" / f"{split}.jsonl",
            [pair | kind for pair, kind in zip(pairs, kinds, strict=True)],
        )
        texts = [
            {"text": p["prompt"] + p["completion"]} | k for p, k in zip(pairs, kinds, strict=True)
        ]
        (root / "tickets/text").mkdir(parents=True, exist_ok=True)
        pd.DataFrame(texts).to_csv(root / "tickets/text" / f"{split}.csv", index=False)
        chats = [
            {"messages": [{"role": "user", "content": p["prompt"]}], "kind": "seen"} for p in pairs
        ]
        (root / "tickets/messages").mkdir(parents=True, exist_ok=True)
        pd.DataFrame(chats).to_parquet(root / "tickets/messages" / f"{split}.parquet")
        write_jsonl(root / "mood" / f"{split}.jsonl", [{"text": "hello", "label": 1}])
        write_jsonl(root / "entities" / f"{split}.jsonl", [{"tokens": ["Ann"], "tags": [1]}])
    (root / "mood/labels.json").write_text('["angry", "calm"]')
    (root / "entities/labels.json").write_text('["O", "B-name"]')
    monkeypatch.setattr(paths, "DATA", root)
    return root


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_form_is_read_from_its_own_files(root: Path) -> None:
    """A form that reads another form's files would teach lesson 01 the wrong columns."""
    pairs, texts = data.load("tickets"), data.load("tickets", form="text")
    chats = data.load("tickets", form="messages")
    assert list(pairs) == list(texts) == list(chats) == ["train", "validation", "test"]
    assert pairs["train"].column_names == ["prompt", "completion", "kind"]
    assert texts["test"].column_names == ["text", "kind"]
    assert texts["test"][1]["text"] == PROMPT.format("test 1") + COMPLETION.format("test 1")
    assert chats["validation"][0]["messages"][0] == {
        "role": "user",
        "content": PROMPT.format("validation 0"),
    }


def test_one_split(root: Path) -> None:
    """A split asked for by name must be that one, and a Dataset rather than a dict."""
    test = data.load("tickets", "test", "prompt-completion")
    assert isinstance(test, datasets.Dataset)
    assert test[0]["prompt"] == PROMPT.format("test 0")


def test_labels_know_their_names(root: Path) -> None:
    """The task-type lesson reads the class names from the features; a bare int has none."""
    label = data.load("mood", "train").features["label"]
    assert label.names == ["angry", "calm"]
    assert data.load("entities", "train").features["tags"].feature.names == ["O", "B-name"]
    assert data.load("mood", "train")[0]["label"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ticket",), ["'ticket'", "'tickets'", "'mood'"]),
        (("tickets", "dev"), ["'dev'", "'validation'"]),
        (("tickets", None, "chat"), ["'chat'", "'prompt-completion'", "'messages'"]),
        (("mood", None, "text"), ["form='text'", "'mood'", "tickets"]),
        (("heldout", "train"), ["'train'", "'validation'"]),
    ],
)
def test_wrong_names_say_what_there_is(arguments: tuple, words: list[str]) -> None:
    """A typo must not end in a KeyError or a file path from deep inside datasets."""
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
    assert data.load("mood", "train").num_rows == 1, "the other splits still load"


def test_quiet_and_leaves_no_file(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A progress bar in a notebook, or a cache inside the repository, would dirty both."""
    before = sorted(root.rglob("*"))
    bars = datasets.are_progress_bars_disabled()
    data.load("tickets")
    assert capfd.readouterr() == ("", "")
    assert sorted(root.rglob("*")) == before
    assert datasets.are_progress_bars_disabled() == bars, "the reader's setting is left alone"


def test_changed_file_is_read_again(root: Path) -> None:
    """A cache that outlives the file would show a learner the data of before their change."""
    assert data.load("mood", "train").num_rows == 1
    write_jsonl(root / "mood/train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    assert data.load("mood", "train")["text"][:] == ["a", "b"]


@pytest.mark.parametrize("name", data.names())
def test_real_datasets_load(name: str) -> None:
    """Every name that `names` offers must have its files in the repository."""
    for split, rows in data.load(name).items():
        assert rows.num_rows > 0, (name, split)


def test_real_tickets_forms_say_the_same() -> None:
    """Lesson 01 compares the three forms row by row, which needs the same rows in each."""
    pairs, texts = data.load("tickets", "test"), data.load("tickets", "test", "text")
    chats = data.load("tickets", "test", "messages")
    assert len(pairs) == len(texts) == len(chats)
    for pair, text, chat in zip(pairs, texts, chats, strict=True):
        assert pair["prompt"] + pair["completion"] == text["text"]
        assert [m["role"] for m in chat["messages"]] == ["user", "assistant"]
        assert chat["messages"][1]["content"] == pair["completion"].strip()
        assert pair["kind"] == text["kind"] == chat["kind"]
