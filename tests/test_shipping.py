"""Lesson 09's helpers: a server that always ends, and figures of errors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import QuietHandler, served

from course_utils import plots, serving
from course_utils.paths import POCKET_MODEL
from course_utils.serving import HOST, require_refusal, serve

STARTER = """
import sys, time
from course_utils import serving
with getattr(serving, sys.argv[1])(sys.argv[2]) as (address, key):
    print(address, flush=True)
    time.sleep(600)
"""


def answers(address: str) -> bool:
    """Return whether a server answers there."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address.removesuffix("/v1") + "/health", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def assert_ends_with_its_starter(function: str, model: Path) -> None:
    """Serve a model in a process, kill that, and wait for the server to be gone.

    Nothing of Python runs after SIGKILL (memory ran out), so no `finally` can help.
    """
    command = [sys.executable, "-c", STARTER, function, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        try:
            address = starter.stdout.readline().strip()
            assert address.startswith(f"http://{HOST}:") and answers(address)
        finally:
            os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while answers(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(address)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not a signal of Windows")
def test_a_killed_kernel_takes_the_server_along() -> None:
    assert_ends_with_its_starter("serve", POCKET_MODEL)


def test_a_folder_without_a_model_is_named() -> None:
    """An adapter's folder is the likely mistake: it has to be merged first."""
    with pytest.raises(FileNotFoundError, match="merge"), serve("data/tickets"):
        pass


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """A folder with a broken config shows the server's own words instead of a long wait."""
    shutil.copytree(POCKET_MODEL, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(RuntimeError, match=r"ended before it answered[\s\S]*no-such-model"):
        with serve(tmp_path / "broken"):
            pass


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_server_that_does_not_refuse_is_not_handed_out(status: int) -> None:
    """A transformers that starts uvicorn in another way would serve without the key."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.answer(status)

    with served(Handler) as (address, _):
        with pytest.raises(RuntimeError, match=rf"{status}\) to a request without a key"):
            require_refusal(f"{address}/v1/models")


def test_a_server_whose_guard_is_gone_is_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    """The real server, started by a copy of the module in which nothing guards uvicorn."""
    source = Path(serving.__file__).read_text(encoding="utf-8")
    unguarded = tmp_path / "serving.py"
    unguarded.write_text(source.replace("    uvicorn.Config = Config\n", ""), encoding="utf-8")
    monkeypatch.setattr(serving, "__file__", str(unguarded))
    ports = []
    free = serving.free_port
    monkeypatch.setattr(serving, "free_port", lambda: ports.append(free()) or ports[-1])
    with pytest.raises(RuntimeError, match=r"answered \(\d+\) to a request without a key"):
        with serve(POCKET_MODEL):
            pytest.fail("the address was handed out")
    assert not answers(f"http://127.0.0.1:{ports[0]}/v1")


def test_a_confusion_shows_every_count() -> None:
    """A predicted value outside the list has a column, and nothing is left out."""
    true = pd.Series(["calm", "calm", "angry", "angry", "angry"], name="true")
    predicted = pd.Series(["calm", "angry", "thirsty", "thirsty", "angry"], name="predicted")
    table = pd.crosstab(true, predicted)
    axes = plots.confusion(table).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "1", "2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["angry", "calm", "thirsty"]
    summary = "2 of 5 right. Most often confused: angry was called thirsty (2 of 3)."
    assert plots.summarise_confusion(table) == summary


def test_a_confusion_without_errors_or_rows_says_so() -> None:
    """A perfect model has no most frequent confusion; no answers at all is a mistake."""
    right = pd.crosstab(pd.Series(["calm", "angry"]), pd.Series(["calm", "angry"]))
    assert plots.summarise_confusion(right) == "2 of 2 right, none confused."
    with pytest.raises(ValueError, match="crosstab"):
        plots.confusion(pd.DataFrame())
