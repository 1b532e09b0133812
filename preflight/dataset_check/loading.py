"""Text that load_dataset does not keep as text: what looks like dates, numbers, true or false.

Of a file without features, load_dataset 5.2 takes each column's type from the first part alone.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import mmap
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json as paj

from preflight.dataset_check.forms import CONTENT_KEYS
from preflight.dataset_check.parsing import open_bytes, suffix_of
from preflight.dataset_check.report import quote

JSON_PART = 10 << 20  # bytes
CSV_PART = 10_000  # rows
FEW = 500  # rows, of which it shows which columns may be no texts
TRUTH = ("true", "false", "1", "0")
ITEM = "[]"  # in the way to a field: the items of a list
Field = tuple[tuple[str, ...], pa.DataType]  # the way to it in a column, and what it becomes


class Loaded:
    """The fields of a file's columns that load_dataset takes for something else than text."""

    def __init__(self, path: Path | None = None) -> None:
        """Look at the first part of a file, if it is of a kind that has no types of its own."""
        self._fields: dict[str, list[Field]] = {}
        for column in _schema(path) if path else ():
            fields = [field for field in _fields(column.type, ()) if _trained(*field)]
            if fields:
                self._fields[column.name] = fields

    def faults(self, row: dict[str, Any], columns: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield a fault for each text in these columns of a row that becomes another type."""
        for column in columns if self._fields else ():
            for way, kind in self._fields.get(column, ()):
                for text in _texts(row.get(column), way):
                    code = "text_as_other_type" if _fits(text, kind) else "load_stops"
                    yield code, f"{'.'.join((column, *way))}: the text {quote(text, 30)}, as {kind}"


def _schema(path: Path) -> Iterable[pa.Field]:
    """Return the columns that load_dataset finds in a file; none where it stops at once."""
    suffix = suffix_of(path)
    try:
        if suffix in (".csv", ".tsv"):
            return _csv_schema(path, "\t" if suffix == ".tsv" else ",")
        return _json_schema(path) if suffix in (".json", ".jsonl", ".ndjson") else ()
    except (ValueError, OSError, EOFError, zlib.error, OverflowError, RecursionError):
        return ()  # the reading of the rows says what is wrong with the file


def _csv_schema(path: Path, separator: str) -> Iterable[pa.Field]:
    start = pd.read_csv(path, sep=separator, nrows=FEW)
    # The texts are left out of the rest, so that it needs little memory.
    other = [n for n, kind in enumerate(start.dtypes) if not pd.api.types.is_string_dtype(kind)]
    if not other:
        return ()
    frame = pd.read_csv(path, sep=separator, nrows=CSV_PART, usecols=other, low_memory=False)
    return pa.Schema.from_pandas(frame, preserve_index=False)


def _json_schema(path: Path) -> Iterable[pa.Field]:
    with open_bytes(path) as file:
        if isinstance(file, gzip.GzipFile):
            whole = file.read(JSON_PART) + file.readline()
        else:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 3 if whole[:3] == codecs.BOM_UTF8 else 0
    end = whole.find(b"\n", start + JSON_PART)  # the line at which the part ends is of it
    part = memoryview(whole)[start : end if end >= 0 else None]
    if part[:1] == b"[":  # one document, of which load_dataset makes lines
        if end >= 0 or len(part) > JSON_PART:
            return ()
        part = "\n".join(map(json.dumps, json.loads(bytes(part)))).encode()
    options = paj.ReadOptions(block_size=len(part) + 1)
    return paj.read_json(pa.BufferReader(pa.py_buffer(part)), options).schema


def _fields(kind: pa.DataType, way: tuple[str, ...]) -> Iterator[Field]:
    """Yield the fields of a type, at any depth, that are dates, numbers or truth values."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _fields(field.type, (*way, field.name))
    elif pa.types.is_list(kind):
        yield from _fields(kind.value_type, (*way, ITEM))
    elif pa.types.is_primitive(kind):
        yield way, kind


def _trained(way: tuple[str, ...], kind: pa.DataType) -> bool:
    """Return whether a field is text to the trainer: not the time of a message, nor token ids."""
    names = [name for name in way if name != ITEM]
    return names[-1] in CONTENT_KEYS if names else not way or pa.types.is_timestamp(kind)


def _texts(value: Any, way: tuple[str, ...]) -> Iterator[str]:
    if not way:
        yield from [value] if isinstance(value, str) else []
    elif way[0] == ITEM:
        for item in value if isinstance(value, list) else ():
            yield from _texts(item, way[1:])
    elif isinstance(value, dict):
        yield from _texts(value.get(way[0]), way[1:])


def _fits(text: str, kind: pa.DataType) -> bool:
    """Return whether a text becomes a value of this type; load_dataset stops at any other."""
    if pa.types.is_timestamp(kind):
        read = paj.read_json(io.BytesIO(json.dumps({"text": text}).encode()))
        return read.schema.field("text").type == kind
    if pa.types.is_boolean(kind):
        return text.lower() in TRUTH
    try:
        number = float(text)
    except ValueError:
        return False
    return number.is_integer() or not pa.types.is_integer(kind)
