"""Write each lesson as slides, from its notebook, to build/slides; they need no network.

python scripts/slides.py          every lesson
python scripts/slides.py 04       the lesson of that number

No cell carries a mark for slides. A slide begins at each heading; a text, a code cell and what it
gave are shown one after the other, and go on below where a slide is full. The cell for Colab and
the solutions of exercises are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
import zipfile
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
from nbformat.v4 import new_code_cell, new_markdown_cell

OUTPUT = run_lessons.ROOT / "build" / "slides"
TEMPLATES = Path(__file__).resolve().parent
# What a page of slides loads, and the package whose wheel holds it. Of the package itself nothing
# is installed.
ASSETS = {
    "reveal": ("sphinx-revealjs==3.2.1", "sphinx_revealjs/_static/revealjs/"),
    "mathjax": ("jupyter-server-mathjax==0.2.6", "jupyter_server_mathjax/static/"),
}
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"
WIDTH, HEIGHT = 1280, 720
# Of the page, in pixels: what a slide holds, and about what a line of each kind takes.
CAPACITY, TEXT, HEADING, CODE, ROW, PICTURE = 650, 35, 75, 21, 34, 440
COLUMNS = 100  # letters in a line of text
SOLUTION = "<summary>Solution</summary>"


class BySections(Preprocessor):
    """Gives each cell its place on the slides, by headings and by the room that it takes."""

    def preprocess(
        self, notebook: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Return the notebook, its cells in pieces with a `slide_type` each, and the resources."""
        cells, used = [], 0
        for piece in pieces(notebook):
            room = height(piece)
            level = re.match(r"(#+) ", piece.source) if piece.cell_type == "markdown" else None
            if level and len(level[1]) <= 2:
                kind, used = "slide", room
            elif level or used + room > CAPACITY:
                kind, used = "subslide", room
            else:
                kind, used = "-" if piece.cell_type == "markdown" else "fragment", used + room
            piece.metadata["slideshow"] = {"slide_type": kind}
            cells.append(piece)
        notebook.cells = cells
        return notebook, resources


def pieces(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """Yield what is shown: paragraphs, code, and what the code gave, each as a cell."""
    for cell in notebook.cells:
        if "google.colab" in cell.source or SOLUTION in cell.source:
            continue
        if cell.cell_type == "markdown":
            for text in by_headings(for_slides(cell.source)):
                fits = height(new_markdown_cell(text)) <= CAPACITY
                yield from map(new_markdown_cell, [text] if fits else paragraphs(text))
        elif cell.cell_type == "code":
            yield new_code_cell(cell.source)
            if cell.outputs:
                given = new_code_cell(outputs=cell.outputs)
                given.metadata["transient"] = {"remove_source": True}  # read by the templates
                yield given


def by_headings(text: str) -> list[str]:
    """Return the parts of a text, each but the first with the heading that it begins with."""
    parts = [""]
    fenced = False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#+ ", line):
            parts.append("")
        parts[-1] += line
    return [part.strip() for part in parts if part.strip()]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text; a heading stays with the one below, fenced code whole."""
    parts: list[str] = []
    fenced = False
    for part in text.split("\n\n"):
        if parts and (fenced or re.match(r"#+ .*$", parts[-1])):
            parts[-1] += f"\n\n{part}"
        else:
            parts.append(part)
        fenced ^= part.count("```") % 2 == 1
    return parts


def for_slides(text: str) -> str:
    """Return a text whose links lead to other slides or out; others become plain text.

    The badge goes: its picture lies on the network.
    """
    text = re.sub(r"\[!\[[^]]*\]\(https?:[^)]*\)\]\([^)]*\)", "", text)
    text = re.sub(r"\]\((\d\d_\w+)\.ipynb[^)]*\)", r"](\1.html)", text)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:|#|\d\d_\w+\.html)[^)]*\)", r"\1", text)


def height(cell: NotebookNode) -> int:
    """Return about how many pixels a cell takes on a slide."""
    if cell.cell_type == "markdown":
        found = 0
        for line in cell.source.splitlines():
            wrapped = len(textwrap.wrap(line, COLUMNS))
            found += HEADING if line.startswith("#") else TEXT * wrapped if wrapped else TEXT // 2
        return found
    code = CODE * (cell.source.count("\n") + 2) if cell.source else 0
    return code + sum(map(_output_height, cell.outputs))


def _output_height(output: NotebookNode) -> int:
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        return PICTURE
    if "text/html" in data:
        return ROW * max(2, data["text/html"].count("<tr"))
    return CODE * ((output.get("text") or data.get("text/plain", "")).count("\n") + 2)


def fetch(folder: Path) -> None:
    """Put what the pages load into a folder, unless it is there.

    Raises:
        RuntimeError: if it has to be downloaded and cannot be.
    """
    for name, (package, inside) in ASSETS.items():
        target = folder / name
        if target.is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as work:
            packages.pip(["download", "--quiet", "--no-deps", "--dest", work, package])
            (archive,) = Path(work).glob("*.whl")
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(work, [n for n in wheel.namelist() if n.startswith(inside)])
            (Path(work) / inside).rename(target)


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
