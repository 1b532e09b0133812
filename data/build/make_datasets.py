"""Make the course's datasets: seeded, so that every run writes the same bytes.

python data/build/make_datasets.py [--output data]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import corpus
import lexicon
import media
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import world
from make_bad import make_bad

from course_utils.files import not_written

SEED = 20
MAKING = ".making"  # the folder of what is not finished; next to the rest, to be moved in one step
TRAIN, VALIDATION, TEST_SEEN, TEST_UNSEEN = 1200, 200, 120, 80

SPAN_QUESTIONS = {field: corpus.QUESTIONS[field] for field in world.SPAN_FIELDS}
TAGS = ["O", *(f"{prefix}-{field}" for field in world.SPAN_FIELDS for prefix in "BI")]


def make_splits() -> dict[str, list[world.Message]]:
    """Return the messages of each split; no text is in two of them."""
    rng = random.Random(SEED)
    taken: set[str] = set()
    train = world.unique_messages(TRAIN, rng, "seen", taken)
    validation = world.unique_messages(VALIDATION, rng, "seen", taken)
    seen = world.unique_messages(TEST_SEEN, rng, "seen", taken)
    unseen = world.unique_messages(TEST_UNSEEN, rng, "unseen", taken)
    return {"train": train, "validation": validation, "test": [*seen, *unseen]}


def prompt(message: world.Message) -> str:
    """Return the prompt of the `tickets` task; the space after it belongs to the completion.

    The corpus has no such label, so the base model does not know that JSON is wanted.
    """
    return f"Message: {message.text}\nTicket:"


def record(message: world.Message) -> str:
    """Return the JSON record that is the right answer."""
    return json.dumps(message.case.record(), ensure_ascii=False)


def tagged_words(message: world.Message) -> tuple[list[str], list[int]]:
    """Return the message's words and their tags (O, B-field, I-field) as numbers of `TAGS`."""
    words, tags = [], []
    for match in re.finditer(r"[\w'’]+|[^\w\s]", message.text):
        tag = "O"
        for start, end, field in message.spans:
            if start <= match.start() < end:
                tag = f"{'B' if match.start() == start else 'I'}-{field}"
        words.append(match.group())
        tags.append(TAGS.index(tag))
    return words, tags


def question_row(message: world.Message, number: int, rng: random.Random) -> dict[str, object]:
    """Return one extractive question on a message, in SQuAD's columns."""
    field = world.SPAN_FIELDS[number % len(world.SPAN_FIELDS)]
    start, end, _ = next(span for span in message.spans if span[2] == field)
    return {
        "id": f"{field}-{number:04d}",
        "question": rng.choice(SPAN_QUESTIONS[field]),
        "context": message.text,
        "answers": {"text": [message.text[start:end]], "answer_start": [start]},
        "kind": message.kind,
    }


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    """Write one JSON object a line, with a line feed on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_tickets(folder: Path, split: str, messages: list[world.Message]) -> None:
    """Write the main task in its three forms, each in another file format."""
    write_jsonl(
        folder / "prompt_completion" / f"{split}.jsonl",
        [{"prompt": prompt(m), "completion": f" {record(m)}", "kind": m.kind} for m in messages],
    )
    (folder / "text").mkdir(parents=True, exist_ok=True)
    text = [{"text": f"{prompt(m)} {record(m)}", "kind": m.kind} for m in messages]
    pd.DataFrame(text).to_csv(folder / "text" / f"{split}.csv", index=False, lineterminator="\n")
    (folder / "messages").mkdir(parents=True, exist_ok=True)
    turns = [
        [{"role": "user", "content": m.text}, {"role": "assistant", "content": record(m)}]
        for m in messages
    ]
    table = pa.table({"messages": turns, "kind": [m.kind for m in messages]})
    pq.write_table(table, folder / "messages" / f"{split}.parquet")


def write_other_tasks(data: Path, split: str, messages: list[world.Message]) -> None:
    """Write the same messages labelled for the four other task types."""
    rng = random.Random(SEED)
    write_jsonl(
        data / "mood" / f"{split}.jsonl",
        [
            {"text": m.text, "label": lexicon.MOODS.index(m.case.mood), "kind": m.kind}
            for m in messages
        ],
    )
    entities = []
    for message in messages:
        words, tags = tagged_words(message)
        entities.append({"tokens": words, "tags": tags, "kind": message.kind})
    write_jsonl(data / "entities" / f"{split}.jsonl", entities)
    write_jsonl(
        data / "qa" / f"{split}.jsonl",
        [question_row(m, number, rng) for number, m in enumerate(messages)],
    )
    write_jsonl(
        data / "summaries" / f"{split}.jsonl",
        [
            {"message": m.text, "summary": corpus.canonical_summary(m.case), "kind": m.kind}
            for m in messages
        ],
    )


def make_all(data: Path) -> None:
    """Make every dataset and put it under `data`.

    Until all of them are made, nothing that is there is touched, so that a process that is killed
    or a disk that is full leaves no file cut off; then each takes its place in one step.

    Raises:
        OSError: if they cannot be written.
    """
    making = data / MAKING
    shutil.rmtree(making, ignore_errors=True)  # left by a process that was killed
    try:
        write_all(making)
        for file in sorted(path for path in making.rglob("*") if path.is_file()):
            target = data / file.relative_to(making)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def write_all(data: Path) -> None:
    """Write every dataset under `data`."""
    for split, messages in make_splits().items():
        write_tickets(data / "tickets", split, messages)
        write_other_tasks(data, split, messages)
    for name, labels in (("mood", list(lexicon.MOODS)), ("entities", TAGS)):
        (data / name / "labels.json").write_text(json.dumps(labels, indent=2) + "\n", newline="\n")
    heldout = [{"text": text} for text in corpus.heldout_documents()]
    write_jsonl(data / "heldout" / "validation.jsonl", heldout)
    media.make_columns(data / "columns")
    make_bad(data / "bad")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=default, help="the folder to write under")
    options = parser.parse_args()
    try:
        make_all(options.output)
    except OSError as error:
        sys.exit(str(not_written(error, options.output)))
    print(f"The datasets are written under {options.output.name}/.")
