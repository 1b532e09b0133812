"""The course's datasets: made again byte for byte, apart from one another and from the corpus."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from course_utils.paths import DATA

BUILD = DATA / "build"
import corpus  # noqa: E402
import forms  # noqa: E402
import make_preferences  # noqa: E402
import world  # noqa: E402

SPLITS = ("train", "validation", "test")
TASKS = ("tickets", "mood", "entities", "qa", "summaries", "heldout", "columns", "bad")


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / path).read_text(encoding="utf-8").splitlines()]


def message(row: dict) -> str:
    return row["prompt"].removeprefix("Message: ").removesuffix("\nTicket:")


@pytest.fixture(scope="module")
def tickets() -> dict[str, list[dict]]:
    return {split: read(f"tickets/prompt_completion/{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def trained_documents() -> list[str]:
    """The whole corpus that the shipped model was trained on."""
    facts = json.loads((DATA / "models/pocket-llama/training.json").read_text())
    return corpus.training_documents(facts["documents"])


def test_make_data_writes_the_same_bytes(tmp_path: Path) -> None:
    """A dataset that drifts from its script is one that nobody can check."""
    subprocess.run([sys.executable, BUILD / "make_datasets.py", "--output", tmp_path], check=True)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    kept = sorted(
        path.relative_to(DATA)
        for task in TASKS
        for path in (DATA / task).rglob("*")
        if path.is_file() and path.name != "README.md"
    )
    assert made == kept
    for path in made:
        if path.suffix == ".parquet":
            # The bytes hold the writer's version, so another pyarrow is compared by content.
            new, old = pq.ParquetFile(tmp_path / path), pq.ParquetFile(DATA / path)
            if new.metadata.created_by != old.metadata.created_by:
                assert new.read().equals(old.read()), path
                continue
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), path


def test_sizes_and_kinds(tickets: dict[str, list[dict]]) -> None:
    """The lessons' text names these numbers."""
    kinds = {split: [row["kind"] for row in rows] for split, rows in tickets.items()}
    assert [len(kinds[split]) for split in SPLITS] == [1200, 200, 200]
    assert set(kinds["train"]) == set(kinds["validation"]) == {"seen"}
    assert kinds["test"].count("unseen") == 80


def test_splits_do_not_overlap(tickets: dict[str, list[dict]]) -> None:
    """A test message that was trained on makes any model look good."""
    texts = [message(row).lower() for split in SPLITS for row in tickets[split]]
    assert len(set(texts)) == len(texts)


def test_unseen_rows_are_unseen(tickets: dict[str, list[dict]]) -> None:
    """What is called unseen must not stand in the training split: values, nor whole forms."""
    train = [json.loads(row["completion"]) for row in tickets["train"]]
    unseen = [row for row in tickets["test"] if row["kind"] == "unseen"]
    for field in ("name", "item", "colour", "city"):
        known = {record[field] for record in train}
        assert not known & {json.loads(row["completion"])[field] for row in unseen}, field
    kept = [
        form
        for problem in forms.PROBLEM_FORMS.values()
        for form in forms.seen_and_unseen(problem)[1]
    ]
    assert not [form for form in kept if any(form in row["prompt"] for row in tickets["train"])]
    assert any(form in row["prompt"] for form in kept for row in unseen)


def test_values_stand_in_the_message(tickets: dict[str, list[dict]]) -> None:
    """Five fields are to be copied: they must be there to copy."""
    for rows in tickets.values():
        for row in rows:
            record = json.loads(row["completion"])
            for field in ("name", "item", "colour", "day", "city"):
                assert record[field] in message(row), (field, row)


def test_other_tasks_agree_with_the_tickets(tickets: dict[str, list[dict]]) -> None:
    """Labels, tags, spans and summaries come from the same cases as the records."""
    moods = json.loads((DATA / "mood/labels.json").read_text())
    tags = json.loads((DATA / "entities/labels.json").read_text())
    for split in SPLITS:
        records = [json.loads(row["completion"]) for row in tickets[split]]
        for record, row in zip(records, read(f"mood/{split}.jsonl"), strict=True):
            assert moods[row["label"]] == record["mood"]
        for record, row in zip(records, read(f"entities/{split}.jsonl"), strict=True):
            assert len(row["tokens"]) == len(row["tags"])
            firsts = {
                tags[t][2:]: w
                for w, t in zip(row["tokens"], row["tags"], strict=True)
                if tags[t][0] == "B"
            }
            assert all(record[field].startswith(word) for field, word in firsts.items())
            assert set(firsts) == {"name", "item", "colour", "day", "city"}
        for record, row in zip(records, read(f"qa/{split}.jsonl"), strict=True):
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert (
                row["context"][start : start + len(text)] == text == record[row["id"].split("-")[0]]
            )
        for record, row in zip(records, read(f"summaries/{split}.jsonl"), strict=True):
            assert all(
                record[f] in row["summary"] for f in ("name", "item", "colour", "city", "mood")
            )


def test_no_message_of_the_tickets_is_in_the_corpus(
    tickets: dict[str, list[dict]], trained_documents: list[str]
) -> None:
    """The base model must not have read the messages that it will be tested on."""
    text = "\0".join(trained_documents)
    for split in ("validation", "test"):
        assert not [m for m in map(message, tickets[split]) if m in text]


def test_the_corpus_never_shows_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document with a customer's message holds no JSON: that step is for fine-tuning to teach."""
    written: list[str] = []
    write = world.write_message

    def note(*args: object, **kwargs: object) -> world.Message:
        result = write(*args, **kwargs)
        written.append(result.text)
        return result

    monkeypatch.setattr(world, "write_message", note)
    with_message = 0
    for document in itertools.islice(corpus.documents(corpus.TRAIN_SEED, corpus.PRELUDE), 40_000):
        if written:
            with_message += 1
            assert written[-1] in document
            assert "{" not in document
        written.clear()
    assert with_message > 10_000, "the corpus should be full of messages"


def test_heldout_documents_were_not_trained_on(trained_documents: list[str]) -> None:
    """Forgetting is measured on unread text; only small talk may recur by chance."""
    trained = set(trained_documents)
    heldout = [row["text"] for row in read("heldout/validation.jsonl")]
    repeated = [text for text in heldout if text in trained]
    assert all(text.startswith("<|") for text in repeated), repeated[:3]
    assert len(repeated) < len(heldout) / 20


def test_preferences_say_what_is_right() -> None:
    """A pair whose labels are wrong teaches the wrong thing, and no trainer can tell."""
    for split, questions in make_preferences.make_questions().items():
        right = {question.text: question.right for question in questions}
        pairs = read(f"preferences/{split}.jsonl")
        assert len(pairs) > 0.9 * len(questions)
        for pair in pairs:
            (asked,), (chosen,), (rejected,) = (pair[k] for k in ("prompt", "chosen", "rejected"))
            assert [m["role"] for m in (asked, chosen, rejected)] == ["user", *["assistant"] * 2]
            truth = right.pop(asked["content"])  # a message that is there twice raises
            assert chosen["content"] == truth != rejected["content"]
            assert (pair["found"] == "never") <= (pair["share_right"] == 0), pair
            assert (pair["found"] == "sampled") <= (pair["share_right"] > 0), pair


def test_preferences_are_apart_from_the_tickets(tickets: dict[str, list[dict]]) -> None:
    """What a preference training saw of the test would be no preference but a leak."""
    rows = [row for split in ("train", "validation") for row in read(f"preferences/{split}.jsonl")]
    texts = [row["prompt"][0]["content"] for row in rows]
    records = [json.loads(row["chosen"][0]["content"]) for row in rows]
    others = [json.loads(row["completion"]) for split in SPLITS for row in tickets[split]]
    assert len(set(texts)) == len(texts)
    for field in ("name", "item", "colour", "city"):
        assert not {r[field] for r in records} & {r[field] for r in others}, field
    news = [make_preferences.PROBLEM_FORMS, make_preferences.MOOD_FORMS]
    olds = [forms.PROBLEM_FORMS, forms.MOOD_FORMS]
    for new, old in zip(news, olds, strict=True):
        known = {sentence for sentences in old.values() for sentence in sentences}
        kept = [s for sentences in old.values() for s in forms.seen_and_unseen(sentences)[1]]
        assert not known & {sentence for sentences in new.values() for sentence in sentences}
        assert not [s for s in kept if any(s in text for text in texts)]
