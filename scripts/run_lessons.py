"""Execute the lessons and write each as a page under build/lessons.

python scripts/run_lessons.py              every lesson
python scripts/run_lessons.py 05           that lesson; of 05a and 05b both
python scripts/run_lessons.py deeper/06    the notebooks of that number in notebooks/deeper
python scripts/run_lessons.py --save       also put the clean outputs into the notebooks
python scripts/run_lessons.py --jobs 1     one lesson at a time, with all cores to itself
python scripts/run_lessons.py --record     also note claims, and what lessons took, in data/results
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from course_utils import SEED, claims, hardware, models
from course_utils.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "lessons"
CLAIMS = ROOT / "build" / "claims"
COSTS = ROOT / "data" / "results" / "lessons.json"
SCHEMA = 2  # of that file
PAUSE = 1.0  # seconds between two readings of a lesson's memory
LESSON_RAM = 3  # GiB; no lesson takes more
CELL_LIMIT = 1800  # seconds; a lesson on a real model may train for a while
WIDGET = "application/vnd.jupyter.widget-view+json"
# Bars that redraw themselves leave nothing worth keeping in a page.
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def label(path: Path) -> str:
    """Return the number of a notebook with its letter and folder: 04, 05a, deeper/06b."""
    folder = path.parent.relative_to(ROOT / "notebooks")
    return (folder / path.name.partition("_")[0]).as_posix()


def lessons(number: str = "") -> list[Path]:
    """Return the lessons in order; with a number (1, 01, 05a, deeper/06) those that have it.

    Raises:
        ValueError: if there is no such lesson.
    """
    folder, slash, digits = number.rpartition("/")
    wanted = folder + slash + re.sub(r"^\d(?!\d)", r"0\g<0>", digits)
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
    deeper = sorted((ROOT / "notebooks" / "deeper").glob("[0-9][0-9]*_*.ipynb"))
    chosen = [p for p in (deeper if slash else found) if label(p).startswith(wanted)]
    if not chosen:
        there = ", ".join(map(label, [*found, *deeper]))
        raise ValueError(f"There is no lesson {number!r}. The lessons are: {there}. Try NB=00.")
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
    peak: int = 0
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
    """Follows, while it is entered, the memory that a client's kernel has for itself.

    `bytes` is the highest reading, of the kernel and all that it started.
    """

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

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self.join()


def execute(path: Path) -> tuple[NotebookNode, int]:
    """Return the notebook with the outputs of a fresh run, and the kernel's peak memory in bytes.

    Raises:
        CellControlSignal: if a cell fails or takes too long.
        DeadKernelError: if the kernel ends, as it does when memory runs out.
    """
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=CELL_LIMIT,
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,  # what comes in two pieces, by chance, is one output
        record_timing=False,
        # A kernel warns of its sockets, which are open to this machine alone and signed with a key.
        extra_arguments=["--log-level=ERROR"],
    )
    with Peak(client) as peak:
        client.execute()
    return without_run_data(client.nb), peak.bytes


def without_run_data(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without what changes at every run: times, versions, widgets."""
    kept = {name: value for name, value in notebook.metadata.items() if name == "kernelspec"}
    notebook.metadata = nbformat.from_dict(kept)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # of a run in JupyterLab
        if cell.cell_type == "code":
            # Without its state, which is not kept, a widget shows as a line of text.
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    return notebook


def run(path: Path, save: bool) -> Outcome:
    """Execute a lesson and write its page; return what it took."""
    page = PAGES / path.relative_to(ROOT / "notebooks").with_suffix(".html")
    page.unlink(missing_ok=True)  # the page of an earlier run must not pass for this one's
    started = time.perf_counter()
    try:
        notebook, peak = execute(path)
    except (CellControlSignal, DeadKernelError) as error:
        return Outcome(path, time.perf_counter() - started, error=strip_ansi(str(error)))
    outcome = Outcome(path, time.perf_counter() - started, peak)
    if save:
        write_whole(path, nbformat.writes(notebook) + "\n")
    # Pictures are put into the page, so that it can be moved.
    exporter = HTMLExporter(embed_images=True)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(path.parent)}})
    write_whole(page, html)
    return outcome


def run_all(chosen: list[Path], jobs: int, save: bool) -> list[Outcome]:
    """Run the lessons, `jobs` at a time, with a line for each as it ends."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, path, save) for path in chosen]
        try:
            for future in as_completed(running):
                outcomes.append(future.result())
                line = described(outcomes[-1], jobs)
                print(f"[{len(outcomes)}/{len(chosen)}] {line}", flush=True)
        except KeyboardInterrupt:  # those that run were interrupted as well
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def described(outcome: Outcome, jobs: int) -> str:
    """Return a lesson's line: its time, its memory, and the time on record if there is one."""
    name = outcome.path.stem
    if outcome.error:
        return f"{name:<24}failed after {outcome.seconds:.0f} s\n{outcome.error}"
    line = f"{name:<24}{outcome.seconds:4.0f} s {outcome.peak / 2**30:5.1f} GiB"
    before = recorded()
    if before["jobs"] != jobs or name not in before["lessons"]:  # with a neighbour all is slower
        return line
    return f"{line}   (recorded: {before['lessons'][name]['seconds']} s)"


def described_machine(machine: hardware.Machine) -> str:
    """Return what a record says of the machine on which it was made."""
    return f"{machine.name}, {machine.cores} cores, {machine.ram:.0f} GiB"


def recorded() -> dict[str, Any]:
    """Return what the lessons took when it was last recorded."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def record(lessons: dict[str, tuple[float, int]], jobs: int) -> None:
    """Write what the lessons took, all of one run: seconds, and peak memory in bytes."""
    from course_utils.compare.results import environment  # torch, which no other use needs

    found = {
        "schema": SCHEMA,
        "versions": environment()["versions"],
        "device": described_machine(hardware.detect()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jobs": jobs,
        "lessons": {
            name: {"seconds": round(seconds), "peak_mib": peak // 2**20}
            for name, (seconds, peak) in sorted(lessons.items())
        },
    }
    write_whole(COSTS, json.dumps(found, indent=1) + "\n")


def record_claims(model: str, made: list[claims.Claim]) -> None:
    """Write claims into a model's record, with where they were made."""
    from course_utils.compare.results import environment

    claims.record(model, {"seed": SEED, **environment()}, made)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", default="", help="the number of a lesson, such as 01")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument(
        "--record", action="store_true", help="note claims, and of all lessons what they took"
    )
    parser.add_argument("--jobs", type=int, help="lessons at a time (2, or 1 where that is wiser)")
    options = parser.parse_args()
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
        print(f"{len(chosen)} lessons, {jobs} at a time", flush=True)
    base = models.base_model()
    name = base.name
    os.environ[claims.FOLDER_VARIABLE] = str(CLAIMS / name)
    for path in chosen:  # those of an earlier run must not pass for this one's
        for made in (CLAIMS / name).glob(f"{label(path)}-*.json"):
            made.unlink()
    outcomes = run_all(chosen, jobs, options.save)
    ran = {one.path.stem: (one.seconds, one.peak) for one in outcomes if not one.error}
    made = claims.read(CLAIMS / name, [label(path) for path in chosen])
    if options.record and len(ran) == len(chosen):
        record_claims(name, made)
        if base.is_pocket and not options.lesson:
            record(ran, jobs)
    failed = [f"  {one.name}: {one}" for one in made if not one.holds]
    print(f"{len(made) - len(failed)} of {len(made)} claims hold on {name}", *failed, sep="\n")
    print(
        f"{len(ran)} of {len(chosen)} lessons ran. "
        f"Open the pages in {PAGES.relative_to(ROOT)}/ in a browser."
    )
    return 0 if len(ran) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
