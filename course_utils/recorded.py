"""Measurements of programs that not everyone has installed: done, or shown from the record.

Used by lessons: 12.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from course_utils.files import write_whole
from course_utils.gguf_files import CONVERTER, INSTALL
from course_utils.paths import COURSE_ROOT

RECORD = COURSE_ROOT / "data" / "results" / "ship.json"
RECORDING = "COURSE_RECORD"  # with this variable set, what is measured becomes the record
LLAMA = ("xllamacpp",)


def missing(needs: Sequence[str] = LLAMA) -> str:
    """Return what is not installed of what a measurement needs, and how to install it; else ""."""
    absent = [name for name in needs if find_spec(name) is None]
    if "xllamacpp" in needs and not CONVERTER.is_dir():
        absent.append("llama.cpp's converters")
    return f"{' and '.join(absent)} not installed. {INSTALL}" if absent else ""


def measured(name: str, function: Callable[[], Any], needs: Sequence[str] = LLAMA) -> Any:
    """Return what a function measures; where something is missing, the committed result of it.

    It must be what JSON can hold. A line says so where the record is shown.

    Raises:
        KeyError: if something is missing, and nothing of that name is on record.
    """
    if lack := missing(needs):
        record = _record()
        if name not in record:
            raise KeyError(f"No result {name!r} in {RECORD.name}, and {lack}")
        print(f"From the record, with the pocket model on two cores: {lack}")
        return record[name]
    result = json.loads(json.dumps(function()))
    if os.environ.get(RECORDING):
        write_whole(RECORD, json.dumps(_record() | {name: result}, indent=1) + "\n")
    return result


def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
