"""What a lesson takes when several learners run it on one machine; written to results/room.json.

    OMP_NUM_THREADS=1 python benchmarks/measure_room.py 00            one, two, three, four learners
    OMP_NUM_THREADS=1 python benchmarks/measure_room.py 00 --learners 3   only three
    python benchmarks/measure_room.py                   only write the teacher's page from the file

A learner is a kernel of its own in a folder of its own, as on a JupyterHub where all share one
environment; all press "Run all" at the same moment, which is the worst case. Memory is read every
quarter of a second. A measurement is added to the file, or takes the place of the same one; at the
end the part of the teacher's page on thirty learners is written anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbconvert.filters import strip_ansi

from course_utils import hardware
from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT

sys.path.insert(0, str(COURSE_ROOT / "scripts"))
import run_lessons
import teaching

SCHEMA = 1
OUTPUT = COURSE_ROOT / "data" / "results" / "room.json"
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "ipykernel", "jupyterlab")
PAUSE = 0.25  # seconds between two readings
SERVER_START = 60  # seconds for a server to come up
CLASS, CORES = 30, 16  # learners, and the cores of the machine that they share


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and of all that it started, in seconds."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


@dataclass
class Learner:
    """A kernel at work: what it took most, by its process tree."""

    client: NotebookClient
    process: psutil.Process | None = None
    share: int = 0
    alone: int = 0
    cpu: float = 0.0
    seconds: float = 0.0

    def read(self) -> int:
        """Take a reading; return the share of memory now, in bytes."""
        if self.process is None:
            return 0
        try:
            share, alone = run_lessons.memory(self.process)
            self.cpu = max(self.cpu, cpu_seconds(self.process))
        except psutil.NoSuchProcess:
            return 0
        self.share, self.alone = max(self.share, share), max(self.alone, alone)
        return share

    def work(self, start: threading.Barrier) -> None:
        """Start the kernel, wait for the others, and run the lesson.

        Raises:
            threading.BrokenBarrierError: if another learner's kernel did not start.
        """
        try:
            with self.client.setup_kernel():
                self.process = psutil.Process(self.client.km.provisioner.pid)
                start.wait()
                started = time.perf_counter()
                for i, cell in enumerate(self.client.nb.cells):
                    self.client.execute_cell(cell, i)
                self.seconds = time.perf_counter() - started
        except BaseException:
            start.abort()  # else the others would wait for this one for ever
            raise


@dataclass
class Room:
    """Learners who run one lesson at the same moment; `peak` is the most that all took together."""

    learners: list[Learner]
    peak: int = 0

    def run(self) -> None:
        """Run the lesson with all learners at once.

        Raises:
            RuntimeError: if the lesson fails for one of them.
        """
        start = threading.Barrier(len(self.learners))
        with ThreadPoolExecutor(len(self.learners)) as pool:
            work = [pool.submit(learner.work, start) for learner in self.learners]
            while not all(one.done() for one in work):
                self.peak = max(self.peak, sum(learner.read() for learner in self.learners))
                time.sleep(PAUSE)
        errors = [error for one in work if (error := one.exception()) is not None]
        if errors:
            # Those who waited for a kernel that did not start have nothing to tell.
            error = min(errors, key=lambda one: isinstance(one, threading.BrokenBarrierError))
            raise RuntimeError(
                f"The lesson failed for one of {len(work)} learners. Run it alone with `make "
                "run NB=<number>`; if it passes there, memory was short.\n"
                f"{strip_ansi(str(error))}"
            ) from error


def seat(lesson: Path, folder: Path) -> Learner:
    """Return a learner with a folder of their own: what lessons read, and room for their runs."""
    shutil.copytree(COURSE_ROOT / "data", folder / "data")
    (folder / "notebooks").mkdir()
    return Learner(
        NotebookClient(
            nbformat.read(lesson, as_version=4),
            timeout=run_lessons.CELL_LIMIT,
            resources={"metadata": {"path": str(folder / "notebooks")}},
            extra_arguments=["--log-level=ERROR"],
        )
    )


def measure(lesson: Path, learners: int) -> dict[str, Any]:
    """Return what so many learners take who run a lesson at the same moment.

    Memory is in bytes: `room_peak` of all together at one moment, `share_peak` and `alone_peak`
    the most of any one (PSS and USS). `cpu_seconds` is the mean of a learner, `wall_seconds` the
    time of the slowest.
    """
    with tempfile.TemporaryDirectory() as folder:
        room = Room([seat(lesson, Path(folder) / str(i)) for i in range(learners)])
        room.run()
    return {
        "lesson": lesson.stem,
        "learners": learners,
        "room_peak": room.peak,
        "share_peak": max(one.share for one in room.learners),
        "alone_peak": max(one.alone for one in room.learners),
        "cpu_seconds": round(sum(one.cpu for one in room.learners) / learners, 1),
        "wall_seconds": round(max(one.seconds for one in room.learners), 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def server_memory() -> int:
    """Return the memory of one learner's Jupyter server with no kernel, in bytes (USS).

    Raises:
        RuntimeError: if the server does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--notebook-dir={folder}"]
        homes = {f"JUPYTER_{n}_DIR": folder for n in ("CONFIG", "DATA", "RUNTIME")}
        process = subprocess.Popen(
            command, env=os.environ | homes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for _ in range(SERVER_START):
                time.sleep(1)
                # The server writes this file when it listens.
                if list(Path(folder).glob("jpserver-*.json")):
                    time.sleep(2)  # its extensions are loaded by then
                    return run_lessons.memory(psutil.Process(process.pid))[1]
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(
        f"JupyterLab did not start within {SERVER_START} s. Try `make lab` and read what it says."
    )


def line(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return shared and own memory in bytes: the least-squares line of room_peak over learners."""
    learners, peaks = ([row[name] for row in rows] for name in ("learners", "room_peak"))
    own, shared = statistics.linear_regression(learners, peaks)
    return shared, own


def extrapolate(data: dict[str, Any], lesson: str, learners: int) -> dict[str, float]:
    """Return what a class takes of memory and processor when all run a lesson at once.

    `memory_gib` is shared + learners x (own + server), with the line through the measurements and
    the server's memory; `core_seconds` is learners x the CPU seconds of one.

    Raises:
        ValueError: if the lesson was not measured with two numbers of learners or more.
    """
    rows = [row for row in data["measured"] if row["lesson"].startswith(lesson)]
    if len({row["learners"] for row in rows}) < 2:
        raise ValueError(
            f"Lesson {lesson!r} has {len(rows)} measurements; a line needs two numbers of learners "
            f"or more. Run `python benchmarks/measure_room.py {lesson}`."
        )
    shared, own = line(rows)
    alone = min(rows, key=lambda row: row["learners"])  # least disturbed by others
    return {
        "shared_gib": shared / 2**30,
        "own_gib": own / 2**30,
        "memory_gib": (shared + learners * (own + data["server_bytes"])) / 2**30,
        "cpu_seconds": alone["cpu_seconds"],
        "core_seconds": learners * alone["cpu_seconds"],
    }


def read() -> dict[str, Any]:
    """Return what was measured before with these versions on this machine; else an empty record."""
    machine = hardware.detect()
    fresh = {
        "schema": SCHEMA,
        "device": run_lessons.described_machine(machine),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name).partition("+")[0] for name in LIBRARIES},
        "config": {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "pause_seconds": PAUSE},
    }
    try:
        before = json.loads(OUTPUT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if all(before.get(name) == value for name, value in fresh.items()):
        return before
    return fresh | {"server_bytes": server_memory(), "measured": []}


def add(row: dict[str, Any]) -> str:
    """Put a measurement into the file; return it in a line of words."""
    data = read()
    same = (row["lesson"], row["learners"])
    rest = [r for r in data["measured"] if (r["lesson"], r["learners"]) != same]
    data["measured"] = sorted([*rest, row], key=lambda r: (r["lesson"], r["learners"]))
    write_whole(OUTPUT, json.dumps(data, indent=1) + "\n")
    return (
        f"{row['lesson']}, {row['learners']} at once: {row['room_peak'] / 2**30:.2f} GiB together, "
        f"{row['cpu_seconds']:.0f} CPU s each, {row['wall_seconds']:.0f} s"
    )


def table() -> str:
    """Return what was measured of several learners on one machine, and what follows for thirty."""
    data = json.loads(OUTPUT.read_text(encoding="utf-8"))
    head = (
        "| lesson | learners at once | memory together | CPU seconds each | until all are done |\n"
        "|---|---|---|---|---|\n"
    )
    rows = [
        f"| {row['lesson'][:2]} | {row['learners']} | {row['room_peak'] / 2**30:.1f} GiB | "
        f"{row['cpu_seconds']:.0f} | {row['wall_seconds']:.0f} s |"
        for row in data["measured"]
    ]
    found = []
    for number in dict.fromkeys(row["lesson"][:2] for row in data["measured"]):
        one = extrapolate(data, number, CLASS)
        found.append(
            f"- Lesson {number}: {one['shared_gib']:.2f} + {CLASS} × ({one['own_gib']:.2f} + "
            f"{data['server_bytes'] / 2**30:.2f}) = **{one['memory_gib']:.0f} GiB**; {CLASS} × "
            f"{one['cpu_seconds']:.0f} = {one['core_seconds']:.0f} CPU seconds, which is "
            f"**{one['core_seconds'] / CORES / 60:.0f} minutes** on {CORES} cores."
        )
    costs = run_lessons.recorded()["lessons"]
    heaviest = max(costs, key=lambda lesson: costs[lesson]["peak_mib"])
    own, server = costs[heaviest]["peak_mib"] / 1024, data["server_bytes"] / 2**30
    found.append(
        f"- Lesson {heaviest[:2]}, which takes the most: {CLASS} × ({own:.2f} + {server:.2f}) = "
        f"**{CLASS * (own + server):.0f} GiB**, by what one learner's kernel takes alone."
    )
    where = f"Measured on: {data['device']}; {data['system']}; one thread a learner."
    return head + "\n".join(rows) + f"\n\n{where}\n\n" + "\n".join(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", help="the number of a lesson, such as 00")
    parser.add_argument("--learners", type=int, nargs="*", default=[1, 2, 3, 4])
    options = parser.parse_args()
    os.environ.update(run_lessons.QUIET)
    try:
        for lesson in run_lessons.lessons(options.lesson) if options.lesson else ():
            for learners in options.learners:
                print(add(measure(lesson, learners)), flush=True)
        teaching.write({"room": table()})
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
