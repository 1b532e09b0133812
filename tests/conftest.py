"""Fixtures that many tests share, and how the notebooks are tested: each is executed once.

Exercises are answered on the way: after the cell of one, which is run as the reader finds it, come
cells in the same kernel that answer it: wrongly, where the check has to say so, and with the
lesson's own solution. The notebooks that the run executed are counted, so that none can be left
out unnoticed.
"""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import notebook_failures
import pytest
import torch
from nbval.plugin import IPyNbCell

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
DEEPER = NOTEBOOKS / "deeper"
# A progress bar is an output that only the first run on a machine has: later ones find the cache.
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
UNANSWERED = "answer = ...\n"
SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: for models this small, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The pocket model's tokenizer, for all tests of a file; none may change it."""
    from transformers import AutoTokenizer

    from course_utils.paths import POCKET_MODEL

    return AutoTokenizer.from_pretrained(POCKET_MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    """The pocket model in float32, for all tests of a file; none may change it."""
    from transformers import AutoModelForCausalLM

    from course_utils.paths import POCKET_MODEL

    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def rng() -> random.Random:
    """Moments to kill at; what is printed makes the same ones again."""
    seed = random.randrange(10**6)
    print(f"the moments come from random.Random({seed})")
    return random.Random(seed)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-notebook",
        action="store_true",
        help="fail unless the run executes each notebook of notebooks/, or of notebooks/deeper/ if "
        "that is given instead",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the cells that answer exercises, and give outputs time to arrive.

    nbval waits 5 s for them, too short on a machine that is busy.
    """
    items[:] = [cell for item in items for cell in (item, *answered(item))]
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 60


def answered(item: pytest.Item) -> Iterator[IPyNbCell]:
    """Yield cells that answer the exercise of a notebook's cell, if it is one."""
    if not isinstance(item, IPyNbCell) or not item.cell.source.startswith(UNANSWERED):
        return
    cells = item.parent.nb.cells
    position = next(i for i, cell in enumerate(cells) if cell is item.cell)
    solution = SOLUTION.search(cells[position + 1].source)
    assert solution, f"{item.name} is an exercise without a solution below it"
    for start, answer in (
        ("Not answered yet:", "answer = ..."),
        ("Not yet:", 'answer = "surely wrong"'),
        ("Not yet:", "answer = -1"),
        ("Right:", solution[1].strip()),
    ):
        cell = copy.deepcopy(item.cell)
        cell.outputs = []
        cell.source = cell.source.replace("answer = ...", answer).replace(
            "exercises.check(", "verdict = exercises.check("
        )
        cell.source += f"\nassert repr(verdict).startswith({start!r}), verdict"
        yield IPyNbCell.from_parent(
            item.parent,
            name=f"{item.name} [{answer.splitlines()[-1]}]",
            cell_num=item.cell_num,
            cell=cell,
            options=item.options,
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NotebookCount(config), "notebook-count")
    # A hook for single tests is asked in this file for those below its folder alone, so no lesson.
    config.pluginmanager.register(notebook_failures, "notebook-failures")


class NotebookCount:
    """Remembers the notebooks of which every cell was run."""

    def __init__(self, config: pytest.Config) -> None:
        self.required = config.getoption("--every-notebook")
        given = {Path(config.invocation_params.dir, argument).resolve() for argument in config.args}
        folder = DEEPER if DEEPER in given else NOTEBOOKS
        self.existing = {path.name for path in folder.glob("*.ipynb")}
        self.ran: set[str] = set()
        self.short: set[str] = set()  # a cell was left out, skipped or failed

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.short |= {item.path.name for item in items} & self.existing

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = Path(report.location[0]).name
        if name not in self.existing:
            return
        if report.when == "call" and report.passed:
            self.ran.add(name)
        elif not report.passed:
            self.short.add(name)

    @property
    def whole(self) -> set[str]:
        return self.ran - self.short

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.required and (self.whole != self.existing or not self.existing):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not (self.ran or self.required):
            return
        terminalreporter.line(f"notebooks run: {len(self.whole)} of {len(self.existing)}")
        for name in sorted(self.existing - self.whole) if self.required else []:
            terminalreporter.line(f"not run whole: {name}", red=True)
