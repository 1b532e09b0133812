"""Install what the lessons need on Colab, without touching its torch and numpy.

Used by lessons: all.
"""

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

    What was imported before in another version stays so until the session is restarted: that is
    then said as well.

    Raises:
        RuntimeError: if pip fails, with what it printed last.
    """
    installed = _installed()
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
    if old := outdated(installed, _installed()):
        print(
            f"{', '.join(old)}: loaded earlier in this session, in another version. Choose Runtime "
            "> Restart session, and run this cell again."
        )


def outdated(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return which of the course's libraries are loaded in a version that was replaced since."""
    names = (requirement.name for requirement in runtime_requirements())
    replaced = [name for name in names if name in before and before[name] != now.get(name)]
    if not replaced:
        return []  # spares reading the files of every library there is
    # A library may be imported by another name: pillow as PIL, pyyaml as yaml.
    loaded = {
        name.lower()
        for module, libraries in metadata.packages_distributions().items()
        if module in sys.modules
        for name in libraries
        if name
    }
    return [name for name in replaced if name in loaded]


def _installed() -> dict[str, str]:
    return {d.name.lower(): d.version for d in metadata.distributions() if d.name}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip could not finish: {' '.join(command[3:])}\n{done.stderr[-1500:]}\n"
            "Check the connection, then choose Runtime > Disconnect and delete runtime, and run "
            "this cell again."
        )
