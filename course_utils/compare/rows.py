"""The rows that a comparison trains on and tests with, from the course's data or the reader's own.

Used by lessons: 08.
"""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from course_utils import data
from course_utils.compare.experiments import Experiment

COURSE_DATA = "tickets"
COURSE_CHATS = "tickets-chat"
COURSE_PAIRS = "preferences"
PAIR = ("prompt", "chosen", "rejected")
FORMS = "prompt and completion, messages (each a role and a content), or text"
# Of a file without splits: every tenth row is for validation, every tenth for the test.
TENTHS = {"validation": (4,), "test": (9,), "train": (0, 1, 2, 3, 5, 6, 7, 8)}


@dataclass(frozen=True)
class Rows:
    """The rows of a run in three splits, and texts for forgetting.

    The splits have the columns `prompt` and `completion`, each a text or a list of messages, or the
    column `text` alone.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    heldout: list[str]

    @property
    def columns(self) -> list[str]:
        """The columns of the rows that it is tested on, and trained on by SFT."""
        part = self.test if "rejected" in self.train.column_names else self.train
        return ["text"] if "text" in part.column_names else ["prompt", "completion"]

    def with_pairs(self, experiment: Experiment) -> Rows:
        """Return the same with an experiment's pairs to train on, of which SFT takes the chosen.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it has no pairs, or `data` is of texts without a prompt.
        """
        if not experiment.pairs:
            return self
        if self.columns == ["text"]:
            raise ValueError(
                f"data is {experiment.data!r}, whose rows are texts. Next to pairs it has to be "
                "of prompts and completions, or of messages. Give such rows."
            )
        train = load_pairs(experiment.pairs)
        if experiment.trainer == "sft":
            train = train.remove_columns("rejected").rename_column("chosen", "completion")
            return replace(self, train=train, validation=None)
        return replace(self, train=train)

    def cut(self, experiment: Experiment) -> Rows:
        """Return the first rows of each split, as many as an experiment asks for.

        Of a test split with a column `kind`, each kind is cut by itself.

        Raises:
            ValueError: if there are not as many.
        """
        train, validation, test = self.train, self.validation, self.test
        for key, rows in (
            ("train_rows", train),
            ("validation_rows", validation or []),
            ("test_rows", test),
        ):
            count = getattr(experiment, key)
            if count is not None and count > len(rows):
                raise ValueError(
                    f"{key} is {count}, but {experiment.data} has only {len(rows)} such rows."
                )
        if experiment.train_rows is not None:
            train = train.select(range(experiment.train_rows))
        if experiment.validation_rows is not None:
            validation = validation.select(range(experiment.validation_rows))
        if experiment.test_rows is not None:
            kinds = test["kind"] if "kind" in test.column_names else [""] * len(test)
            kept = []
            for kind in dict.fromkeys(kinds):
                places = [place for place, one in enumerate(kinds) if one == kind]
                kept += places[: max(1, round(experiment.test_rows * len(places) / len(test)))]
            test = test.select(sorted(kept))
        return replace(self, train=train, validation=validation, test=test)

    def fingerprint(self) -> str:
        """Return a hash of every row that a result depends on."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            rows = part.to_list() if part is not None else []
            digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
        digest.update(json.dumps(self.heldout).encode())
        return digest.hexdigest()


def load_rows(source: str) -> Rows:
    """Return all rows of an experiment's `data`: the course's own, or those of a folder or file.

    A folder has train.jsonl and test.jsonl, and may have validation.jsonl and heldout.jsonl; a file
    alone is divided 8 to 1 to 1, by the places of its rows.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if a file has too few rows, or none of the forms.
    """
    if source in (COURSE_DATA, COURSE_CHATS):
        splits = data.load(COURSE_DATA, form="prompt-completion")
        if source == COURSE_CHATS:
            chats = data.load(COURSE_DATA, form="messages")
            splits = {
                name: _pairs_of_chats(part, Path(source)).add_column("kind", part["kind"])
                for name, part in chats.items()
            }
        heldout = list(data.load("heldout", "validation")["text"])
        return Rows(splits["train"], splits["validation"], splits["test"], heldout)
    if Path(source).is_file():
        rows = _read(Path(source))
        if len(rows) < 10:
            raise ValueError(
                f"'{source}' has {len(rows)} rows. A file that is divided into training, "
                "validation and test needs 10 at least. Add rows, or give a folder of splits."
            )
        parts = {
            name: rows.select([i for i in range(len(rows)) if i % 10 in places])
            for name, places in TENTHS.items()
        }
        return Rows(**parts, heldout=[])
    files = {name: Path(source) / f"{name}.jsonl" for name in (*data.SPLITS, "heldout")}
    for file in (files["train"], files["test"]):
        if not file.is_file():
            raise FileNotFoundError(
                f"data is {source!r}. Allowed is {COURSE_DATA!r}, {COURSE_CHATS!r}, a JSONL file, "
                f"or a folder with train.jsonl and test.jsonl. There is no '{file}'. Make it, or "
                "correct its name."
            )
    found = {name: _read(file) for name, file in files.items() if file.is_file()}
    heldout = list(found["heldout"]["text"]) if "heldout" in found else []
    rows = Rows(found["train"], found.get("validation"), found["test"], heldout)
    for name in ("validation", "test"):
        if name in found and not set(rows.columns) <= set(found[name].column_names):
            raise ValueError(
                f"'{files[name]}' has another form than '{files['train']}'. All splits have to "
                f"have one of these: {FORMS}. Write them in one form."
            )
    return rows


def load_pairs(source: str) -> Dataset:
    """Return pairs of answers, the course's or a file's, with the columns of `PAIR` alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or there is no row.
    """
    if source == COURSE_PAIRS:
        return data.load(COURSE_PAIRS, "train").select_columns(list(PAIR))
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"pairs is {source!r}. Allowed is {COURSE_PAIRS!r}, or a JSONL file with the columns "
            f"{', '.join(PAIR)}. There is no such file. Make it, or correct its name."
        )
    with data.no_progress_bars():
        rows = load_dataset("json", data_files=glob.escape(source), split="train")
    if not len(rows) or not set(PAIR) <= set(rows.column_names):
        raise ValueError(
            f"'{source}' has {len(rows)} rows with the columns {', '.join(rows.column_names)}. "
            f"Allowed are pairs: {', '.join(PAIR)}, at least one row. Write them so."
        )
    return rows.select_columns(list(PAIR))


def _read(file: Path) -> Dataset:
    """Return the rows of a file; of a chat, what comes before the last answer is the prompt."""
    with data.no_progress_bars():
        rows = load_dataset("json", data_files=glob.escape(str(file)), split="train")
    columns = set(rows.column_names)
    if len(rows) and "messages" in columns and "prompt" not in columns and file.stem != "heldout":
        return _pairs_of_chats(rows, file)
    wanted = ({"text"},) if file.stem == "heldout" else ({"prompt", "completion"}, {"text"})
    if not len(rows) or not any(one <= columns for one in wanted):
        allowed = "text" if file.stem == "heldout" else FORMS
        raise ValueError(
            f"'{file}' has {len(rows)} rows with the columns {', '.join(rows.column_names)}. It "
            f"has to have rows with {allowed}, at least one. `python -m course_utils check FILE` "
            "says what else is wrong, and how to turn other forms into these."
        )
    if {"prompt", "completion"} <= columns:  # what else is there does not make it another form
        return rows.remove_columns([name for name in ("text", "messages") if name in columns])
    return rows


def answer(row: dict[str, Any]) -> str:
    """Return the text of a row's answer."""
    return text_of(row["completion"]).strip()


def text_of(completion: Any) -> str:
    """Return the text of a completion, of a chat that of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _pairs_of_chats(rows: Dataset, file: Path) -> Dataset:
    """Return chats as prompt and completion, both lists of messages."""
    pairs: list[dict[str, Any]] = []
    for number, messages in enumerate(rows["messages"], start=1):
        answers = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
        if not answers or answers[-1] == 0:
            raise ValueError(
                f"'{file}', row {number}: there is no answer of the assistant after a first "
                "message, so there is nothing to train or to test. Each chat needs one. Remove the "
                "row, or correct it."
            )
        last = answers[-1]  # what the user says after it is answered by nobody
        pairs.append({"prompt": messages[:last], "completion": messages[last : last + 1]})
    return Dataset.from_list(pairs)
