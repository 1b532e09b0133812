"""Set the course up on a learner's machine, from the workshop's folder and with no network.

    python3 start.py              set up, in the folder finetuning-course of your home
    python3 start.py --lab        open the lessons

It needs Python alone: what it installs lies in the folder `wheelhouse` next to it. It can be run
again, after a fault too: it goes on where it stopped and leaves your own changes to lessons alone.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "finetuning-course"
READY = ".ready"  # in the environment, once all is installed
MODEL = Path("build", "real", "smollm2")  # in the course; course_utils.paths has it too
SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
PROCESSORS = {"amd64": "x86_64", "aarch64": "arm64"}


class Refusal(RuntimeError):
    """Why the course, or a model, cannot be had here, and what to do."""


def this_machine() -> str:
    """Return the system, processor and Python, as the folders of the wheelhouse are named."""
    system = SYSTEMS.get(platform.system(), platform.system().lower())
    machine = platform.machine().lower()
    return "{}-{}-{}.{}".format(system, PROCESSORS.get(machine, machine), *sys.version_info)


def wheels_for(machine: str) -> tuple[Path, dict]:
    """Return the wheels for a machine and what contents.json has on them.

    Raises Refusal if there are none, or if not all came along, with the real model if it is noted.
    """
    folder = HERE / "wheelhouse" / machine
    file = folder / "contents.json"
    if not file.exists():
        there = ", ".join(sorted(f.parent.name for f in HERE.glob("wheelhouse/*/contents.json")))
        raise Refusal(
            f"There are no wheels for {machine}. There are for: {there or 'nothing'}. Run start.py "
            "with one of these versions of Python (on Windows, for 3.12: py -3.12 start.py), or "
            "ask your teacher for wheels for yours."
        )
    contents = json.loads(file.read_text(encoding="utf-8"))
    for name, size in contents["wheels"].items():
        wheel = folder / name
        if not wheel.exists() or wheel.stat().st_size != size:
            raise Refusal(f"{wheel} is missing or cut off. Copy the workshop's folder again.")
    model, noted = HERE / f"{MODEL.name}.zip", contents.get("model")
    if noted and not (model.exists() and digest(model) == noted["sha256"]):
        raise Refusal(f"{model} is missing or damaged. Copy the workshop's folder again.")
    return folder, contents


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_room(folder: Path, needed: int, elsewhere: str = "start.py --into FOLDER") -> None:
    """Raise Refusal if the disk has less free than is needed, in bytes."""
    folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refusal(
            f"{folder} has {free / 2**30:.1f} GiB free; up to {needed / 2**30:.1f} GiB are needed, "
            f"most of it for PyTorch. Free some, or choose another disk: {elsewhere}"
        )


def unpack(place: Path, name: str = NAME) -> None:
    """Put the course, or the model of that name, in its place, whole or not at all, unless there.

    Raises Refusal if the zip is missing or damaged, or if the disk gets full.
    """
    if place.exists():
        if name == NAME and not (place / "course_utils").is_dir():
            raise Refusal(f"{place} is there and is not the course. Choose another: --into FOLDER")
        return
    source = HERE / f"{name}.zip"
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    damaged = f"{source} is missing or cut off. Copy the workshop's folder again."
    if not source.exists():
        raise Refusal(damaged)
    try:
        part.mkdir(parents=True)
        with zipfile.ZipFile(source) as archive:
            for member in archive.namelist():
                if Path(member).parts[:1] != (name,) or ".." in Path(member).parts:
                    raise Refusal(
                        f"{source} holds {member!r}, which is no part of the course. Copy the "
                        "workshop's folder again, from your teacher."
                    )
            archive.extractall(part)
        (part / name).rename(place)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Refusal(damaged) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refusal(
            f"The disk of {part.parent} got full while {source.name} was unpacked. Free some room, "
            "or choose another disk: start.py --into FOLDER"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def program(course: Path, name: str) -> str:
    """Return the path of a program in the course's environment."""
    windows = os.name == "nt"
    folder = course / ".venv" / ("Scripts" if windows else "bin")
    return str(folder / (f"{name}.exe" if windows else name))


def install(course: Path, wheels: Path, hashes: dict[str, str]) -> None:
    """Make the environment in the course's folder, from the wheels of these SHA-256 alone."""
    environment = course / ".venv"
    done = subprocess.run([sys.executable, "-m", "venv", str(environment)])
    if done.returncode:
        raise Refusal("Python could not make an environment. On Debian: apt install python3-venv")
    # Nothing that is set for pip on this machine may send it to the network.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    own["PIP_CONFIG_FILE"] = os.devnull
    pip = [program(course, "python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-index"]
    pinned = environment / "wheels.txt"
    pinned.write_text("".join(map(pin, hashes.items())), encoding="utf-8")
    for arguments in (
        ["--find-links", str(wheels), "--require-hashes", "-r", str(pinned)],
        # The course itself has no hash; what it is built with is among the wheels.
        ["--no-deps", "--no-build-isolation", "-e", "."],
    ):
        if subprocess.run([*pip, *arguments], cwd=course, env=own).returncode:
            raise Refusal(
                "pip could not install the course; its words are above. If they speak of hashes, a "
                "wheel was changed: copy the workshop's folder again. Else show your teacher."
            )
    (environment / READY).touch()


def pin(wheel: tuple[str, str]) -> str:
    """Return the line of a requirements file for a wheel's name and SHA-256."""
    name, version = wheel[0].split("-")[:2]
    return f"{name}=={version} --hash=sha256:{wheel[1]}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=Path.home() / NAME)
    parser.add_argument("--lab", action="store_true", help="open the lessons in JupyterLab")
    options = parser.parse_args()
    course = options.into.resolve()
    try:
        if not (course / ".venv" / READY).exists():
            wheels, contents = wheels_for(this_machine())
            model_bytes = contents.get("model", {}).get("bytes", 0)
            require_room(course, contents["installed_bytes"] + model_bytes)
            print("Setting the course up; this takes a few minutes.", flush=True)
            unpack(course)
            install(course, wheels, contents["sha256"])
        # Also for a course that was set up before, from a folder that did not have the model.
        if (HERE / f"{MODEL.name}.zip").exists():
            unpack(course / MODEL, MODEL.name)
    except Refusal as error:
        print(error, file=sys.stderr)
        return 1
    if options.lab:
        command = [program(course, "jupyter"), "lab", "--ServerApp.ip=127.0.0.1"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command += [f"--notebook-dir={course / 'notebooks'}"]
        return subprocess.run(command, cwd=course, env=environment).returncode
    doctor = [program(course, "python"), "-m", "course_utils", "doctor"]
    code = subprocess.run(doctor, cwd=course).returncode
    print("\nThe course is set up. To open the lessons, run this again with --lab.")
    return code


if __name__ == "__main__":
    sys.exit(main())
