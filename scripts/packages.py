"""Run programs; ask pip for wheels, and say in plain words why it could not get them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# What pip prints for a fault, and what to do about it.
REMEDIES = {
    "No space left on device": "The disk is full. Free some space, or name another folder.",
    "No module named pip": "This Python has no pip. Give it one: python -m ensurepip",
    "NewConnectionError": "There is no network. Connect, and run this again: it goes on from here.",
    "Could not find a version": (
        "Either there is no network, or the package has no wheel for this Python and system."
    ),
}


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program; return its exit code and what it printed, as text."""
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", **options
    )


def pip(arguments: Sequence[str]) -> str:
    """Run pip and return what it printed.

    Raises:
        RuntimeError: if it fails, with what it printed last and what to do.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = run(command, env={**os.environ, "PYTHONUTF8": "1"})
    if done.returncode:
        text = done.stderr.strip()
        found = [remedy for sign, remedy in REMEDIES.items() if sign in text]
        remedy = found[0] if found else "Read pip's words above; then run this again."
        raise RuntimeError(f"pip {' '.join(arguments[:1])} failed:\n{text[-1200:]}\n{remedy}")
    return done.stdout
