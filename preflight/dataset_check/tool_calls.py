"""Calls of tools that do not fit the definitions: names, arguments, answers.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import exceptions, validators

from preflight.dataset_check.forms import Row
from preflight.dataset_check.rendering import called, calls_of
from preflight.dataset_check.rows import Fault

CODE = "tool_call_mismatch"
IN_WORDS = re.compile(r"call|function|action|\bname\b|<\|", re.IGNORECASE)  # of a call as text


def tool_faults(columns: Row, tools: Any) -> Iterator[Fault]:
    """Yield what does not fit in the calls of a row's messages, whose tools are given.

    Without definitions only the answers of tools are held to the calls.
    """
    messages = [m for value in columns.values() if isinstance(value, list) for m in value]
    if not [m for m in messages if isinstance(m, dict) and _is_of_tool(m)]:
        return
    defined = _definitions(tools)
    before: list[Row] = []
    said = ""
    for message in messages:
        if not isinstance(message, dict):
            continue
        if message.get("role") == "tool" and (before or not IN_WORDS.search(said)):
            yield from _answer_faults(message, before)
        if message.get("role") == "assistant":
            said = str(message)
        for call in calls_of(message):
            before.append(call)
            yield from _call_faults(call, defined)


def _is_of_tool(message: Row) -> bool:
    return bool(message.get("tool_calls")) or message.get("role") == "tool"


def _definitions(tools: Any) -> dict[str, Row]:
    """Return the functions that are defined, by name; {} where nothing is."""
    named: dict[str, Row] = {}
    for tool in tools if isinstance(tools, list) else ():
        function = called(tool) if isinstance(tool, dict) else {}
        if isinstance(function.get("name"), str):
            named[function["name"]] = function
    return named


def _call_faults(call: Row, defined: dict[str, Row]) -> Iterator[Fault]:
    function = called(call)
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            yield CODE, f"{name}: the arguments are no JSON"
            return
    if not defined:
        return
    if name not in defined:
        is_or_are = "is" if len(defined) == 1 else "are"
        yield CODE, f"{name} is not defined; {', '.join(sorted(defined))} {is_or_are}"
        return
    if arguments is not None and not isinstance(arguments, dict):
        yield CODE, f"{name}: the arguments are no object"
        return
    schema = _without_none(defined[name].get("parameters"))
    if not isinstance(schema, dict):
        return
    # `datasets` gives each call the arguments of all others, as None.
    arguments = _without_none(arguments or {})
    properties = schema.get("properties")
    if isinstance(properties, dict) and (unknown := sorted({*arguments} - {*properties})):
        yield CODE, f"{name} has no argument {unknown[0]!r}"
        return
    error = _first_error(json.dumps(schema, sort_keys=True, default=str), arguments)
    if error:
        yield CODE, f"{name}: {error}"


def _first_error(schema: str, arguments: Row) -> str:
    validator = _validator(schema)
    if validator is None:
        return ""
    try:
        error = next(validator.iter_errors(arguments), None)
    except Exception:  # a reference that leads nowhere, a pattern that is none
        return ""
    if error is None:
        return ""
    if error.validator == "required":
        return error.message
    # The value may be private, so the message, which quotes it, is not shown.
    place = ".".join(map(str, error.absolute_path))
    return f"{place} does not fit {{{error.validator!r}: {error.validator_value!r}}}"


@lru_cache(maxsize=1000)
def _validator(schema: str) -> Any:
    """Return what checks arguments; None for a schema that is none, as many data sets have."""
    parsed = json.loads(schema)
    kind = validators.validator_for(parsed)
    try:
        kind.check_schema(parsed)
    except exceptions.SchemaError:
        return None
    return kind(parsed)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _answer_faults(message: Row, before: list[Row]) -> Iterator[Fault]:
    """Yield what does not fit between a tool's answer and the calls before it."""
    if not before:
        yield CODE, "a tool answers, and none was called"
        return
    ids = [call["id"] for call in before if isinstance(call.get("id"), str)]
    if isinstance(message.get("tool_call_id"), str) and ids and message["tool_call_id"] not in ids:
        yield CODE, f"an answer to {message['tool_call_id']!r}, which was not called"
        return
    names = [called(call).get("name") for call in before]
    if isinstance(message.get("name"), str) and message["name"] not in names:
        yield CODE, f"{message['name']} answers, and {', '.join(map(str, names))} was called"
