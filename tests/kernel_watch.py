"""Runs in the kernel of a notebook under nbval: makes it tell of failures that no cell raised.

IPython prints that a magic is unknown and goes on; it says nothing of a `!` line that fails. Of a
thread, a task or a test that fails Python only writes to stderr, some of it never. What can be
raised is made to raise, so that a cell may handle it; the rest is collected.
"""

from __future__ import annotations

import asyncio
import doctest
import gc
import inspect
import logging
import threading
import time
import unittest
import warnings
from types import CoroutineType
from typing import Any

PATIENCE = 10  # seconds for threads and tasks that still run after the last cell


class Watch(logging.Handler):
    """Collects what failed unseen; `check` raises it."""

    def __init__(self, shell: Any) -> None:
        super().__init__(logging.ERROR)
        self.failures: list[str] = []
        self.source = ""
        self.shell = shell
        self.threads = {*threading.enumerate()}
        shell.events.register("pre_run_cell", self.begin)
        # As any other exception is shown, so that it reaches nbval.
        shell.show_usage_error = lambda error: shell._showtraceback(
            type(error), error, [f"{type(error).__name__}: {error}"]
        )
        threading.excepthook = self.after(threading.excepthook, self.in_thread)
        # Not by a filter of warnings: the cells set filters of their own.
        never = self.after(warnings._warn_unawaited_coroutine, self.never_awaited)
        warnings._warn_unawaited_coroutine = never
        logging.getLogger("asyncio").addHandler(self)
        for runner in (unittest.TextTestRunner, doctest.DocTestRunner):
            runner.run = self.tested(runner.run)

    def begin(self, info: Any) -> None:
        """Note a cell that is about to run; one that reads `_exit_code` may let a `!` line fail."""
        self.source = info.raw_cell
        self.shell.system_raise_on_error = "_exit_code" not in self.source

    @staticmethod
    def after(original: Any, note: Any) -> Any:
        """Return a function that calls the original, then `note`."""
        return lambda *arguments: (original(*arguments), note(*arguments))[0]

    def in_thread(self, failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:  # the quiet way to end a thread
            self.failures.append(f"in {failed.thread}: {failed.exc_value!r}")

    def never_awaited(self, coroutine: Any) -> None:
        self.failures.append(f"never awaited: {coroutine!r}")

    def emit(self, record: logging.LogRecord) -> None:
        """Note what a loop says of an exception that nobody asked for."""
        if record.exc_info:
            self.failures.append(f"in a task: {record.exc_info[1]!r}")

    def tested(self, run: Any) -> Any:
        """Return a runner's `run` that notes failing tests, unless the cell asks for them."""

        def run_and_note(*arguments: Any, **options: Any) -> Any:
            result = run(*arguments, **options)
            well = not result.failed if hasattr(result, "failed") else result.wasSuccessful()
            if not well and "wasSuccessful" not in self.source and ".failed" not in self.source:
                self.failures.append(f"tests failed: {result}")
            return result

        return run_and_note

    def check(self) -> None:
        """Raise AssertionError if anything failed since the last call."""
        failures, self.failures = self.failures, []
        assert not failures, "; ".join(failures)

    async def check_last(self) -> None:
        """Wait for what still runs, then check all that is left, what the notebook holds too."""
        end = time.monotonic() + PATIENCE
        while self.running() and time.monotonic() < end:
            await asyncio.sleep(0.05)
        gc.collect()
        for one in gc.get_objects():
            kind = type(one)  # isinstance would wake up those that load what they stand for
            if kind is CoroutineType and inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                self.never_awaited(one)
            elif issubclass(kind, asyncio.Future) and one._log_traceback:
                self.failures.append(f"in a task: {one.exception()!r}")
        self.check()

    def running(self) -> bool:
        """Return whether a thread or task of the notebook's own still runs."""
        frames = [getattr(task.get_coro(), "cr_frame", None) for task in asyncio.all_tasks()]
        names = [frame.f_globals.get("__name__", "").split(".")[0] for frame in frames if frame]
        threads = [one for one in threading.enumerate() if not one.daemon]
        return bool({*threads} - self.threads or {*names} - {"ipykernel", "IPython"})
