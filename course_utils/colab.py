"""Install what the lessons need on Colab, without touching its torch and numpy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from course_utils.doctor import TORCHAO_MINIMUM
from course_utils.hardware import runtime_requirements
from course_utils.paths import COURSE_ROOT

# Reinstalling these in a running session breaks what was built against them.
KEEP = ("torch", "numpy")


def plan(installed: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Return what to install, what to hold, and what to uninstall, for the versions installed.

    A library whose version is within the supported range stays. The others are installed at the
    version that the tests pass with. Held are `KEEP`, at the versions that are there.
    """
    pins = {}
    for line in (COURSE_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, found, version = line.partition("==")
        if found:
            pins[name.lower()] = version
    wanted = [
        f"{requirement.name}=={pins[requirement.name]}"
        for requirement in runtime_requirements()
        if requirement.name not in KEEP
        and not (
            requirement.name in installed
            and requirement.specifier.contains(installed[requirement.name], prereleases=True)
        )
    ]
    held = [f"{name}=={installed[name]}" for name in KEEP if name in installed]
    old = "torchao" in installed and Version(installed["torchao"]) < TORCHAO_MINIMUM
    return wanted, held, ["torchao"] if old else []


def install() -> None:
    """Bring the session to the course's versions; says in one line what it did.

    Raises:
        RuntimeError: if pip fails, with what it printed last.
    """
    installed = {d.name.lower(): d.version for d in metadata.distributions() if d.name}
    wanted, held, unwanted = plan(installed)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if unwanted:
        _run([*pip, "uninstall", "--yes", *unwanted])
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "held.txt"
            constraints.write_text("\n".join(held))
            _run([*pip, "install", "--constraint", str(constraints), *wanted])
    print(f"Installed {len(wanted)} libraries; torch and numpy stay as they are.")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip could not finish: {' '.join(command[3:])}\n{done.stderr[-1500:]}\n"
            "Check the connection, then choose Runtime > Disconnect and delete runtime, and run "
            "this cell again."
        )
