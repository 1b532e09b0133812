"""The rows of one file, and what load_dataset would not read as it stands there.

Files are read here rather than with `datasets.load_dataset`, which stops at the first bad line and
needs every column to be of one type: a check has to see the rows as they stand in the file.

Used by lessons: 01.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

# What pandas, and so load_dataset("csv"), reads as a missing value.
CSV_MISSING = frozenset(
    "#N/A;#N/A N/A;#NA;-1.#IND;-1.#QNAN;-NaN;-nan;1.#IND;1.#QNAN;<NA>;N/A;NA;NULL;NaN;None;n/a;nan;"
    "null;".split(";")  # the last one is the empty cell
)
WRAPPERS = ("data", "rows", "train", "examples", "instances")
Faults = list[tuple[str, int | None, str]]  # of one file: code, line (None: the whole file), reason


def suffix_of(path: Path) -> str:
    """Return the ending of a file's name in lower case, without that of its compression."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_rows(value: list[Any]) -> bool:
    """Return whether a list holds nothing but rows."""
    return all(isinstance(row, dict) for row in value)


def rows_of(path: Path, faults: Faults) -> Iterator[Any]:
    """Yield the rows of a file; what is wrong with it is added to `faults` on the way.

    Raises:
        ValueError: if the file is of another kind than its name says, or is cut off.
    """
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise ValueError(
            f"'{path}' ends in '{suffix}'. check reads {KINDS}. Convert the file, or load it with "
            "datasets.load_dataset and pass the result."
        )
    try:
        yield from READERS[suffix](path, faults)
    except (pa.ArrowException, csv.Error, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"'{path}' cannot be read to its end ({error}). A data file must be whole and of the "
            "kind that its name says. Fetch it again (a Git LFS pointer is a few lines of text), "
            "or rename it."
        ) from error


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to read what it holds, unpacked."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return opener(path, "rb")


def _open(path: Path) -> IO[str]:
    # Bytes that are not UTF-8 become U+FFFD, which is a finding of its own.
    return TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="replace", newline="")


def _read_parquet(path: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
        try:
            yield from batch.to_pylist()
        except ValueError as error:  # bytes in a text that are not UTF-8, two fields of one name
            raise pa.ArrowInvalid(str(error)) from error


def _read_csv(path: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as file:
        reader = csv.reader(file, delimiter="\t" if suffix_of(path) == ".tsv" else ",")
        names = _column_names(next(reader, []), faults)
        for cells in reader:
            if len(cells) == len(names):
                values = [None if cell in CSV_MISSING else cell for cell in cells]
                yield dict(zip(names, values, strict=True))
            elif cells:
                reason = f"{len(cells)} cells, the header has {len(names)}"
                faults.append(("broken_line", reader.line_num, reason))


def _column_names(header: list[str], faults: Faults) -> list[str]:
    """Return the names as load_dataset has them: of two that are 'text', the second is 'text.1'."""
    seen: Counter[str] = Counter()
    names = []
    for name in header:
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    repeated = [name for name, count in seen.items() if name and count > 1]
    if repeated:
        faults.append(("repeated_column", None, f"more than one: {', '.join(repeated)}"))
    return names


def _read_json(path: Path, faults: Faults) -> Iterator[Any]:
    """Yield the rows of JSON lines or of one JSON document, whatever the file is called."""
    with _open(path) as file:
        first = [*islice((line for line in file if line.strip()), 2)]
    if len(first) == 1 or (first and not isinstance(_parse(first[0]), dict)):
        with _open(path) as file:
            text = file.read()
        document = _parse(text)
        if isinstance(document, list):
            yield from document
            return
        if not isinstance(document, Exception):
            yield from _wrapped(document, faults) or _row(text, 1, faults)
            return
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield from _row(line, number, faults)


def _parse(text: str) -> Any:
    """Return the parsed JSON, or the exception that says why not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def _row(text: str, line: int, faults: Faults) -> Iterator[dict[str, Any]]:
    # load_dataset stops at a key that is there twice, except in a list of rows.
    try:
        row = STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        row = error
    if isinstance(row, dict):
        yield row
    else:
        reason = row if isinstance(row, Exception) else "not an object"
        faults.append(("broken_line", line, f"{reason}: {text.strip()[:60]}"))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name} is there {count} times")
    return row


STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _wrapped(document: Any, faults: Faults) -> list[Any]:
    """Return the rows that stand under a key of the document, if there are any."""
    for key in WRAPPERS if isinstance(document, dict) else ():
        rows = document.get(key)
        if rows and isinstance(rows, list) and is_rows(rows):
            faults.append(("wrapped_rows", None, f'field="{key}"'))
            return rows
    return []


READERS: dict[str, Callable[[Path, Faults], Iterator[Any]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
KINDS = f"{', '.join(READERS)} (also with .gz)"
