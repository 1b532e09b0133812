"""What a result depends on beside the experiment: data, base model, libraries, device."""

from __future__ import annotations

import glob
import hashlib
import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers.utils import cached_file, extract_commit_hash

from course_utils import data, hardware
from course_utils.compare.experiment import Experiment
from course_utils.configs import load_config

COURSE_DATA = "tickets"
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Inputs:
    """The rows of a run: three splits in prompt-completion form, and texts for forgetting."""

    train: Dataset
    validation: Dataset | None
    test: Dataset
    heldout: list[str]

    @property
    def fingerprint(self) -> str:
        """A hash of every row that a result depends on."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            rows = part.to_list() if part is not None else []
            digest.update(json.dumps(rows, sort_keys=True, default=str).encode())
        digest.update(json.dumps(self.heldout).encode())
        return digest.hexdigest()


def load_inputs(experiment: Experiment) -> Inputs:
    """Return the rows of an experiment; `train_rows` and `test_rows` cut them from the end.

    Of a test split with a column `kind`, each kind is cut by itself.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: if a split has no rows, too few, or lacks a column.
    """
    if experiment.data == COURSE_DATA:
        splits = data.load(COURSE_DATA, form="prompt-completion")
        parts: dict[str, Dataset] = {name: splits[name] for name in PARTS}
        heldout = list(data.load("heldout", "validation")["text"])
    else:
        parts, heldout = _from_folder(Path(experiment.data))
    train, test = parts["train"], parts["test"]
    if experiment.train_rows is not None:
        train = _first(train, experiment.train_rows, experiment, "train_rows")
    if experiment.test_rows is not None:
        test = _first(test, experiment.test_rows, experiment, "test_rows")
    return Inputs(train, parts.get("validation"), test, heldout)


def model_fingerprint(path: str) -> str:
    """Return a hash that changes with the base model: of its files, or its commit on the hub.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_config`, if there is no such model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        load_config(path)  # says in plain words what is wrong with a name
        # The cache keeps each commit in a folder of its own, whose name is the commit.
        return f"{path}@{extract_commit_hash(cached_file(path, 'config.json'), None)}"
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Return on what a run is made: the device, and the versions of the libraries."""
    machine = hardware.detect()
    threads = torch.get_num_threads()
    # An Apple GPU stays idle: without CUDA a run is on the CPU (`build.sft_config`).
    on_cpu = f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    return {
        "device": machine.name if machine.device == "cuda" else on_cpu,
        "versions": {
            "python": platform.python_version(),
            **{library: metadata.version(library).split("+")[0] for library in LIBRARIES},
        },
    }


def _from_folder(folder: Path) -> tuple[dict[str, Dataset], list[str]]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data is {str(folder)!r}. Allowed is {COURSE_DATA!r} or a folder with train.jsonl and "
            "test.jsonl. Make the folder, or correct its name."
        )
    parts = {}
    for name in PARTS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            parts[name] = _rows(file, ("prompt", "completion"))
        elif name != "validation":
            raise FileNotFoundError(
                f"'{file}' is not there. train.jsonl and test.jsonl have to be."
            )
    heldout = folder / "heldout.jsonl"
    return parts, list(_rows(heldout, ("text",))["text"]) if heldout.is_file() else []


def _rows(file: Path, columns: tuple[str, ...]) -> Dataset:
    with data.no_progress_bars():
        rows = load_dataset("json", data_files=glob.escape(str(file)), split="train")
    missing = [column for column in columns if column not in rows.column_names]
    if missing or not len(rows):
        raise ValueError(
            f"'{file}' has {len(rows)} rows with the columns {', '.join(rows.column_names)}. It "
            f"has to have rows with {', '.join(columns)}, at least one. `python -m course_utils "
            "check FILE` says what else is wrong."
        )
    return rows


def _first(rows: Dataset, count: int, experiment: Experiment, key: str) -> Dataset:
    """Return the first rows; of each kind its share, where there are kinds."""
    if count > len(rows):
        raise ValueError(f"{key} is {count}, but {experiment.data} has only {len(rows)} such rows.")
    if "kind" not in rows.column_names or key == "train_rows":
        return rows.select(range(count))
    kinds: dict[Any, list[int]] = {}
    for i, kind in enumerate(rows["kind"]):
        kinds.setdefault(kind, []).append(i)
    shares = {kind: max(1, round(count * len(found) / len(rows))) for kind, found in kinds.items()}
    return rows.select(sorted(i for kind, found in kinds.items() for i in found[: shares[kind]]))
