"""Execute the lessons and write each as a page under build/lessons.

python scripts/run_lessons.py              every lesson
python scripts/run_lessons.py 01           the lesson of that number
python scripts/run_lessons.py --save       also put the clean outputs into the notebooks
python scripts/run_lessons.py --jobs 1     one lesson at a time, with all cores to itself
python scripts/run_lessons.py --record     also note what each lesson took in data/results
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from course_utils import hardware
from course_utils.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "lessons"
COSTS = ROOT / "data" / "results" / "lessons.json"
SCHEMA = 1
LESSON_RAM = 3  # GiB; no lesson takes more
PAUSE = 1.0  # seconds between two readings of a lesson's memory
CELL_LIMIT = 1800  # seconds; a lesson on a real model may train for a while

WIDGET = "application/vnd.jupyter.widget-view+json"

# Bars that redraw themselves leave nothing worth keeping in a page.
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def lessons(number: str = "") -> list[Path]:
    """Return the notebooks, in order; with a number, such as 01 or 1, that one.

    Raises:
        ValueError: if there is no such lesson.
    """
    every = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in every if not number or path.name[:2] == number.zfill(2)]
    if not chosen:
        numbers = ", ".join(path.name[:2] for path in every)
        raise ValueError(f"There is no lesson {number!r}. The lessons are: {numbers}. Try NB=00.")
    return chosen


def lessons_at_once(machine: hardware.Machine) -> int:
    """Return how many lessons to run at a time: two, where there is room and no accelerator.

    For models this small a lesson is hardly slower on one of two cores than on both. On a GPU a
    neighbour would take part of the memory that a lesson measures.
    """
    room = machine.cores > 1 and machine.ram >= 2 * LESSON_RAM
    return 2 if room and machine.device == "cpu" else 1


@dataclass(frozen=True)
class Outcome:
    """What became of a lesson: seconds, peak memory of the kernel in bytes, error if any."""

    path: Path
    seconds: float
    peak: int
    error: str = ""


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return a process tree's memory in bytes: its share (PSS), and what it alone has (USS).

    PSS splits a page that several processes map, such as the code of torch, among them, so that the
    sum over processes is what the machine spends. Where the system does not count it (macOS,
    Windows), USS stands for both.
    """
    share = alone = 0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        share += getattr(info, "pss", info.uss)
        alone += info.uss
    return share, alone


class Peak(threading.Thread):
    """Follows the memory that a client's kernel, and all it started, has for itself."""

    def __init__(self, client: NotebookClient) -> None:
        super().__init__(daemon=True)
        self.client, self.bytes, self._done = client, 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(PAUSE):
            try:
                process = psutil.Process(self.client.km.provisioner.pid)
                self.bytes = max(self.bytes, memory(process)[1])
            except (AttributeError, psutil.Error):  # not started yet, or gone
                continue

    def stop(self) -> int:
        """End the readings; return the highest, in bytes."""
        self._done.set()
        self.join()
        return self.bytes


def calibration() -> float:
    """Return the seconds of a fixed piece of work, the least of five turns: how fast a machine is.

    A lesson's time in relation to it can be compared with that of another machine or day.
    """
    matrix = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(20):
            matrix @ matrix
        sum(i * i for i in range(1_000_000))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def without_run_data(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without what changes at every run: times, versions, progress widgets."""
    kept = {name: value for name, value in notebook.metadata.items() if name == "kernelspec"}
    notebook.metadata = nbformat.from_dict(kept)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Without its state, which is not kept, a widget shows as a line of text.
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    return notebook


def recorded() -> str:
    """Return the table of the comparison that comes with the course, each method at its best."""
    from course_utils import compare  # loads torch, which nothing else here needs

    table = compare.table(ROOT / "data" / "results" / "comparison")
    return compare.shown(compare.best(table[table["seeds"] > 1]))


def execute(path: Path) -> tuple[NotebookNode, int]:
    """Return the notebook with the outputs of a fresh run, and the kernel's peak memory in bytes.

    Raises:
        CellControlSignal: if a cell fails or takes too long.
        DeadKernelError: if the kernel ends, as it does when memory runs out.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    # A kernel warns of its sockets, which are open to this machine alone and signed with a key.
    client = NotebookClient(
        notebook,
        timeout=CELL_LIMIT,
        resources=resources,
        coalesce_streams=True,  # what comes in two pieces, by chance, is one output
        extra_arguments=["--log-level=ERROR"],
    )
    peak = Peak(client)
    peak.start()
    try:
        client.execute()
    finally:
        highest = peak.stop()
    return notebook, highest


def run(path: Path, save: bool) -> Outcome:
    """Execute a lesson and write its page; return what it took."""
    page = PAGES / f"{path.stem}.html"
    page.unlink(missing_ok=True)  # the page of an earlier run must not pass for this one's
    started = time.perf_counter()
    try:
        notebook, peak = execute(path)
    except (CellControlSignal, DeadKernelError) as error:
        return Outcome(path, time.perf_counter() - started, 0, strip_ansi(str(error)))
    outcome = Outcome(path, time.perf_counter() - started, peak)
    notebook = without_run_data(notebook)
    if save:
        write_whole(path, nbformat.writes(notebook) + "\n")
    # Pictures are put into the page, so that it can be moved.
    exporter = HTMLExporter(embed_images=True)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(path.parent)}})
    write_whole(page, html)
    return outcome


def finished(chosen: list[Path], jobs: int, save: bool) -> Iterator[Outcome]:
    """Run the lessons, `jobs` at a time, and yield what became of each as it ends."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, path, save) for path in chosen]
        try:
            for future in as_completed(running):
                yield future.result()
        except KeyboardInterrupt:  # those that run were interrupted as well
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def described_machine(machine: hardware.Machine) -> str:
    """Return what a record says of the machine on which it was made."""
    return f"{machine.name}, {machine.cores} cores, {machine.ram:.0f} GiB"


def costs() -> dict[str, Any]:
    """Return what the lessons took when it was last recorded; nothing if it never was."""
    try:
        return json.loads(COSTS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def record(
    outcomes: list[Outcome], calibrated: float, jobs: int, machine: hardware.Machine
) -> None:
    """Write what the lessons took, all of one run."""
    from course_utils.compare.results import environment  # torch, which no other use needs

    found = {
        "schema": SCHEMA,
        "versions": environment()["versions"],
        "device": described_machine(machine),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jobs": jobs,
        "calibration_seconds": round(calibrated, 4),
        "lessons": {
            one.path.stem: {"seconds": round(one.seconds), "peak_mib": one.peak // 2**20}
            for one in sorted(outcomes, key=lambda one: one.path)
        },
    }
    write_whole(COSTS, json.dumps(found, indent=1) + "\n")


def described(outcome: Outcome, calibrated: float, jobs: int, before: dict[str, Any]) -> str:
    """Return a lesson's line: its time, its memory and, if recorded, the ratio to the record."""
    if outcome.error:
        return f"failed after {outcome.seconds:.0f} s\n{outcome.error}"
    line = f"{outcome.seconds:4.0f} s {outcome.peak / 2**30:5.1f} GiB"
    then = before.get("lessons", {}).get(outcome.path.stem)
    if then is None or before["jobs"] != jobs:  # with a neighbour all is slower
        return line
    ratio = outcome.seconds / calibrated / (then["seconds"] / before["calibration_seconds"])
    return f"{line} {ratio:6.2f} of the recorded time"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", default="", help="the number of a lesson, such as 01")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("--record", action="store_true", help="write data/results/lessons.json")
    parser.add_argument("--jobs", type=int, help="lessons at a time (2, or 1 where that is wiser)")
    options = parser.parse_args()
    if options.record and options.lesson:
        parser.error("--record notes all lessons at once: leave out the number")
    try:
        chosen = lessons(options.lesson)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    machine = hardware.detect()
    # Outputs that are kept are those of a lesson that had the machine to itself.
    jobs = 1 if options.save else min(options.jobs or lessons_at_once(machine), len(chosen))
    os.environ.update(QUIET)
    if jobs > 1:  # each lesson has its share of the cores
        os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cores // jobs))
    PAGES.mkdir(parents=True, exist_ok=True)
    if jobs > 1:
        print(f"{len(chosen)} lessons, {jobs} at a time", flush=True)
    failed, before = 0, costs()
    # Half a second, for which there is a use only where something is compared.
    calibrated = calibration() if before or options.record else math.nan
    outcomes = []
    for i, outcome in enumerate(finished(chosen, jobs, options.save), start=1):
        line = described(outcome, calibrated, jobs, before)
        print(f"[{i}/{len(chosen)}] {outcome.path.stem:<24}{line}", flush=True)
        failed += bool(outcome.error)
        outcomes.append(outcome)
    if options.record and not failed:
        # Once more: something else that ran at the start would make the lessons seem quick.
        record(outcomes, min(calibrated, calibration()), jobs, machine)
    if len(chosen) > 1 and not failed:
        print(f"\nThe recorded comparison of methods (lesson 08):\n{recorded()}\n")
    print(
        f"{len(chosen) - failed} of {len(chosen)} lessons ran. "
        f"Open the pages in {PAGES.relative_to(ROOT)}/ in a browser."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
