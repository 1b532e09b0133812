"""Execute the lessons and write each as a page under build/lessons.

python scripts/run_lessons.py              every lesson
python scripts/run_lessons.py 01           the lesson of that number
python scripts/run_lessons.py --save       also put the clean outputs into the notebooks
python scripts/run_lessons.py --jobs 1     one lesson at a time, with all cores to itself
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

from course_utils import hardware

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "lessons"
LESSON_RAM = 3  # GiB; no lesson takes more
CELL_LIMIT = 1800  # seconds; a lesson on a real model may train for a while

WIDGET = "application/vnd.jupyter.widget-view+json"

# Bars that redraw themselves leave nothing worth keeping in a page.
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def lessons(number: str = "") -> list[Path]:
    """Return the notebooks, in order; with a number, that one.

    Raises:
        ValueError: if there is no such lesson.
    """
    every = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in every if path.name.startswith(number)]
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


def execute(path: Path) -> NotebookNode:
    """Return the notebook with the outputs of a fresh run.

    Raises:
        CellControlSignal: if a cell fails or takes too long.
        DeadKernelError: if the kernel ends, as it does when memory runs out.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=CELL_LIMIT, resources=resources).execute()
    return notebook


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


def run(path: Path, save: bool) -> tuple[float, str]:
    """Execute a lesson and write its page; return the seconds it took and the error, if any."""
    page = PAGES / f"{path.stem}.html"
    page.unlink(missing_ok=True)  # the page of an earlier run must not pass for this one's
    started = time.perf_counter()
    try:
        notebook = execute(path)
    except (CellControlSignal, DeadKernelError) as error:
        return time.perf_counter() - started, strip_ansi(str(error))
    took = time.perf_counter() - started
    notebook = without_run_data(notebook)
    if save:
        nbformat.write(notebook, path)
    # Pictures are put into the page, so that it can be moved.
    exporter = HTMLExporter(embed_images=True)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(path.parent)}})
    page.write_text(html, encoding="utf-8")
    return took, ""


def finished(chosen: list[Path], jobs: int, save: bool) -> Iterator[tuple[Path, float, str]]:
    """Run the lessons, `jobs` at a time, and yield each as it ends with what `run` returns."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, path, save): path for path in chosen}
        try:
            for future in as_completed(running):
                yield running[future], *future.result()
        except KeyboardInterrupt:  # those that run were interrupted as well
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", default="", help="the number of a lesson, such as 01")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
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
    PAGES.mkdir(parents=True, exist_ok=True)
    if jobs > 1:
        print(f"{len(chosen)} lessons, {jobs} at a time", flush=True)
    failed = 0
    for i, (path, seconds, error) in enumerate(finished(chosen, jobs, options.save), start=1):
        outcome = f"{seconds:4.0f} s" if not error else f"failed after {seconds:.0f} s\n{error}"
        print(f"[{i}/{len(chosen)}] {path.stem:<24}{outcome}", flush=True)
        failed += bool(error)
    if len(chosen) > 1 and not failed:
        print(f"\nThe recorded comparison of methods (lesson 08):\n{recorded()}\n")
    print(
        f"{len(chosen) - failed} of {len(chosen)} lessons ran. "
        f"Open the pages in {PAGES.relative_to(ROOT)}/ in a browser."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
