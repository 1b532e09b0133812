"""Write each lesson as slides, from its notebook, to build/slides; they need no network.

python scripts/slides.py          every lesson
python scripts/slides.py 04       the lesson of that number

`jupyter nbconvert --to slides` with a template, slides_template/. No cell carries a mark for
slides: one begins at each heading and goes on below where it is full. The cell for Colab and the
solutions of exercises are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import packages
import run_lessons
from nbconvert import SlidesExporter
from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

OUTPUT = run_lessons.ROOT / "build" / "slides"
TEMPLATES = Path(__file__).resolve().parent
# What a page of slides loads lies next to it: the package that has it, and where in there.
ASSETS = {
    "reveal": ("sphinx-revealjs==3.2.1", "sphinx_revealjs/_static/revealjs"),
    "mathjax": ("jupyter-server-mathjax==0.2.6", "jupyter_server_mathjax/static"),
}
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
WIDTH, HEIGHT = 1280, 720  # pixels
LINES, COLUMNS = 26, 95  # of a slide, about; the template makes smaller what takes more
PICTURE, ROW = 17, 1.5  # lines
HEADING = re.compile(r"^(?=##+ )", flags=re.M)
BADGE = re.compile(r"\[!\[[^]]*\]\(https?:[^)]*\)\]\([^)]*\)")  # its picture lies on the network


class BySections(Preprocessor):
    """Gives each cell its place on the slides, by headings and by the room that it takes."""

    def preprocess(
        self, notebook: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Return the notebook, its cells with a `slide_type` each, and the resources."""
        notebook.cells, used = list(shown(notebook)), 0.0
        for cell in notebook.cells:
            text, room = cell.cell_type == "markdown", lines(cell)
            if text and cell.source.startswith("#"):
                kind, used = "subslide" if cell.source.startswith("###") else "slide", room
            elif used + room > LINES:
                kind, used = "subslide", room
            else:
                kind, used = "-" if text else "fragment", used + room
            cell.metadata["slideshow"] = {"slide_type": kind}
        return notebook, resources


def shown(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Yield the cells that are shown; of a text each part that has a heading is one."""
    for cell in notebook.cells:
        if "google.colab" in cell.source or "<summary>Solution</summary>" in cell.source:
            continue
        if cell.cell_type == "markdown":
            parts = HEADING.split(for_slides(cell.source))
            yield from (new_markdown_cell(part.strip()) for part in parts if part.strip())
        else:
            yield cell


def for_slides(text: str) -> str:
    """Return a text whose links lead to other slides or out; others become plain text."""
    text = re.sub(r"\]\((\d\d\w+)\.ipynb[^)]*\)", r"](\1.html)", BADGE.sub("", text))
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:|#|\d\d\w+\.html)[^)]*\)", r"\1", text)


def lines(cell: NotebookNode) -> float:
    """Return about how many lines a cell takes on a slide."""
    found = sum(1 + len(line) // COLUMNS for line in cell.source.splitlines())
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            found += PICTURE
        elif "text/html" in data:
            found += ROW * data["text/html"].count("<tr")
        else:
            found += (output.get("text") or data.get("text/plain", "")).count("\n") + 1
    return found


def fetch(folder: Path) -> None:
    """Put what the pages load into a folder, unless it is there.

    Raises:
        RuntimeError: if it has to be downloaded and cannot be.
    """
    for name, (package, inside) in ASSETS.items():
        if not (folder / name).is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                packages.pip(["install", "--quiet", "--no-deps", "--target", work, package])
                (Path(work) / inside).rename(folder / name)


def write(lesson: Path, folder: Path) -> int:
    """Write the slides of a lesson into a folder; return how many they are."""
    exporter = SlidesExporter(
        template_name="slides_template",
        extra_template_basedirs=[str(TEMPLATES)],
        preprocessors=[BySections],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
        reveal_url_prefix="reveal",
        reveal_theme="white",
        reveal_width=str(WIDTH),
        reveal_height=str(HEIGHT),
        mathjax_url=MATHJAX,
    )
    notebook = nbformat.read(lesson, as_version=4)
    notebook.metadata["title"] = title(notebook)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(lesson.parent)}})
    (folder / f"{lesson.stem}.html").write_text(html, encoding="utf-8")
    return len(re.findall(r"<section[^>]*>(?!\s*<section)", html))


def title(notebook: NotebookNode) -> str:
    """Return a lesson's title, as its first heading says it."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def index(written: dict[Path, int]) -> str:
    """Return a page that leads to the slides of each lesson."""
    rows = "\n".join(
        f'<li><a href="{path.stem}.html">{escape(title(nbformat.read(path, as_version=4)))}</a> '
        f"({slides} slides)</li>"
        for path, slides in written.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Slides</title>\n'
        '<body style="font:1.2em sans-serif;margin:2em auto;max-width:40em">\n'
        f"<h1>Slides</h1>\n<ul>\n{rows}\n</ul>\n"
        "<p>Space goes on, Esc shows all slides, S opens the speaker's view. To print, add "
        "<code>?print-pdf</code> to a page's address.</p>\n</body></html>\n"
    )


def build(number: str = "", folder: Path = OUTPUT) -> dict[Path, int]:
    """Write the slides of the lessons and a page that leads to them; return how many each has.

    Raises:
        ValueError: if there is no lesson of that number.
        RuntimeError: if what the pages load cannot be fetched.
    """
    chosen = run_lessons.lessons(number)
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder)
    written = {path: write(path, folder) for path in chosen}
    if not number:
        (folder / "index.html").write_text(index(written), encoding="utf-8")
    return written


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lesson", nargs="?", default="", help="the number of a lesson, such as 04")
    options = parser.parse_args()
    try:
        written = build(options.lesson)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    for path, slides in written.items():
        print(f"{path.stem:<28}{slides:4} slides")
    print(f"Open {OUTPUT.relative_to(run_lessons.ROOT)}/ in a browser; no network is needed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
