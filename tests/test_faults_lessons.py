"""Lessons again and again: `make test-long REPEAT=10` runs each ten times in a row.

In the first time each cell is run twice, as a reader does who is not sure. Without REPEAT that is
done with a few lessons only, since `make test` has run each once.
"""

from __future__ import annotations

import copy
import os

import nbformat
import pytest
import run_lessons
from helpers import MANY, QUIET, SECOND_ADAPTER
from nbclient import NotebookClient

pytestmark = pytest.mark.long

REPEAT = int(os.environ.get("REPEAT") or 0)
LESSONS = [run_lessons.label(path) for path in run_lessons.lessons()]
QUICK = ("02",)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(lesson, id=f"lesson_{lesson}")
        for lesson in (LESSONS if MANY or REPEAT else QUICK)
    ],
)
def test_each_cell_of_a_lesson_twice(lesson: str) -> None:
    """A second run of a cell fails as little as the first, and no adapter comes on another."""
    (path,) = run_lessons.lessons(lesson)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [twin for cell in cells for twin in (cell, copy.deepcopy(cell))]
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.outputs = f"cell-{number}", []
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=run_lessons.CELL_LIMIT, resources=resources).execute()
    for once, twice in zip(notebook.cells[::2], notebook.cells[1::2], strict=True):
        for words in SECOND_ADAPTER:
            assert words in printed(once) or words not in printed(twice), printed(twice)


@pytest.mark.parametrize(
    ("lesson", "time"),
    [
        pytest.param(lesson, time, id=f"lesson_{lesson}, time {time}")
        for lesson in LESSONS
        for time in range(2, REPEAT + 1)
    ],
)
def test_a_lesson_once_more(lesson: str, time: int) -> None:
    """In a kernel of its own, with what the time before has left: Restart and Run All."""
    (path,) = run_lessons.lessons(lesson)
    run_lessons.execute(path)


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)
