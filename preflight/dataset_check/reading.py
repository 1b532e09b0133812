"""Rows from anything that holds a dataset, one after another and without changing them.

Used by lessons: 01.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from course_utils.paths import is_path
from preflight.dataset_check.loading import Loaded
from preflight.dataset_check.parsing import KINDS, READERS, Faults, is_rows, rows_of, suffix_of
from preflight.dataset_check.report import quote

HELD_OUT = {"valid": 1, "val": 1, "dev": 1, "eval": 2, "test": 3}  # the order after training
MEDIA = (datasets.Image, datasets.Audio, datasets.Video)


@dataclass
class Split:
    """The rows of one split; `faults` and `count` fill while they are read.

    `faults` has those of each file by its name, which is "" where there is one file only; `loaded`
    knows what load_dataset makes of files.
    """

    name: str
    rows: Iterable[Any]
    columns: list[str] = field(default_factory=list)
    features: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Faults] = field(default_factory=dict)
    count: int = 0
    loaded: Loaded = field(default_factory=Loaded)


def open_splits(dataset: object) -> tuple[str, list[Split]]:
    """Return the dataset's name for a report and its splits, the training split first.

    Takes a `Dataset`, `IterableDataset` or dict of them, a list of dicts, a dict of columns, a
    DataFrame, a path to a file or folder, or a hub id. Raises FileNotFoundError for a path that is
    not there, ValueError for a file that is not of its kind or an object of another type, and
    RuntimeError for a hub id that cannot be loaded.
    """
    if isinstance(dataset, str | Path):
        return _from_path(dataset)
    if isinstance(dataset, dict):
        if any(isinstance(v, list) and not is_rows(v) for v in dataset.values()):
            return "dict of columns", [_from_columns(dataset)]
        return type(dataset).__name__, _sorted([_named(k, v) for k, v in dataset.items()])
    return type(dataset).__name__, [_named("train", dataset)]


def _from_columns(columns: dict[str, list[Any]]) -> Split:
    lengths = {name: len(v) if isinstance(v, list) else None for name, v in columns.items()}
    if len({*lengths.values()}) > 1:
        raise ValueError(
            f"check was given a dict of columns of the lengths {quote(lengths)} (None: no list). "
            "Columns are lists, all of one length. Make them so, or pass a list of dicts."
        )
    names = list(map(str, columns))
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Split("train", rows, names)


def _named(name: str, rows: object) -> Split:
    """Return one split of a Dataset, an IterableDataset, a DataFrame or a list."""
    name = str(name).encode("utf-8", "replace").decode()  # half a surrogate cannot be printed
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        features = dict(rows.features or {})
        of_rows = _dataset_rows(rows, features)
        return Split(name, of_rows, list(features), features, loaded=Loaded(features=features))
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        records = rows.to_dict("records")
        # numpy's arrays and numbers become lists and numbers
        rows = [
            {k: v.tolist() if hasattr(v, "tolist") else v for k, v in r.items()} for r in records
        ]
        return Split(name, rows)
    if isinstance(rows, list):
        return Split(name, rows)
    raise ValueError(
        f"check was given a {type(rows).__name__}. It takes a datasets.Dataset or DatasetDict, a "
        f"list of dicts, a file that ends in {KINDS}, a folder or a hub id. "
        "Pass one of these, for example the path of your file."
    )


def _dataset_rows(
    dataset: datasets.Dataset | datasets.IterableDataset, features: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the rows as they are stored, without the pictures and sounds (slow to decode)."""
    media = [name for name, f in features.items() if isinstance(getattr(f, "feature", f), MEDIA)]
    if media:
        dataset = dataset.remove_columns(media)
    try:
        for batch in dataset.with_format(None).iter(batch_size=1000):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))
    except ValueError as error:
        raise ValueError(
            f"The rows of the dataset cannot be read ({error}). Texts have to be UTF-8, and names "
            "of columns and of fields in them each another. Make the dataset anew with such."
        ) from error


def _sorted(splits: Iterable[Split]) -> list[Split]:
    def rank(split: Split) -> tuple[int, bool, str]:
        name = split.name.rsplit("/")[-1]
        place = max((n for start, n in HELD_OUT.items() if name.startswith(start)), default=0)
        return place, not name.startswith("train"), name

    return sorted(splits, key=rank)


def _from_path(given: str | Path) -> tuple[str, list[Split]]:
    path = Path(given).expanduser()
    if given != "" and path.is_dir():  # an empty name would be this folder
        return str(given), _from_folder(path)
    if path.is_file():
        return str(given), [_from_files("train", [path])]
    local = isinstance(given, Path) or not given or is_path(given)
    if local or suffix_of(path) in READERS:
        raise FileNotFoundError(
            f"No file or folder at '{given}'. check takes a file that ends in {KINDS}, a folder of "
            "such files, or a hub id such as 'owner/name'. Check the path."
        )
    try:
        loaded = datasets.load_dataset(str(given))
    except Exception as error:  # the hub client raises a dozen kinds of its own and of requests
        raise RuntimeError(
            f"The dataset '{given}' could not be loaded from the hub: {error}. Allowed are a local "
            "file or folder, or the id of a public dataset while online. Check the id and the "
            "network; where it needs a configuration or a login, call datasets.load_dataset "
            "yourself and pass the result."
        ) from error
    return str(given), _sorted(_named(name, rows) for name, rows in loaded.items())


def _from_folder(folder: Path) -> list[Split]:
    """Return a split for each name of file; `x-00000-of-00002` and its likes are one."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        loaded = datasets.load_from_disk(str(folder))
        splits = loaded if isinstance(loaded, dict) else {"train": loaded}
        return _sorted(_named(name, rows) for name, rows in splits.items())
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and suffix_of(f) in READERS]
    files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    # A .json among files of another kind describes them.
    files = [f for f in files if suffix_of(f) != ".json"] or files
    if not files:
        raise FileNotFoundError(
            f"The folder '{folder}' holds no data file. check reads {KINDS}. Name the folder that "
            "holds the data, or convert the files to one of these."
        )
    by_name: dict[str, list[Path]] = {}
    for file in files:
        stem = file.relative_to(folder).with_name(file.name.split(".")[0]).as_posix()
        by_name.setdefault(re.sub(r"[-_]\d+-of-\d+$", "", stem), []).append(file)
    return _sorted(_from_files(name, paths) for name, paths in by_name.items())


def _from_files(name: str, paths: list[Path]) -> Split:
    faults: dict[str, Faults] = {path.name if len(paths) > 1 else "": [] for path in paths}
    loaded = Loaded(paths)

    def rows() -> Iterator[Any]:
        number = 0
        for path, of_file in zip(paths, faults.values(), strict=True):
            loaded.begins.append(number)
            for row in rows_of(path, of_file):
                number += 1
                yield row

    return Split(name, rows(), faults=faults, loaded=loaded)
