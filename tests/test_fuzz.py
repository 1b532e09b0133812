"""Whatever a file or a table holds, the two readers answer: with what they found, or in words.

hypothesis makes up the cases: noise, sound data with something wrong in it, and files that were cut
off or damaged. Each is either read or refused with the error that the reader promises, raised by
the course itself and not by a library below it. `make test` tries some hundreds of cases, always
the same; the tests marked `long` try 10,000 new ones and watch the memory.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import gzip
import io
import json
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import MANY
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from course_utils import compare
from course_utils.paths import COURSE_ROOT, POCKET_MODEL
from preflight import dataset_check

SHORT, LONG, BATCH = 300, 10_000 if MANY else 2_000, 500
PATIENCE = 30_000  # milliseconds for one case, of which most take a few
TOKENIZER = AutoTokenizer.from_pretrained(POCKET_MODEL)

# --- what cases are made of -----------------------------------------------------------------------

COLUMNS = (
    "text prompt completion messages chosen rejected instruction input output question answer "
    "context system conversations label labels tags input_ids completion_mask assistant_masks data "
    "tools instances kto_tag images"
).split()
ROLES = ("system", "user", "assistant", "tool", "human", "gpt", "function_call", "")
KEYS = ("role", "content", "from", "value", "input", "output", "tool_calls", "text")

# Every character, lone surrogates and control characters among them.
TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["", " ", "a lamp", "yes ", "\0"])
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
MESSAGE = st.dictionaries(
    st.sampled_from(KEYS), TEXT | SCALARS, max_size=3
) | st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": TEXT})
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)
CELLS = TEXT | st.lists(MESSAGE, max_size=4) | st.lists(st.integers(-200, 999), max_size=5) | VALUES
NAMES = st.sampled_from(COLUMNS) | TEXT


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that share their columns, as a dataset's do, though some cells are missing."""
    columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    kinds = {
        c: draw(st.sampled_from((TEXT, st.lists(MESSAGE, max_size=4), CELLS))) for c in columns
    }
    rows = draw(st.integers(0, 6))
    return [{c: draw(k) for c, k in kinds.items() if draw(st.integers(0, 9))} for _ in range(rows)]


ROWS = tables() | st.lists(st.dictionaries(NAMES, CELLS, max_size=4) | VALUES, max_size=5)


def as_split(rows: list[Any], kind: str) -> Any:
    """Return rows as one of the objects that a learner has."""
    if kind == "list":
        return rows
    assume(all(isinstance(row, dict) for row in rows))
    try:
        return pd.DataFrame(rows) if kind == "frame" else datasets.Dataset.from_list(rows)
    except Exception:
        assume(False)  # not even the library can hold these rows in one table


SPLITS = st.builds(as_split, ROWS, st.sampled_from(("list", "list", "frame", "dataset")))
OBJECTS = (
    SPLITS
    | st.dictionaries(st.sampled_from(("train", "validation", "test")) | TEXT, SPLITS, max_size=3)
    | st.dictionaries(NAMES | st.integers(), st.lists(CELLS, max_size=4), max_size=3)
    | VALUES
)


def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return bytes of which some were cut off, lost, or written over."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 30))
        content[start : start + length] = draw(st.binary(max_size=20))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def as_file(rows: list[Any], suffix: str) -> bytes:
    """Return rows as the content of a file of this kind."""
    if suffix == ".parquet":
        buffer = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist(rows), buffer)
        except Exception:
            assume(False)
        return buffer.getvalue()
    if suffix in (".csv", ".tsv"):
        table = io.StringIO()
        writer = csv.writer(table, delimiter="\t" if suffix == ".tsv" else ",", escapechar="\\")
        writer.writerow(dict.fromkeys(name for row in rows for name in row))
        writer.writerows(
            [json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in row.values()]
            for row in rows
        )
        return table.getvalue().encode("utf-8", "surrogatepass")
    indent = None if suffix == ".jsonl" else 1
    lines = [json.dumps(row, indent=indent, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    return text.encode("utf-8", "surrogatepass")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending of a file's name, and its bytes: sound, damaged, or noise."""
    suffix = draw(st.sampled_from((".jsonl", ".json", ".csv", ".tsv", ".parquet")))
    whole = draw(st.binary(max_size=200)) if not draw(st.integers(0, 5)) else None
    content = whole if whole is not None else damaged(draw, as_file(draw(tables()), suffix))
    if draw(st.integers(0, 4)):
        return suffix, content
    return f"{suffix}.gz", damaged(draw, gzip.compress(content, mtime=0))


EXPERIMENTS = yaml.safe_dump({"experiments": [e.to_dict() for e in compare.standard()]}).encode()


@st.composite
def experiment_files(draw: st.DrawFn) -> bytes:
    """The bytes of an experiment file, whole or damaged."""
    return damaged(draw, EXPERIMENTS)


# --- what is tried with each ----------------------------------------------------------------------


def is_ours(error: BaseException) -> bool:
    """Return whether an error was raised by the course's own code."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return any(file.is_relative_to(COURSE_ROOT / name) for name in ("course_utils", "preflight"))


def checks(dataset: object, max_length: int | None, tokens: bool) -> bool:
    """Check a dataset, and use the report in every way that there is; return if there was one."""
    # To read through all folders of this machine is right, too, where their name is given.
    assume(not (isinstance(dataset, str) and os.path.isdir(os.path.expanduser(dataset))))
    try:
        report = dataset_check.check(dataset, TOKENIZER if tokens else None, max_length)
    except ValueError as error:
        assert type(error) is ValueError and is_ours(error), repr(error)
        assert len(str(error)) > 40, error
        return False
    except (FileNotFoundError, RuntimeError) as error:  # a text is the name of a file or dataset
        assert isinstance(dataset, str) and is_ours(error)
        return False
    str(report).encode()
    assert "<script" not in report._repr_html_()
    assert len(report.to_frame()) == len(report.findings)
    assert json.loads(json.dumps(report.to_dict()))["ok"] == report.ok
    assert all(len(finding.example) < 120 for finding in report.findings)
    return True


def checks_file(file: tuple[str, bytes], max_length: int | None, tokens: bool) -> bool:
    suffix, content = file
    path = Path(f"rows{suffix}")
    path.write_bytes(content)
    return checks(path, max_length, tokens)


def reads(content: bytes) -> bool:
    path = Path("experiments.yaml")
    path.write_bytes(content)
    try:
        experiments = compare.read(path)
    except ValueError as error:
        assert type(error) is ValueError and is_ours(error), repr(error)
        assert 40 < len(str(error)) < 2000, error
        return False
    assert experiments and len({e.name for e in experiments}) == len(experiments)
    return True


LENGTHS = st.sampled_from((None, 1, 8, 1024))
FUZZED: dict[str, tuple[Callable[..., bool], dict[str, st.SearchStrategy[Any]]]] = {
    "check of objects": (
        checks,
        {"dataset": OBJECTS, "max_length": LENGTHS, "tokens": st.booleans()},
    ),
    "check of files": (
        checks_file,
        {"file": files(), "max_length": LENGTHS, "tokens": st.booleans()},
    ),
    "reader of experiments": (reads, {"content": experiment_files()}),
}
CALM = settings(deadline=PATIENCE, database=None, suppress_health_check=list(HealthCheck))


def run(name: str, folder: Path, how: settings, start: int | None = None) -> Counter[bool]:
    """Try one of the readers on so many cases; return how many it read, and how many not."""
    tried, strategies = FUZZED[name]
    outcomes: Counter[bool] = Counter()

    def case(**drawn: Any) -> None:
        outcomes[tried(**drawn)] += 1

    case.__name__ = name.replace(" ", "_")
    test = settings(how)(given(**strategies)(case))
    with contextlib.chdir(folder):  # a text that was made up may be the name of a file here
        (test if start is None else seed(start)(test))()
    return outcomes


@pytest.mark.parametrize("name", FUZZED)
def test_any_input_is_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    """A traceback from a library's depths tells a learner nothing."""
    outcomes = run(name, tmp_path, settings(CALM, max_examples=SHORT, derandomize=True))
    assert min(outcomes[True], outcomes[False]) > SHORT / 50, "one way was hardly tried"


@pytest.mark.long
@pytest.mark.parametrize("name", FUZZED)
def test_many_inputs_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    """A course's kernel lives for hours: what a call keeps adds up. The cases are new each time."""
    first = random.SystemRandom().randrange(2**32)
    print(f"seeds from {first}")
    blocks, sizes = [], []
    for number in range(LONG // BATCH):
        run(name, tmp_path, settings(CALM, max_examples=BATCH, print_blob=True), first + number)
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        sizes.append(psutil.Process().memory_info().rss)
    settled = len(blocks) // 4  # caches are filled by then
    assert blocks[-1] < 1.05 * blocks[settled], blocks
    assert sizes[-1] < 1.25 * sizes[settled], sizes
