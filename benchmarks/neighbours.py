"""What the comparisons with other tools share: the tools' own environment, and the page.

`planners.py` and `dataset_checks.py` use it; by itself it does nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import venv
from collections.abc import Collection, Mapping
from pathlib import Path

from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT

PAGE = COURSE_ROOT / "book" / "neighbours.md"


class Environment:
    """Programs at fixed versions, installed from PyPI into a folder of their own."""

    def __init__(self, place: Path, versions: Mapping[str, str]) -> None:
        self._programs = place / "env" / "bin"
        venv.create(place / "env", with_pip=True)
        pins = [f"{name}=={version}" for name, version in versions.items()]
        self.run("pip", "install", "-q", *pins)

    def run(
        self,
        program: str,
        *arguments: object,
        variables: Mapping[str, str] | None = None,
        found: Collection[int] = (),
    ) -> str:
        """Run a program with further environment variables; return what it prints.

        Raises:
            RuntimeError: if it fails; an exit code in `found` says that it found something.
        """
        command = [str(self._programs / program), *map(str, arguments)]
        env = {**os.environ, "COLUMNS": "200", **(variables or {})}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if done.returncode and done.returncode not in found:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def put(table: str) -> None:
    """Print a table, and write it over the one on the page whose first column has its name."""
    print(table)
    first = re.match(r"\| [^|]+\|", table)[0]
    old = re.compile(rf"^{re.escape(first)}.*(\n\|.*)*", re.M)
    write_whole(PAGE, old.sub(lambda _: table, PAGE.read_text(encoding="utf-8")))
