"""What load_dataset makes of the parts of a JSON file, of which it reads 10 MB at a time.

It takes the type of each field from the first part and gives it to all that follows. Where a part
holds values of several types in one field, it writes these as JSON. In the first part it turns them
back later on (the type is `Json()`); else they stay text, and so does all of the field after them.

Used by lessons: 01.
"""

from __future__ import annotations

import codecs
import gzip
import json
import mmap
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.json as paj
from datasets import Features
from datasets.table import table_cast
from datasets.utils.json import (
    find_mixed_struct_types_field_paths,
    get_json_field_path_from_pyarrow_json_error,
    insert_json_field_path,
    json_encode_fields_in_json_lines,
    set_json_types_in_feature,
    ujson_loads,
)

from preflight.dataset_check.parsing import open_bytes

PART = 10 << 20  # bytes; the line at which a part ends is of it
FEW, MANY = 50, 1000  # rows that are looked at together
BETWEEN = re.compile(r"[\s,]*")

Ways = list[list[str | int]]  # to the fields that are written as JSON; 0 stands for a list's items


class Start:
    """The first part of a file, as lines.

    Of a file that is one list, all is the first part to load_dataset; of a long one only the first
    rows are here, unless it is to be read whole. `whole` says whether nothing follows these lines,
    `blank` whether a blank one was met among them.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        """Read it. Raises ValueError or OSError if it cannot be read."""
        with open_bytes(path) as file:
            if isinstance(file, gzip.GzipFile):
                data = file.read(-1 if whole else PART) + file.readline() + file.read(1)
            else:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 3 if data[:3] == codecs.BOM_UTF8 else 0
        self.blank = False
        self.is_list = data[start : start + 1] == b"["
        end = len(data) if whole else start + PART
        if not self.is_list:
            end = data.find(b"\n", end) + 1 or len(data)
        self.whole = end >= len(data)
        self._data, self._start, self._end = data, start, min(end, len(data))
        if self.is_list:
            text = data[start:end]
            rows = json.loads(text) if self.whole else _first_rows(text.decode(errors="ignore"))
            self._data = "\n".join(map(json.dumps, rows)).encode()
            self._start, self._end = 0, len(self._data)

    @property
    def buffer(self) -> memoryview:
        """All of the lines, not copied."""
        return memoryview(self._data)[self._start : self._end]

    def lines(self) -> Iterator[bytes]:
        """Yield each line that is not blank."""
        place = self._start
        while place < self._end:
            end = self._data.find(b"\n", place, self._end) + 1 or self._end
            line = self._data[place:end]
            if line.strip():
                yield line
            else:
                self.blank = True
            place = end

    def mixed_objects(self, table: pa.Table) -> Ways:
        """Return the ways to objects that have other keys in other rows, given all as a table."""
        if not any(_lacks(column.type, column.chunks) for column in table.columns):
            return []
        lines, ways = self.lines(), Ways()
        first = [*islice(lines, FEW)]
        while some := [*islice(lines, MANY)] or first:
            try:
                rows = [*map(ujson_loads, chain(first, some))]
            except ValueError:  # such as a number above 2**64, where load_dataset does not look
                return []
            for way in find_mixed_struct_types_field_paths(rows):
                if not any(way[: len(known)] == known for known in ways):
                    insert_json_field_path(ways, way)
            if some is first:
                break
        return ways


def _lacks(kind: pa.DataType, chunks: list[pa.Array]) -> bool:
    """Return whether a field of an object is null somewhere, as one is that is not there."""
    if pa.types.is_list(kind):
        return _lacks(kind.value_type, [chunk.flatten() for chunk in chunks])
    if not pa.types.is_struct(kind):
        return False
    for place, field in enumerate(kind):
        held = [chunk.drop_null().field(place) for chunk in chunks]
        if any(values.null_count for values in held) or _lacks(field.type, held):
            return True
    return not len(kind)


def _first_rows(text: str) -> list[object]:
    """Return the whole rows at the start of a list."""
    decode, rows, place = json.JSONDecoder().raw_decode, [], 1
    while True:
        place = BETWEEN.match(text, place).end()
        try:
            row, place = decode(text, place)
        except ValueError:  # here the text ends
            return rows
        rows.append(row)


def read(lines: bytes | memoryview, ways: Ways) -> pa.Table:
    """Return lines as load_dataset reads them, and add to `ways` the fields of several types.

    Raises ValueError where load_dataset stops (pyarrow's ArrowInvalid is one).
    """
    while True:
        try:
            text = json_encode_fields_in_json_lines(bytes(lines), ways) if ways else lines
        except (TypeError, AttributeError) as error:  # a list in some rows, or an object
            raise ValueError(
                f"A field of several types cannot be written as JSON: {error}"
            ) from error
        options = paj.ReadOptions(block_size=len(text) + 1)
        try:
            return paj.read_json(pa.BufferReader(pa.py_buffer(text)), options)
        except pa.ArrowInvalid as error:
            if "JSON parse error: Column(" not in str(error) or "changed from" not in str(error):
                raise
            way = get_json_field_path_from_pyarrow_json_error(str(error))
            if not way or any(way[: len(known)] == known for known in ways):
                raise
            insert_json_field_path(ways, way)


def features_of(first: pa.Table, ways: Ways) -> Features:
    """Return the features that load_dataset takes from the first part of a file."""
    return set_json_types_in_feature(Features.from_arrow_schema(first.schema), ways)


def stops(lines: bytes, features: Features, ways: Ways) -> bool:
    """Return whether load_dataset stops at such a later part, given the features of the first.

    Where it goes on, the fields of several types are added to `ways`.
    """
    schema, found = features.arrow_schema, [*ways]
    try:
        table = read(lines, found)
        columns = {}
        for field in schema:
            absent = field.name not in table.column_names
            # load_dataset writes an object as JSON where there is text in the first part.
            as_text = field.type == pa.string() and not absent and _is_object(table, field.name)
            if absent or as_text:
                columns[field.name] = pa.nulls(len(table), field.type)
        rest = [name for name in table.column_names if name not in columns]
        columns |= {name: table[name] for name in rest}
        table_cast(pa.table(columns), schema)
    except (ValueError, TypeError, pa.ArrowException):
        return True
    ways[:] = found
    return False


def _is_object(table: pa.Table, name: str) -> bool:
    return pa.types.is_struct(table.schema.field(name).type)
