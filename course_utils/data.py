"""The course's datasets by name.

Used by lessons: all.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, List

from course_utils import paths

SPLITS = ("train", "validation", "test")
# Form of the SFT dataset -> the folder under data/tickets and the kind of its files.
FORMS = {
    "prompt-completion": ("prompt_completion", "jsonl"),
    "text": ("text", "csv"),
    "messages": ("messages", "parquet"),
}
BUILDERS = {"jsonl": "json", "csv": "csv", "parquet": "parquet"}
# Name -> the splits it has; all but tickets are JSONL.
DATASETS = {
    "tickets": SPLITS,
    "mood": SPLITS,
    "entities": SPLITS,
    "qa": SPLITS,
    "summaries": SPLITS,
    "heldout": ("validation",),
    "preferences": ("train", "validation"),
    "bad": ("train", "validation"),
}
# bad.jsonl is the training split of "bad": the file that a learner would be handed.
FILES = {("bad", "train"): "bad"}


def names() -> list[str]:
    """Return the names that `load` takes."""
    return list(DATASETS)


def load(name: str, split: str | None = None, form: str | None = None) -> Dataset | DatasetDict:
    """Load a dataset of the course from its local files, as `datasets.load_dataset` does.

    `form` is for "tickets" alone: "prompt-completion" (if not given), "text" or "messages". Returns
    the one split, or a DatasetDict of all. Columns of labels know the names of their classes
    (`dataset.features["label"].names`). Raises ValueError for a name, split or form that does not
    exist or a file that is cut off, and FileNotFoundError for a file that is not there.
    """
    _require("dataset", name, DATASETS)
    if split is not None:
        _require(f"split of '{name}'", split, DATASETS[name])
    if name != "tickets" and form is not None:
        raise ValueError(
            f"form={form!r} was given for '{name}'. Only 'tickets' comes in several forms. Leave "
            "out form, or load 'tickets'."
        )
    folder, suffix = paths.DATA / name, "jsonl"
    if name == "tickets":
        form = "prompt-completion" if form is None else form
        _require("form of 'tickets'", form, FORMS)
        folder, suffix = folder / FORMS[form][0], FORMS[form][1]

    wanted = DATASETS[name] if split is None else (split,)
    files = {one: folder / f"{FILES.get((name, one), one)}.{suffix}" for one in wanted}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(
                f"'{file}' is not there. The course's datasets lie under '{paths.DATA}'. Run `make "
                "data` to make them again, or take the course's folder whole."
            )
    with no_progress_bars():
        try:
            loaded = datasets.load_dataset(
                BUILDERS[suffix],
                # A folder's name may have what would be read as a pattern: course [copy].
                data_files={one: glob.escape(str(file)) for one, file in files.items()},
            )
        except Exception as error:  # a broken file fails in many ways, and few of them name it
            listed = ", ".join(f"'{file}'" for file in files.values())
            reason = error.__cause__ or error
            raise ValueError(
                f"{listed} cannot be read ({type(reason).__name__}: {reason}). The datasets of the "
                "course have to be whole. Run `make data` to make them again, or take the course's "
                "folder whole."
            ) from error
        loaded = _name_labels(loaded, folder)
    return loaded if split is None else loaded[split]


def _require(what: str, given: str, allowed: Collection[str]) -> None:
    if given not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"There is no {what} called {given!r}. Allowed: {listed}. Choose one.")


def _name_labels(loaded: DatasetDict, folder: Path) -> DatasetDict:
    """Give the columns of labels the class names of labels.json, where the folder has one."""
    file = folder / "labels.json"
    if not file.is_file():
        return loaded
    classes = ClassLabel(names=json.loads(file.read_text(encoding="utf-8")))
    columns = next(iter(loaded.values())).column_names
    for column, feature in (("label", classes), ("tags", List(classes))):
        if column in columns:
            loaded = loaded.cast_column(column, feature)
    return loaded


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep load_dataset quiet, and leave the reader's setting as it was."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
