"""What can be told of a notebook without running it: it renders, reads well, leaks nothing."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import publish_as
import pytest
from conftest import UNANSWERED
from nbformat import NotebookNode

from course_utils.paths import COURSE_ROOT

LESSONS = sorted((COURSE_ROOT / "notebooks").glob("*.ipynb"))
DEEPER = sorted((COURSE_ROOT / "notebooks" / "deeper").glob("*.ipynb"))
NOTEBOOKS = LESSONS + DEEPER
PAGES = [
    *(COURSE_ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((COURSE_ROOT / "data").rglob("README.md")),
]
REPOSITORY = publish_as.current().repository
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/"
OPENING = ("**You will learn**", "**You need**", "**It costs**", "[![")

# What must not stand in an output; secrets are looked for in every file by test_security.py.
LEAKS = {
    "absolute path": re.compile(
        r"(?<![\w.:/])/(?:home|root|work|tmp|usr|opt|mnt|Users|content)/|\b[A-Z]:\\"
    ),
    "warning": re.compile(r"\b\w*Warning:|\bWARNING\b|warnings\.warn"),
    "progress bar": re.compile(r"\d+%\|[ █▏▎▍▌▋▊▉#]*\||\b\d+/\d+ \[\d\d:\d\d"),
    "timestamp": re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d"),
    "memory address": re.compile(r"\bat 0x[0-9a-f]{6,}"),
}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def markdown(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def prose(text: str) -> str:
    """Return markdown without fenced code, in which # and [] mean something else."""
    return re.sub(r"```.*?```", "", text, flags=re.S)


def output_text(notebook: NotebookNode) -> str:
    """Return all text that the outputs show, pictures left out."""
    parts: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", ""))
            parts += [v for k, v in output.get("data", {}).items() if not k.startswith("image/p")]
    return "\n".join(part if isinstance(part, str) else str(part) for part in parts)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ +(.+)$", prose(text), flags=re.M)
    plain = [
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", t)).strip() for t in titles
    ]
    return {t.lower().replace(" ", "-") for t in plain}


def page_text(path: Path) -> str:
    return markdown(read(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


def broken_links(path: Path) -> list[str]:
    """Return the internal links and pictures of a page that lead nowhere."""
    text = prose(page_text(path))
    targets = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", text)
    targets += re.findall(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"", text)
    broken = []
    for target in targets:
        parts = urlsplit(target)
        if target.startswith(COLAB):
            if not (COURSE_ROOT / target.removeprefix(COLAB)).exists():
                broken.append(target)
        elif not parts.scheme:
            file = (path.parent / unquote(parts.path)) if parts.path else path
            if not file.exists():
                broken.append(target)
            elif parts.fragment and parts.fragment not in anchors(page_text(file)):
                broken.append(target)
    return broken


def test_github_can_render_it(path: Path) -> None:
    """GitHub shows "Invalid Notebook" for widget metadata without state or a broken schema."""
    notebook = read(path)
    nbformat.validate(notebook)
    widgets = notebook.metadata.get("widgets", {})
    assert all("state" in entry for entry in widgets.values())
    assert notebook.metadata["kernelspec"]["name"] == "python3", "a kernel that others lack"
    assert path.stat().st_size < 3e6, "GitHub stops rendering large notebooks"


def test_it_was_run_without_errors(path: Path) -> None:
    """A reader on GitHub sees the committed outputs: all of them, and no error."""
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not [o for c in code for o in c.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 3


@pytest.mark.parametrize("leak", LEAKS)
def test_outputs_hold_nothing_of_the_machine(path: Path, leak: str) -> None:
    """Paths, secrets, warnings, bars and times differ by machine, or should not be public."""
    assert not LEAKS[leak].findall(output_text(read(path)))


def test_sources_hold_nothing_of_the_machine(path: Path) -> None:
    """A path of one machine fails on all others."""
    cells = [c.source for c in read(path).cells if "google.colab" not in c.source]
    assert not [source for source in cells if LEAKS["absolute path"].search(source)]


def test_it_opens_with_the_four_lines(path: Path) -> None:
    """Before they run anything, readers know what they get, need and pay."""
    first = read(path).cells[0].source
    positions = [first.find(line) for line in OPENING]
    assert -1 not in positions, dict(zip(OPENING, positions, strict=True))
    assert positions == sorted(positions)
    assert f"{COLAB}{path.relative_to(COURSE_ROOT).as_posix()})" in first


def test_headings_are_in_order(path: Path) -> None:
    """One title, and no level left out: screen readers walk by headings."""
    levels = [len(h) for h in re.findall(r"^(#+) ", prose(markdown(read(path))), flags=re.M)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_it_ends_with_measurements_and_the_way_on(path: Path) -> None:
    """The last sections are the same everywhere, and something leads to each notebook.

    To a lesson the README does; to a deeper notebook its lesson, and it leads back.
    """
    text = markdown(read(path))
    titles = re.findall(r"^## (.+)$", prose(text), flags=re.M)
    if path in DEEPER:
        lessons = [one for one in LESSONS if one.name[:2] == path.name[:2]]  # of 05, 05a and 05b
        leading = [one for one in lessons if f"(deeper/{path.name})" in markdown(read(one))]
        assert titles[-2:] == ["What we measured", "Next"]
        assert leading and all(f"(../{one.name})" in text for one in leading)
        return
    assert titles[-3:] == ["Your turn", "What we measured", "Next"]
    assert f"(notebooks/{path.name})" in (COURSE_ROOT / "README.md").read_text(encoding="utf-8")


def test_pictures_have_alternative_text(path: Path) -> None:
    """A picture without it says nothing to some readers."""
    texts = re.findall(r"!\[([^]]*)\]\(", markdown(read(path)))
    assert all(len(text) > 8 for text in texts)
    assert not re.findall(r"<img(?![^>]*\balt=)", markdown(read(path)))


def test_links_resolve(path: Path) -> None:
    """Internal links and anchors lead somewhere, those of the README and the cards too."""
    assert not broken_links(path)
    assert not [(page.name, link) for page in PAGES for link in broken_links(page)]


def test_cells_are_short(path: Path) -> None:
    """One idea a cell."""
    long = [
        c.source for c in read(path).cells if c.cell_type == "code" and c.source.count("\n") >= 25
    ]
    assert not long


def test_exercises_have_a_folded_solution(path: Path) -> None:
    """Two to four in a lesson; each with three dots, a check of its own and a solution to open."""
    notebook = read(path)
    found = [i for i, c in enumerate(notebook.cells) if "exercises.check(" in c.source]
    assert 2 <= len(found) <= 4 or path in DEEPER
    for i in found:
        assert notebook.cells[i].source.startswith(UNANSWERED)
        assert f'exercises.check("{path.name[:2]}-' in notebook.cells[i].source
        fold = r"<details><summary>Solution</summary>\n\n.*?```python\n.*?```\n</details>"
        assert re.match(fold, notebook.cells[i + 1].source, flags=re.S)


def test_the_first_code_cell_is_the_one_for_colab(path: Path) -> None:
    """Every lesson opens on Colab by the same cell."""
    first = next(cell for cell in read(path).cells if cell.cell_type == "code")
    cell = (COURSE_ROOT / "scripts" / "colab_cell.ipy").read_text(encoding="utf-8")
    assert first.source == cell.strip()


def test_its_claims_have_names_of_its_own_and_stand_in_its_last_table(path: Path) -> None:
    """A record of claims goes by their names; one that is an assert is in no record."""
    if path in DEEPER:
        return  # what is done again there is claimed in no table
    number = path.name.partition("_")[0]
    sources = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    names = re.findall(r'\bclaim\(\s*"([^"]+)"', "\n".join(sources))
    assert names and len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(rf"{number}(-[a-z0-9]+)+", name)] == []
    assert any(f'claims.measured("{number}", ' in source for source in sources)
