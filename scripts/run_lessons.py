"""Execute the lessons and write each as a page under build/lessons.

python scripts/run_lessons.py              every lesson
python scripts/run_lessons.py 01           the lesson of that number
python scripts/run_lessons.py --save       also put the clean outputs into the notebooks
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "lessons"
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", default="", help="the number of a lesson, such as 01")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    options = parser.parse_args()
    try:
        chosen = lessons(options.lesson)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    os.environ.update(QUIET)
    PAGES.mkdir(parents=True, exist_ok=True)
    failed = 0
    for i, path in enumerate(chosen, start=1):
        print(f"[{i}/{len(chosen)}] {path.stem:<24}", end="", flush=True)
        page = PAGES / f"{path.stem}.html"
        page.unlink(missing_ok=True)  # the page of an earlier run must not pass for this one's
        started = time.perf_counter()
        try:
            notebook = execute(path)
        except (CellControlSignal, DeadKernelError) as error:
            failed += 1
            print(f"failed after {time.perf_counter() - started:.0f} s\n{strip_ansi(str(error))}")
            continue
        print(f"{time.perf_counter() - started:4.0f} s", flush=True)
        notebook = without_run_data(notebook)
        if options.save:
            nbformat.write(notebook, path)
        # Pictures are put into the page, so that it can be moved.
        exporter = HTMLExporter(embed_images=True)
        html, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(path.parent)}})
        page.write_text(html, encoding="utf-8")
    print(
        f"{len(chosen) - failed} of {len(chosen)} lessons ran. "
        f"Open the pages in {PAGES.relative_to(ROOT)}/ in a browser."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
