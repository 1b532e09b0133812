"""Values of another type than the first part of a JSON file gives their field.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from datasets import Features

from preflight.dataset_check.forms import SETTINGS, Row
from preflight.dataset_check.parts import Ways, stops
from preflight.dataset_check.report import quote

Misfit = tuple[tuple[str, ...], pa.DataType | None, Any]  # way, type in the first part, value

ITEM = "[]"  # in the way to a field: the items of a list
ARGUMENTS = "arguments"  # of a tool call
ABSENT = type(None)
EXACT = 2**53  # whole numbers up to this are the same as floats
WHOLE = range(-(2**63), 2**63)
DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d)?)?Z?)?")
WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    ABSENT: "null",
}
KINDS: list[tuple[Callable[[pa.DataType], bool], str]] = [
    (pa.types.is_string, "text"),
    (pa.types.is_timestamp, "dates"),
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_integer, "whole numbers"),
    (pa.types.is_floating, "numbers"),
    (pa.types.is_list, "lists"),
    (pa.types.is_struct, "objects"),
    (pa.types.is_null, "null"),
]


class Later:
    """Compares the rows after a file's first part with the types that it gave."""

    def __init__(
        self, features: Features, ways: Ways, examples: bytes, *, one_part: bool = False
    ) -> None:
        """Take the features of the first part, its fields that are JSON, and some of its lines.

        With `one_part` load_dataset reads the rows that follow together with the first.
        """
        self._features, self._ways, self._one_part = features, ways, one_part
        self._kinds = {field.name: field.type for field in features.arrow_schema}
        self._fits = {name: _test(kind) for name, kind in self._kinds.items()}
        self._examples = examples
        self._codes: dict[tuple[tuple[str, ...], str], str] = {}

    def faults(
        self, row: Row, *, alone: bool = False
    ) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Put None where load_dataset will, and yield a code, a way and words for each misfit.

        `alone` says that the row begins a file, and so a part.
        """
        for name, value in row.items():
            if name not in self._fits or not self._fits[name](value):
                for way, kind, odd in _misfits(value, self._kinds.get(name), (name,)):
                    code = self._code((way, kind, odd), row, alone)
                    if code:
                        yield code, way, f"{_said(kind, odd)}: {quote(odd, 30)}"

    def _code(self, misfit: Misfit, row: Row, alone: bool) -> str:
        way, kind, odd = misfit
        if self._one_part:
            mixed = kind is not None and not pa.types.is_null(kind) and type(odd) is str
            return "json_column" if mixed or (kind == pa.string()) else ""
        if odd is None and kind is not None:
            return "nulls_filled"
        if kind is None:
            return "load_stops"
        known = way, WORDS[type(odd)]
        if known not in self._codes:
            # Of a part all that matters are the types in it.
            lines = (b"" if alone else self._examples) + json.dumps(row).encode()
            stopped = stops(lines, self._features, self._ways)
            self._codes[known] = "load_stops" if stopped else "load_changes"
        return self._codes[known]


def _said(kind: pa.DataType | None, odd: Any) -> str:
    if kind is None:
        return f"not in the first part, and here {WORDS[type(odd)]}"
    first = next((word for is_kind, word in KINDS if is_kind(kind)), str(kind))
    return f"{first} in the first part, and here {WORDS[type(odd)]}"


def _test(kind: pa.DataType) -> Callable[[Any], bool]:
    """Return a quick test of whether a value has a type, all that it holds included."""
    types = pa.types
    if types.is_struct(kind):
        return _test_of_objects(kind)
    if types.is_list(kind):
        of_items = _test(kind.value_type)
        return lambda v: v is None or (type(v) is list and all(map(of_items, v)))
    if types.is_string(kind):
        return lambda v: v is None or type(v) is str
    if types.is_boolean(kind) or types.is_null(kind):
        return lambda v: v is None or (type(v) is bool and types.is_boolean(kind))
    if types.is_integer(kind):
        return lambda v: v is None or (type(v) is int and v in WHOLE)
    if types.is_floating(kind):
        return lambda v: v is None or type(v) is float or (type(v) is int and -EXACT <= v <= EXACT)
    if types.is_timestamp(kind):
        return lambda v: v is None or (type(v) is str and DATE.fullmatch(v) is not None)
    return lambda v: True  # Json takes anything


def _test_of_objects(kind: pa.DataType) -> Callable[[Any], bool]:
    names = {field.name for field in kind}
    tests = {field.name: _test(field.type) for field in kind}

    def fits(value: Any) -> bool:
        if type(value) is not dict or value.keys() != names:
            return value is None
        for name, held in value.items():
            if not tests[name](held):
                return False
        return True

    def fits_texts(value: Any) -> bool:
        if type(value) is not dict or value.keys() != names:
            return value is None
        for held in value.values():
            if type(held) is not str and held is not None:
                return False
        return True

    # Messages are objects of texts, and many.
    return fits_texts if all(pa.types.is_string(field.type) for field in kind) else fits


def _misfits(value: Any, kind: pa.DataType | None, way: tuple[str, ...]) -> Iterator[Misfit]:
    """Yield what does not fit in a value, and put None where an object lacks a field."""
    if kind is None:
        yield way, None, value
    elif pa.types.is_struct(kind) and isinstance(value, dict):
        kinds = {field.name: field.type for field in kind}
        absent = kinds.keys() - value.keys()
        value |= dict.fromkeys(absent)
        if absent and (ARGUMENTS in way or way[0] == SETTINGS[0]):
            yield way, kind, None
        for name, held in value.items():
            yield from _misfits(held, kinds.get(name), (*way, name))
    elif pa.types.is_list(kind) and isinstance(value, list):
        for item in value:
            yield from _misfits(item, kind.value_type, (*way, ITEM))
    elif not _test(kind)(value) and not _same(value, kind):
        yield way, kind, value


def _same(value: Any, kind: pa.DataType) -> bool:
    """Return whether a number stays the same as the other kind of number."""
    if pa.types.is_integer(kind):
        return isinstance(value, float) and value.is_integer()
    return pa.types.is_floating(kind) and type(value) is int and value == _float(value)


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
