"""Write which lessons use each module, and the picture that the README shows.

    python scripts/house.py

The first follows from the imports, and goes into each module's docstring and the README's tree; the
picture is lesson 08's plot of quality by memory. Tests compare both with what is written here.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "notebooks" / "images" / "quality_by_memory.png"
DRAWING = 'plots.trade_off(winners, "peak MiB"'  # the cell of lesson 08 that draws it
# Folder -> what it is for. Of the first two, each module has a line of its own.
FOLDERS = {
    "course_utils": "what a lesson imports",
    "preflight": "what to ask before a GPU is rented",
    "notebooks": "the lessons, committed with the outputs of a run on two cores",
    "notebooks/deeper": "proofs to the last bit, which the lessons link",
    "notebooks/recipes": "lesson 10's files for `trl sft` and `accelerate launch`",
    "data": "datasets and models, a card for each, and the scripts that made them",
    "book": "the pages around the lessons, and how `make book` builds them",
    "scripts": "what the Makefile calls",
    "benchmarks": "speed, memory and teaching time, measured: `make bench`, `make bench-gpu`",
    "tests": "unit tests, and the notebooks under nbval",
    "findings": "surprises in the libraries, each a script that shows it",
}
PACKAGES = tuple(FOLDERS)[:2]
TYPES_ALONE = re.compile(r"^if TYPE_CHECKING:\n(?: +.*\n)+", re.M)
DOCSTRING = re.compile(r'\A(r?""")(.+?)(?:\n\nUsed by [^"]+\.\n)?"""\n', re.S)
TREE = re.compile(r"(?<=<!-- begin tree -->\n\n).*?(?=<!-- end tree -->)", re.S)


@cache
def modules() -> dict[str, Path]:
    """Return the file of each module by its dotted name; a package has the name of its folder."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imported(source: str, types: bool = False) -> set[str]:
    """Return which of the modules a source imports, inside functions too.

    What it imports for types alone counts if `types` says so.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source if types else TYPES_ALONE.sub("", source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return (found & modules().keys()) - {*PACKAGES}


def lessons() -> dict[str, str]:
    """Return the code of each lesson by its number."""
    code: dict[str, str] = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*_*.ipynb")):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        # Lines for IPython alone, as in the cell for Colab, are no Python.
        python = re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", "\n".join(cells))
        code[path.stem.partition("_")[0]] = python
    return code


@cache
def users() -> dict[str, str]:
    """Return the lessons whose imports lead to each module, directly or through others."""
    graph = {name: imported(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    found: dict[str, list[str]] = {name: [] for name in graph}
    sources = lessons()
    for number, source in sources.items():
        reached, waiting = set(), imported(source)
        while waiting:
            reached |= waiting
            waiting = set().union(*(graph[name] for name in waiting)) - reached
        for name in reached:
            found[name].append(number)
    return {
        name: "all" if len(numbers) == len(sources) else ", ".join(numbers) or "none"
        for name, numbers in found.items()
    }


def used_by(name: str) -> str:
    """Return the last sentence of a module's docstring."""
    return f"Used by lessons: {users()[name]}."


def annotated(name: str) -> str:
    """Return a module's source with that sentence at the end of its docstring."""
    source = modules()[name].read_text(encoding="utf-8")
    start, text = DOCSTRING.match(source).groups()
    return f'{start}{text.rstrip()}\n\n{used_by(name)}\n"""\n' + DOCSTRING.sub("", source)


def tree() -> str:
    """Return the README's tables: the folders, and in a fold the modules of each package."""
    there = [folder for folder in FOLDERS if (ROOT / folder).is_dir()]
    rows = [f"| [`{folder}/`]({folder}) | {FOLDERS[folder]} |" for folder in there]
    parts = ["\n".join(["| folder | what it holds |", "|---|---|", *rows])]
    for package in PACKAGES:
        summary = f"<details><summary>The modules of <code>{package}</code></summary>"
        table = ["| module | what it holds | lessons |", "|---|---|---|", *_rows(package)]
        parts += [summary, "\n".join(table), "</details>"]
    return "\n\n".join(parts) + "\n\n"


def _rows(package: str) -> Iterator[str]:
    for name, path in modules().items():
        if name.startswith(f"{package}."):
            text = DOCSTRING.match(path.read_text(encoding="utf-8"))[2].split("\n")[0]
            place = path.relative_to(ROOT / package).as_posix().removesuffix("__init__.py")
            yield f"| `{place}` | {text.rstrip('.')} | {users()[name]} |"


def readme() -> str:
    """Return the README with those tables."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return TREE.sub(lambda _: tree(), text)


def picture() -> bytes:
    """Return the picture, as PNG, that lesson 08 was saved with."""
    cells = nbformat.read(ROOT / "notebooks" / "08_peft_against_full.ipynb", 4).cells
    [cell] = [c for c in cells if c.cell_type == "code" and c.source.startswith(DRAWING)]
    [output] = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    return base64.b64decode(output["data"]["image/png"])


if __name__ == "__main__":
    for module, file in modules().items():
        file.write_text(annotated(module), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    PICTURE.write_bytes(picture())
