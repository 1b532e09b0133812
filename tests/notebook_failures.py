"""Fails the cells of a notebook under nbval that hide a failure: a plugin, so that all are asked.

A cell with the tag raises-exception names the error that it means in a line `# raises ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

DEPRECATED = re.compile(r"DeprecationWarning|FutureWarning|\bdeprecated\b")
MEANT = re.compile(r"^# raises (\w+)$", re.M)
WATCH = Path(__file__).with_name("kernel_watch.py")
WATCHED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a cell that hides a failure, or whose calls are deprecated.

    Libraries say that a call is deprecated by warnings and by logging.
    """
    if not isinstance(item, IPyNbCell):
        return (yield)
    if WATCHED not in item.parent.stash:
        watch = f"__import__('runpy').run_path({str(WATCH)!r})['Watch'](get_ipython())"
        assert not (why := refused(item, f"get_ipython().watch = {watch}")), why
        item.parent.stash[WATCHED] = True
    result = yield
    outputs = item.test_outputs or []
    raised = [output.ename for output in outputs if output.output_type == "error"]
    meant = MEANT.findall(item.cell.source)
    if item.options["check_exception"] and (not meant or raised != meant):
        item.raise_cell_error(
            f"The cell may raise, and raised {raised or 'nothing'}; by its comment `# raises "
            f"NameOfTheError` it means {meant or 'no error, so write one'}"
        )
    cells = [one for one in item.session.items if one.parent is item.parent]
    last = item is [one for one in cells if not one.options["skip"]][-1]
    if why := refused(item, f"{'await ' * last}get_ipython().watch.check{'_last' * last}()"):
        item.raise_cell_error(f"A failure that no cell raised, of this cell or before: {why}")
    printed = [output.text for output in outputs if output.get("name") == "stderr"]
    found = [line for text in printed for line in text.splitlines() if DEPRECATED.search(line)]
    assert not found, f"a call of this cell is deprecated: {found}"
    return result


def refused(cell: IPyNbCell, source: str) -> str:
    """Run a line of our own in a notebook's kernel; return its error's message, "" if none."""
    client = cell.parent.kernel.kc
    reply = client.execute(source, silent=True, reply=True, timeout=cell.output_timeout)["content"]
    return "" if reply["status"] == "ok" else reply["evalue"] or reply["ename"]
