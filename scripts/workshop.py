"""Prepare a workshop for a room without a network, under build/workshop.

    python scripts/workshop.py                                   for machines like this one
    python scripts/workshop.py --target windows:3.12 --target macos:3.13       for others as well
    python scripts/workshop.py --real                            with the real model SmolLM2

The folder holds every wheel that the course needs (the wheelhouse), the course, slides, and
start.py, which sets a learner's machine up from it. At the end the folder is tried: start.py sets
the course up in a fresh environment with the network cut off, and lesson 00's imports are run.
Broken off, it goes on where it stopped. To resolve for another system it needs uv (pip install uv).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import nbformat
import packages
import real_model
import run_lessons
import slides
import workshop_start

from course_utils import paths
from course_utils.files import write_whole

ROOT = run_lessons.ROOT
OUTPUT = ROOT / "build" / "workshop"
SCHEMA = 1
# The wheels, and all of them unpacked once for the trial. PyTorch for Linux has its GPU libraries.
DISK_GIB = 14 if sys.platform == "linux" else 6
MACOS = "14.0"  # the oldest for which PyTorch has wheels
# The systems that can be asked for: the processor, uv's name for both, and the tags of wheels.
SYSTEMS = {
    "linux": (
        "x86_64",
        "x86_64-manylinux_2_28",
        # All of them, as pip takes a tag that it is given for itself alone.
        (*(f"manylinux_2_{n}_x86_64" for n in range(28, 16, -1)), "manylinux2014_x86_64"),
    ),
    "macos": ("arm64", "aarch64-apple-darwin", (f"macosx_{MACOS.replace('.', '_')}_arm64",)),
    "windows": ("x86_64", "x86_64-pc-windows-msvc", ("win_amd64",)),
}
PYTHONS = ("3.11", "3.12", "3.13")
NAME = workshop_start.NAME
COURSE_BYTES = 200 * 2**20  # the course itself, and what lessons write
BUILD = "setuptools>=77"  # pip builds the course itself with it, as pyproject.toml says
# Where the kernel cannot take the network away, whatever asks for it meets a closed door.
NO_NETWORK = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
NO_NETWORK |= {name.upper(): value for name, value in NO_NETWORK.items()}

README = """\
Fine-tune language models, measured: the workshop
==================================================
No network is needed. You need {python}.
Copy this folder to your disk, open a terminal in it, and type two commands.

Linux, macOS                  Windows
    python3 start.py              py start.py
    python3 start.py --lab        py start.py --lab

The first sets the course up in your home folder (a few minutes) and says what is wrong, if
something is. The second opens the lessons: begin with 00_quickstart.ipynb. If it stops half-way,
run it again.

The slides are in slides/index.html.
"""
README_REAL = """
To run a lesson on the real model SmolLM2 instead of the course's small one, put this into a new
cell at its top:  %env COURSE_MODEL=smollm2
"""
WRITE = """
import transformers
from course_utils.models import base_model
transformers.pipeline("text-generation", base_model().path)("Hi", max_new_tokens=1)
"""


def target(text: str) -> str:
    """Return the name of a target, such as windows-x86_64-3.12 for ``"windows:3.12"``.

    Raises:
        ValueError: if the text names none.
    """
    system, _, python = text.partition(":")
    if system not in SYSTEMS or python not in PYTHONS:
        raise ValueError(
            f"{text!r} is no target. Name one of {', '.join(SYSTEMS)}, a colon, and one of "
            f"{', '.join(PYTHONS)}: --target windows:3.12"
        )
    return f"{system}-{SYSTEMS[system][0]}-{python}"


def inputs(name: str) -> str:
    """Return a hash of all that decides which wheels a target needs."""
    files = [(ROOT / file).read_bytes() for file in ("requirements.txt", "constraints.txt")]
    return hashlib.sha256(b"\n".join([*files, BUILD.encode(), name.encode()])).hexdigest()


def whole(wheel: Path) -> bool:
    """Return whether a wheel is neither cut off nor damaged, by its own checksums."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error):
        return False


def wheels(name: str, house: Path) -> str:
    """Put a target's wheels into the wheelhouse, unless they are there; return a line of words.

    They are gathered in a folder that gets its name at the end, so one that was broken off is never
    taken for a whole one; what it holds of whole wheels is used.

    Raises:
        RuntimeError: if they cannot be had.
    """
    done, part = house / name, house / f"{name}.part"
    wanted = inputs(name)
    try:
        there = json.loads((done / "contents.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = {}
    if there.get("inputs") == wanted and there.get("sha256") == hashes(done):
        return f"{name}: {len(there['sha256'])} wheels, as before"
    shutil.rmtree(done, ignore_errors=True)
    note = part / "inputs.txt"
    if not note.exists() or note.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        note.write_text(wanted, encoding="utf-8")
    for wheel in part.glob("*.whl"):
        if not whole(wheel):
            wheel.unlink()
    download(name, part)
    found = sorted(part.glob("*.whl"))
    contents = {
        "schema": SCHEMA,
        "inputs": wanted,
        "wheels": {wheel.name: wheel.stat().st_size for wheel in found},
        "sha256": hashes(part),
        "installed_bytes": sum(map(unpacked, found)) + COURSE_BYTES,
    }
    write_whole(part / "contents.json", json.dumps(contents, indent=1) + "\n")
    note.unlink()
    part.rename(done)
    return f"{name}: {len(found)} wheels, {sum(contents['wheels'].values()) / 2**30:.1f} GiB"


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each wheel in a folder, which pip compares before it installs one."""
    return {file.name: workshop_start.digest(file) for file in sorted(folder.glob("*.whl"))}


def unpacked(wheel: Path) -> int:
    """Return how many bytes a wheel takes once it is installed."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(member.file_size for member in archive.infolist())


def download(name: str, folder: Path) -> None:
    """Download the wheels of a target that a folder does not have yet.

    Raises:
        RuntimeError: if pip cannot get them, or another system is wanted and uv is missing.
    """
    command = ["download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    if name == workshop_start.this_machine():
        rows = ["-r", str(ROOT / "requirements.txt"), "-c", str(ROOT / "constraints.txt"), BUILD]
        packages.pip([*command, *rows])
        return
    system, _, python = name.split("-")
    with tempfile.TemporaryDirectory() as work:
        resolved = Path(work) / "resolved.txt"
        resolved.write_text(resolve(system, python), encoding="utf-8")
        command += ["--no-deps", "--python-version", python, "-r", str(resolved)]
        packages.pip([*command, *(f"--platform={tag}" for tag in SYSTEMS[system][2])])


def resolve(system: str, python: str) -> str:
    """Return the exact versions for another system or Python, as a requirements file.

    Raises:
        RuntimeError: if uv is missing or finds no versions.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise RuntimeError(
            "pip can choose versions only for the Python and system that it runs on; for "
            f"{system}:{python} the workshop needs uv. Run `{sys.executable} -m pip install uv`, "
            "or `make workshop` on such a machine."
        )
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"]
    command += ["-c", str(ROOT / "constraints.txt"), "--python-version", python]
    command += ["--python-platform", SYSTEMS[system][1]]
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8") + f"\n{BUILD}\n"
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
    done = packages.run(command, input=text, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"uv finds no versions for {system}:{python}:\n{done.stderr.strip()[-1200:]}"
        )
    return done.stdout


def course(file: Path) -> str:
    """Write the committed files of the course as an archive; return a line of words.

    Raises:
        RuntimeError: if this is no clone made by git.
    """
    git = ["git", "-C", str(ROOT)]
    command = [*git, "archive", "--format=zip", f"--prefix={NAME}/", "-o", str(file), "HEAD"]
    done = packages.run(command)
    if done.returncode:
        raise RuntimeError(
            f"git could not pack the course: {done.stderr.strip()}\nA workshop is made from a "
            "clone of the repository (git clone), not from a downloaded archive of it."
        )
    changed = packages.run([*git, "status", "--porcelain"]).stdout.splitlines()
    note = f"; {len(changed)} files with uncommitted changes are not in it" if changed else ""
    return f"the course: {file.stat().st_size / 2**20:.0f} MiB{note}"


def pack_model(file: Path) -> dict[str, int | str]:
    """Pack the real model, fetched unless it is there; return its size unpacked and a SHA-256.

    Raises:
        RuntimeError: if it cannot be had.
    """
    if real_model.main([]):
        raise RuntimeError("So the real model cannot come along. Try again, or leave REAL=1 out.")
    folder = paths.REAL_MODELS[file.stem]
    shutil.make_archive(str(file.with_suffix("")), "zip", folder.parent, folder.name)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {file.stat().st_size / 2**20:.0f} MiB", flush=True)
    return {"bytes": size, "sha256": workshop_start.digest(file)}


def no_network() -> tuple[list[str], dict[str, str]]:
    """Return how to start a program without a network: a command before it, and its variables."""
    cut = ["unshare", "--map-root-user", "--net"]
    works = shutil.which("unshare") and packages.run([*cut, "true"]).returncode == 0
    return (cut if works else []), {**os.environ, **NO_NETWORK}


def trial(output: Path, real: bool) -> str:
    """Set the course up as a learner does, without a network; return a line of words.

    Raises:
        RuntimeError: if that fails, with what was printed.
    """
    cut, environment = no_network()
    with tempfile.TemporaryDirectory(dir=output) as work:
        place = Path(work) / NAME
        start = [sys.executable, str(output / "start.py"), "--into", str(place)]
        _try([*cut, *start], environment, output)
        python = workshop_start.program(place, "python")
        lesson = nbformat.read(place / "notebooks" / "00_quickstart.ipynb", as_version=4)
        imports = next(c.source for c in lesson.cells if c.source.startswith("# The course's help"))
        _try([*cut, python, "-c", f"{imports}\nimport preflight"], environment, place / "notebooks")
        _try([*cut, python, "-m", "jupyterlab", "--version"], environment, place)
        if real:
            named = environment | {"COURSE_MODEL": workshop_start.MODEL.name}
            _try([*cut, python, "-c", WRITE], named, place / "notebooks")
    how = "in a kernel namespace without a network" if cut else "with proxies that lead nowhere"
    done = "installed, the doctor is content, lesson 00's imports work"
    return f"tried {how}: {done}" + real * ", SmolLM2 writes"


def _try(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = packages.run(command, cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"The workshop's folder does not serve: {' '.join(command)} failed.\n"
            f"{(done.stdout + done.stderr).strip()[-2500:]}\nFix that and run this again."
        )


def prepare(names: Sequence[str], output: Path, real: bool = False) -> None:
    """Fill the workshop's folder for the targets, if asked with the real model, and try it.

    Raises:
        RuntimeError: if something cannot be had or does not serve.
    """
    # To fetch the model takes more than it does later, packed and unpacked once for the trial.
    needed = DISK_GIB * 2**30 + real * real_model.DISK_BYTES
    workshop_start.require_room(output, needed, "--output FOLDER")
    house = output / "wheelhouse"
    house.mkdir(parents=True, exist_ok=True)
    packed = output / f"{workshop_start.MODEL.name}.zip"
    packed.unlink(missing_ok=True)  # one of an earlier run
    model = pack_model(packed) if real else {}
    for name in names:
        print(wheels(name, house), flush=True)
    for file in house.glob("*/contents.json"):
        contents = json.loads(file.read_text(encoding="utf-8")) | {"model": model}
        write_whole(file, json.dumps(contents, indent=1) + "\n")
    print(course(output / f"{NAME}.zip"), flush=True)
    slides.build()
    shutil.copytree(slides.OUTPUT, output / "slides", dirs_exist_ok=True)
    shutil.copy(workshop_start.__file__, output / "start.py")
    pythons = " or ".join(f"Python {n.rsplit('-', 1)[1]} on {n.split('-')[0]}" for n in names)
    words = README.format(python=pythons) + real * README_REAL
    (output / "README.txt").write_text(words, encoding="utf-8")
    print(f"slides: {len(list((output / 'slides').glob('[0-9]*.html')))} lessons", flush=True)
    if workshop_start.this_machine() in names:
        print(trial(output, real), flush=True)
    else:
        print("not tried: none of the targets is this machine", flush=True)
    print(f"Copy {output} to a disk for the room; README.txt is for the learners.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", action="append", default=[], help="such as windows:3.12")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--real", action="store_true", help="with the real model SmolLM2")
    options = parser.parse_args(arguments)
    try:
        names = dict.fromkeys([workshop_start.this_machine(), *map(target, options.target)])
        prepare(list(names), options.output, options.real)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
