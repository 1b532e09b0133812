"""The folder that Sphinx reads: the pages of book/ and the lessons, made ready for a site.

A committed notebook is meant for a kernel. On a page its cell for Colab says nothing, its badge
would be fetched from elsewhere, its pictures need words, its links to files lead to the repository,
and where it has an explorer stands what that shows at first.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
COLAB_CELL = (ROOT / "scripts" / "colab_cell.ipy").read_text(encoding="utf-8").strip()
REPOSITORY = re.findall(r'"(https://github\.com/[^"]+)"', COLAB_CELL)[0]
BRANCH = "main"
PAGES = ("*.md", "api/*.md", "_static/*")

BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
# What lessons say of an explorer is not so here.
NOTHING_SHOWS = re.compile(r" \(Without a running kernel[^)]*\)|; without a running kernel [^.;]*")
LONGEST_ALT = 400  # characters; a screen reader cannot skip within it


def lessons(folder: Path = ROOT / "notebooks") -> list[Path]:
    """Return the committed lessons in order."""
    return sorted(folder.glob("[0-9][0-9]*_*.ipynb"))


def adapt(path: Path, explorer: Callable[[str], str]) -> NotebookNode:
    """Return a lesson as it is to stand on the site; `explorer` gives a call's picture as HTML.

    Raises:
        ValueError: if a link leads to no file of the repository.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip() != COLAB_CELL]
    heading = ""
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            source = NOTHING_SHOWS.sub("", with_text_links(cell.source, path.name))
            cell.source = local_links(source, path)
            heading = (re.findall(r"^#+ +(.+)$", cell.source, flags=re.M) or [heading])[-1]
            continue
        if call := explorer_call(cell):
            cell.outputs = [new_output("display_data", {"text/html": explorer(call)})]
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            after = notebook.cells[i + 1 : i + 2]
            words = printed(cell) or "".join(printed(c) for c in after if c.cell_type == "code")
            cell.metadata["mystnb"] = {"image": {"alt": alternative(heading, words)}}
    return notebook


def with_text_links(source: str, name: str) -> str:
    """Return markdown with the badge as links: a badge is fetched from another site."""
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY.removeprefix('https://github.com/')}/{BRANCH}"
    links = rf"[Open in Colab](\1) · [Open in Binder]({binder}?urlpath=lab/tree/notebooks/{name})"
    return BADGE.sub(links, source)


def local_links(source: str, path: Path) -> str:
    """Return markdown whose links to files that are no page lead to the repository.

    Raises:
        ValueError: if a link leads to no file of the repository.
    """

    def leads(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        file = (path.parent / target).resolve()
        if not file.exists():
            raise ValueError(
                f"{path.name} links to {target!r}, and there is no such file. A link is relative "
                "to the folder of its page. Correct it there."
            )
        if file.suffix == ".md" and file.parent == BOOK != path.parent:
            up = os.path.relpath(ROOT, path.parent)  # the pages of book/ lie at the top of the site
            return f"[{text}]({up}/{file.name}{anchor})"
        if file.suffix in {".ipynb", ".md"} and file.parent in {ROOT / "notebooks", BOOK}:
            return match[0]
        kind = "tree" if file.is_dir() else "blob"
        return f"[{text}]({REPOSITORY}/{kind}/{BRANCH}/{file.relative_to(ROOT).as_posix()}{anchor})"

    parts = re.split(r"(```.*?```)", source, flags=re.S)
    return "".join(p if p.startswith("```") else LINK.sub(leads, p) for p in parts)


def explorer_call(cell: NotebookNode) -> str:
    """Return the source of a cell that ends in an explorer without an output, else nothing."""
    if cell.outputs or not re.search(r"(explorer|planner)\(", cell.source):
        return ""
    last = ast.parse(cell.source).body[-1]
    shows = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    made = r"(widgets|explorers)\.\w+_(explorer|planner)"
    if shows and re.fullmatch(made, ast.unparse(last.value.func)):
        return ast.unparse(last.value)
    return ""


def printed(cell: NotebookNode) -> str:
    """Return what a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def alternative(heading: str, words: str) -> str:
    """Return the words that stand for a picture: its section, and what was printed of it."""
    plain = re.sub(r"[`*$]", "", heading)
    said = " ".join(words.split())
    text = f"{plain}: {said}" if said else f"Picture of the section {plain}"
    return text if len(text) <= LONGEST_ALT else f"{text[: LONGEST_ALT - 1].rstrip()}…"


def write(path: Path, text: str) -> None:
    """Write a file if it is new: Sphinx reads again what has a newer date."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def stage(folder: Path, generated: dict[str, str], explorer: Callable[[str], str]) -> None:
    """Put together the folder that Sphinx reads, and take out what does not belong there.

    `generated` are pages by name that are written from data.
    """
    wanted = {Path("conf.py")}
    write(folder / "conf.py", (BOOK / "conf.py").read_text(encoding="utf-8"))
    for pattern in PAGES:
        for file in BOOK.glob(pattern):
            wanted.add(file.relative_to(BOOK))
            write(folder / file.relative_to(BOOK), file.read_text(encoding="utf-8"))
    for name, text in generated.items():
        wanted.add(Path(name))
        write(folder / name, text)
    for path in lessons():
        wanted.add(Path("notebooks") / path.name)
        text = nbformat.writes(adapt(path, explorer))
        write(folder / "notebooks" / path.name, text)
    for file in (ROOT / "notebooks" / "images").iterdir():
        wanted.add(Path("notebooks") / "images" / file.name)
        (folder / "notebooks" / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, folder / "notebooks" / "images")
    for found in [Path(where) / name for where, _, names in os.walk(folder) for name in names]:
        if found.relative_to(folder) not in wanted:
            found.unlink()
