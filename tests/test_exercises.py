"""The "Your turn" cells: every solution passes its check; three dots and a wrong answer do not."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from course_utils import exercises
from course_utils.paths import COURSE_ROOT

NOTEBOOKS = sorted((COURSE_ROOT / "notebooks").glob("[0-9]*.ipynb"))
CALL = re.compile(r'exercises\.check\(\s*"([^"]+)"')
SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)```", re.S)


def exercise_cells(notebook: NotebookNode) -> list[tuple[int, str, str]]:
    """Return ``(index of the cell, key, solution)`` of each exercise."""
    found = []
    for i, cell in enumerate(notebook.cells):
        call = CALL.search(cell.source) if cell.cell_type == "code" else None
        if call:
            solution = SOLUTION.search(notebook.cells[i + 1].source)
            assert solution, f"no solution below the exercise {call[1]}"
            found.append((i, call[1], solution[1]))
    return found


def test_every_check_is_used_by_a_lesson() -> None:
    """A check that no lesson calls is dead; a lesson's key without a check fails in the lesson."""
    used = [
        key for path in NOTEBOOKS for _, key, _ in exercise_cells(nbformat.read(path, as_version=4))
    ]
    assert sorted(used) == exercises.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_pass_and_wrong_answers_do_not(path: Path) -> None:
    """A solution that its own check refuses, or a check that anything passes, teaches wrongly."""
    notebook = nbformat.read(path, as_version=4)
    tried: dict[int, tuple[str, str]] = {}
    cells: list[NotebookNode] = []
    found = {i: (key, solution) for i, key, solution in exercise_cells(notebook)}
    for i, cell in enumerate(notebook.cells):
        if i not in found:
            cells.append(cell)
            continue
        key, solution = found[i]
        assert cell.source.startswith("answer = ...\n")
        for start, answer in (
            ("Not answered yet:", "answer = ..."),
            ("Not yet:", 'answer = "surely wrong"'),
            ("Not yet:", "answer = -1"),
            ("Right:", solution),
        ):
            tried[len(cells)] = (key, start)
            cells.append(new_code_cell(cell.source.replace("answer = ...", answer.strip())))
    notebook.cells = cells
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for i, (key, start) in tried.items():
        said = notebook.cells[i].outputs[-1]["data"]["text/plain"]
        assert said.startswith(start), (key, said)


def test_an_unknown_key_is_named() -> None:
    """A typo in a lesson's key must not look like a wrong answer."""
    with pytest.raises(ValueError, match="00-rank"):
        exercises.check("00-rang", 1)


def test_an_answer_of_another_kind_is_no_traceback() -> None:
    """A learner who gives a word for a number gets a hint, not a stack of frames."""
    verdict = exercises.check("00-speed", "fast", metrics={"train_runtime": 1, "epoch": 1}, rows=1)
    assert verdict.status == "not yet"
    assert "str" in verdict.message
