"""What load_dataset makes of the values of a file, where that is not what stands there.

Of a file without features, load_dataset 5.2 takes each column's type from the first part alone.

Used by lessons: 01.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as paj
from datasets import Features
from datasets.utils.json import insert_json_field_path, ujson_loads

from preflight.dataset_check import csv_parts
from preflight.dataset_check.forms import CONTENT_KEYS, SETTINGS
from preflight.dataset_check.later import ARGUMENTS, ITEM, Later
from preflight.dataset_check.parsing import suffix_of
from preflight.dataset_check.parts import Start, Ways, features_of, read
from preflight.dataset_check.report import quote

TRUTH = ("true", "false", "1", "0")
JSON = (".json", ".jsonl", ".ndjson")
EXAMPLES = 100  # rows
INFINITE = float("inf")
Field = tuple[tuple[str, ...], pa.DataType]  # the way to it in a column, and what it becomes


class Loaded:
    """What load_dataset makes of files; it is told of each row, in their order."""

    def __init__(
        self, paths: Sequence[Path] = (), features: Mapping[str, Any] | None = None
    ) -> None:
        """Look at the first part of the first file, if it is of a kind that has no types.

        `features` are those of rows that are in a dataset already.
        """
        self._objects = _objects(features or {})  # where nulls may have been filled in
        self._fields: dict[str, list[Field]] = {}  # text that is taken for something else
        self._json: dict[str, list[tuple[str, ...]]] = {}  # text that is read as JSON
        self._settings: set[str] = set()
        self._csv: csv_parts.LaterTexts | None = None
        self._names: Collection[str] = ()  # the columns of the first file
        self._others: list[tuple[str, pa.DataType]] = []  # of CSV, that are not trained on
        self._later: Later | None = None
        self._first: float = 0  # the rows of the first part
        self.begins: list[int] = []  # the numbers of the rows at which files begin
        self.as_json: dict[str, str] = {}  # by the field, the first text that is read as JSON
        try:
            if paths and suffix_of(paths[0]) in (".csv", ".tsv"):
                self._csv = csv_parts.LaterTexts()
                self._note(csv_parts.schema_of(paths[0]))
            elif paths and suffix_of(paths[0]) in JSON:
                self._look(paths[0], more=len(paths) > 1)
        except (ValueError, OSError, EOFError, zlib.error, OverflowError, RecursionError):
            pass  # the reading of the rows says what is wrong with the file

    def _look(self, path: Path, *, more: bool) -> None:
        """Note what a file of JSON becomes; `more` says whether other files follow."""
        start, ways = Start(path), Ways()
        table = read(start.buffer, ways)
        self._note(table.schema)
        if self._fields and start.is_list and not start.whole:  # the rest may have a say, too
            start = Start(path, whole=True)
            table = read(start.buffer, ways)
        if self._fields or ways or more or not start.whole:  # where it is worth its time
            for way in start.mixed_objects(table):
                insert_json_field_path(ways, way)
            features = features_of(table, ways)
            self._fields = {}
            self._note(features.arrow_schema)
            for column, *way in ways:
                texts = tuple(ITEM if step == 0 else str(step) for step in way)
                if not texts or texts[-1] in CONTENT_KEYS:
                    self._json.setdefault(str(column), []).append(texts)
            if more or not start.whole:
                lines = start.lines()
                one_part = start.is_list and not more
                examples = [*islice(lines, EXAMPLES)]
                count = len(examples) + sum(1 for _ in lines)
                self._first = INFINITE if start.is_list and more else count
                # At a blank line load_dataset stops if it has to write a field as JSON.
                text = b"\n" * start.blank + b"".join(examples)
                self._later = Later(features, ways, text, one_part=one_part)

    def _note(self, columns: Iterable[pa.Field]) -> None:
        for column in columns:
            fields = [field for field in _fields(column.type, ()) if _trained(*field)]
            if fields:
                self._fields[column.name] = fields
            if column.name in SETTINGS:
                self._settings.add(column.name)

    def faults(
        self, number: int, row: dict[str, Any], columns: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield what load_dataset changes in a row, or stops at; put None where it will.

        Text of these columns is what is trained on.
        """
        for name in self._settings:
            row.setdefault(name, None)
        for column, way in self._objects:
            if any(map(_has_null, _values(row.get(column), way))):
                yield "nulls_filled", ".".join((column, *way))
        for column in columns if self._fields or self._json else ():
            for way, kind in self._fields.get(column, ()):
                for text in _texts(row.get(column), way):
                    code = "text_as_other_type" if _fits(text, kind) else "load_stops"
                    yield code, f"{'.'.join((column, *way))}: the text {quote(text, 30)}, as {kind}"
            for way in self._json.get(column, ()):
                where = ".".join((column, *way))
                if where not in self.as_json:
                    for text in filter(_is_json, _texts(row.get(column), way)):
                        self.as_json[where] = f"{where}: the text {quote(text, 30)}"
        if self._csv and (number in self.begins or self._csv.needs(number)):
            yield from self._csv_part_faults(number, row, columns)
        if self._others and (number >= csv_parts.PART or self._in_later_file(number)):
            for column, kind in self._others:
                text = row.get(column)
                if isinstance(text, str) and not _fits(text, kind):
                    yield "load_stops", f"{column}: the text {quote(text, 30)}, as {kind}"
        if self._later and (number >= self._first or self._in_later_file(number)):
            alone = number in self.begins
            for code, (column, *way), said in self._later.faults(row, alone=alone):
                where = ".".join((column, *way))
                if code != "json_column":
                    yield code, f"{where}: {said}"
                elif column in columns:
                    self.as_json[where] = f"{where}: {said}"

    def _csv_part_faults(
        self, number: int, row: dict[str, Any], columns: Collection[str]
    ) -> Iterator[tuple[str, str]]:
        """Note a row of CSV with which a part begins, and yield what is wrong with its columns."""
        new = number in self.begins
        self._csv.see(number, row, [n for n in columns if n not in self._fields], new)
        if number == 0:
            self._names = row.keys()
            self._others = [(n, f[0][1]) for n, f in self._fields.items() if n not in columns]
        elif new and (names := row.keys() - self._names):
            yield "load_stops", f"{', '.join(sorted(names))}: not in the first file"

    def of_parts(self) -> list[csv_parts.Found]:
        """Return what whole parts of the file show, once all rows were seen."""
        return self._csv.found() if self._csv else []

    def _in_later_file(self, number: int) -> bool:
        return len(self.begins) > 1 and number >= self.begins[1]


def _is_json(text: str) -> bool:
    try:
        ujson_loads(text)
    except ValueError:
        return False
    return True


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


def _values(value: Any, way: tuple[str, ...]) -> Iterator[Any]:
    if not way:
        yield value
    elif way[0] == ITEM:
        for item in value if isinstance(value, list) else ():
            yield from _values(item, way[1:])
    elif isinstance(value, dict):
        yield from _values(value.get(way[0]), way[1:])


def _texts(value: Any, way: tuple[str, ...]) -> Iterator[str]:
    return (text for text in _values(value, way) if isinstance(text, str))


def _objects(features: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the columns and ways to what templates write in full: tools and their arguments."""
    found: list[tuple[str, tuple[str, ...]]] = []

    def look(kind: pa.DataType, column: str, way: tuple[str, ...]) -> None:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            look(kind.value_type, column, (*way, ITEM))
        elif pa.types.is_struct(kind) and (column == SETTINGS[0] or way[-1:] == (ARGUMENTS,)):
            found.append((column, way))
        elif pa.types.is_struct(kind):
            for field in kind:
                look(field.type, column, (*way, field.name))

    for field in Features(features).arrow_schema if features else ():
        look(field.type, field.name, ())
    return found


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(held is None or _has_null(held) for held in value.values())
    return isinstance(value, list) and any(map(_has_null, value))


def _fits(text: str, kind: pa.DataType) -> bool:
    """Return whether a text becomes a value of this type; load_dataset stops at any other."""
    if text.isascii() and text.isdecimal() and pa.types.is_integer(kind):
        return True
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
