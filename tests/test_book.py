"""The pages: built for real from the committed lessons, then looked at as a reader would.

The build executes no lesson. What it needs is not in requirements.txt, since learners do not need
it: where it is missing, these tests say so and are skipped.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nbformat
import publish_as
import pytest
import yaml
from helpers import QuietHandler, python, served
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_utils.paths import COURSE_ROOT

BOOK = COURSE_ROOT / "book"
SITE = COURSE_ROOT / "build" / "book-test"
NEEDED = [
    Requirement(line)
    for line in (BOOK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LESSONS = sorted(path.stem for path in (COURSE_ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))


def there(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


MISSING = [requirement.name for requirement in NEEDED if not there(requirement.name)]


def built_here(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the site, which takes a minute to build."""
    reason = f"the pages need {', '.join(MISSING)}: run `make book` once"
    return pytest.mark.long(pytest.mark.skipif(bool(MISSING), reason=reason)(test))


def module(name: str):
    """Return a module of book/, which is no package."""
    if str(BOOK) not in sys.path:
        sys.path.insert(0, str(BOOK))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def site() -> Path:
    """Build the pages in a process of its own, as `make book` does."""
    done = python("book/build.py", "--output", SITE, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return SITE


def html(site: Path, name: str):
    return module("check").page(site / name)


@built_here
def test_every_lesson_is_there_in_order(site: Path) -> None:
    """Next and previous, too, follow the side bar."""
    links = [a["href"] for a in html(site, "index.html").select("nav.bd-links a[href]")]
    lessons = [Path(link).stem for link in links if link.startswith("notebooks/")]
    assert lessons == LESSONS
    first, second = LESSONS[:2]
    follows = html(site, f"notebooks/{first}.html").select_one("a.right-next")
    assert follows["href"] == f"{second}.html"


@built_here
def test_nothing_is_broken_and_nothing_is_fetched(site: Path) -> None:
    """Links, anchors, pictures and their words; no font, script or picture of another site."""
    assert module("check").problems(site) == []


@built_here
def test_outputs_are_those_of_the_committed_lessons(site: Path) -> None:
    """No lesson is executed, so each printed line and picture must come from the notebook."""
    for stem in LESSONS:
        notebook = nbformat.read(COURSE_ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        page = html(site, f"notebooks/{stem}.html")
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        shown = page.select(".cell_output img[src*='_images/']")
        assert len(shown) == pictures
        text = "".join(page.get_text().split())
        streams = [output.text for output in outputs if output.output_type == "stream"]
        assert all("".join(stream.split()) in text for stream in streams), stem


@built_here
def test_explorers_stand_as_pictures(site: Path) -> None:
    """A page has no kernel: where a lesson has an explorer, the page has what it shows at first."""
    total = 0
    for stem in LESSONS:
        notebook = nbformat.read(COURSE_ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
        stage = module("stage")
        calls = [c for c in notebook.cells if c.cell_type == "code" and stage.explorer_call(c)]
        page = html(site, f"notebooks/{stem}.html")
        frames = page.select(".explorer")
        assert len(frames) == len(calls)
        total += len(calls)
        assert all(frame.select("img[alt]") for frame in frames), stem
        assert "without a running kernel" not in page.get_text().lower()
    assert total == 4, "lessons 02, 03, 04 and 06 have one each"


@built_here
def test_lessons_can_be_launched(site: Path) -> None:
    """By the rocket, and by two links of text at the top."""
    for stem in LESSONS:
        links = [a["href"] for a in html(site, f"notebooks/{stem}.html").select("a[href]")]
        ours = f"{publish_as.current().repository}/blob/main/notebooks"
        colab = f"https://colab.research.google.com/github/{ours}/{stem}.ipynb"
        assert links.count(colab) >= 2
        binder = [link for link in links if link.startswith("https://mybinder.org/v2/gh/")]
        assert len(binder) >= 2
        assert all(f"notebooks/{stem}.ipynb" in link for link in binder)
    start = html(site, "glossary.html")
    assert not [a for a in start.select("a[href]") if "mybinder.org" in a["href"]]


@built_here
def test_search_finds_the_lessons(site: Path) -> None:
    """The index is a file of the site, and knows each page and its words."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    names = index["docnames"]
    assert {f"notebooks/{stem}" for stem in LESSONS} <= set(names)
    (where,) = [names.index(name) for name in names if name.endswith("04_lora")]
    hits = [table["lora"] for table in (index["terms"], index["titleterms"])]
    assert where in {n for some in hits for n in (some if isinstance(some, list) else [some])}


@built_here
def test_every_public_module_has_its_page(site: Path) -> None:
    """With each public function of it, and a summary for each."""
    index = html(site, "api/index.html").get_text()
    packages = module("data_pages").PACKAGES
    for path in (path for package in packages for path in (COURSE_ROOT / package).iterdir()):
        name = path.stem
        if name.startswith("_") or name in module("data_pages").INNER:
            continue
        assert name in index
        documented = {tag["id"] for tag in html(site, f"api/{name}.html").select("dt[id]")}
        source = path if path.suffix == ".py" else path / "__init__.py"
        exported = re.search(
            r"^__all__ = \[(.*?)\]", source.read_text(encoding="utf-8"), re.M | re.S
        )
        names = (
            re.findall(r'"(\w+)"', exported[1])
            if exported
            else re.findall(r"^def ([a-z]\w*)", source.read_text(encoding="utf-8"), re.M)
        )
        functions = [n for n in names if not n.isupper()]
        assert {f"{path.parent.name}.{name}.{n}" for n in functions} <= documented, name


@built_here
def test_the_errors_are_found_by_their_text(site: Path) -> None:
    """The page has each text as it is printed, and a link to it in the list."""
    page = html(site, "troubleshooting.html")
    blocks = ["".join(b.get_text().split()) for b in page.select(".error-text pre")]
    for group in yaml.safe_load((BOOK / "troubleshooting.yaml").read_text(encoding="utf-8")):
        for entry in group["entries"]:
            assert "".join(entry["text"].split()) in blocks, entry["id"]
            assert page.select(f"a[href='#{entry['id']}']"), entry["id"]


@built_here
def test_broken_pages_are_found(tmp_path: Path) -> None:
    """The check of the site must be able to fail."""
    (tmp_path / "there.html").write_text('<p id="here">')
    (tmp_path / "page.html").write_text(
        '<a href="there.html#here">1</a><a href="there.html#gone">2</a><a href="gone.html">3</a>'
        '<img src="gone.png" alt="x"><img src="data:,"><script src="https://cdn.example/x.js">'
        '</script><link rel="stylesheet" href="//fonts.example/x.css">'
        "<p style=\"background: url('gone.svg')\">"
    )
    (tmp_path / "page.css").write_text("a { background: url(https://example.com/x.png) }")
    found = module("check").problems(tmp_path)
    assert len(found) == 8, found
    for words in ("#gone", "gone.html", "gone.png", "alt text", "x.js", "x.css", "svg", "x.png"):
        assert any(words in line for line in found), words


@built_here
def test_a_lesson_is_made_ready_for_a_page(tmp_path: Path) -> None:
    """A picture gets words; a link that leads nowhere stops the build and says where it is."""
    stage = module("stage")
    picture = new_output("display_data", {"image/png": "", "text/plain": "Figure"})
    cells = [
        new_code_cell(stage.COLAB_CELL),
        new_markdown_cell("## The `loss`\n\nMove it. (Without a running kernel nothing shows.)"),
        new_code_cell("plot()", outputs=[picture]),
        new_code_cell("print()", outputs=[new_output("stream", text="falls\nto 1\n")]),
        new_code_cell("widgets.some_explorer(1)"),
        new_code_cell("explorers.some_planner(1)"),
    ]
    path = tmp_path / "99_lesson.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    text, plot, _, explorer, planner = stage.adapt(path, "<p>{}</p>".format).cells
    assert text.source == "## The `loss`\n\nMove it."
    assert plot.metadata["mystnb"]["image"]["alt"] == "The loss: falls to 1"
    assert explorer.outputs[0]["data"] == {"text/html": "<p>widgets.some_explorer(1)</p>"}
    assert planner.outputs[0]["data"] == {"text/html": "<p>explorers.some_planner(1)</p>"}


@built_here
def test_links_of_lessons_lead_on() -> None:
    """To other pages, or to the repository; one that leads nowhere stops the build."""
    stage, lesson = module("stage"), COURSE_ROOT / "notebooks" / "00_quickstart.ipynb"
    readme = f"{stage.REPOSITORY}/blob/main/README.md#start"
    for given, made in (
        ("[a](01_datasets.ipynb#text)", "[a](01_datasets.ipynb#text)"),
        ("[a](../README.md#start)", f"[a]({readme})"),
        ("[a](https://example.com)", "[a](https://example.com)"),
        ("```python\nx[0](gone.md)\n```", "```python\nx[0](gone.md)\n```"),
    ):
        assert stage.local_links(given, lesson) == made
    with pytest.raises(ValueError, match=r"00_quickstart.ipynb links to 'gone.md'.*no such file"):
        stage.local_links("[a](gone.md)", lesson)


@built_here
def test_an_explorer_that_cannot_be_made_becomes_a_sentence() -> None:
    """A lesson may hand over what only its kernel has."""
    still = module("explorers").still("widgets.quantization_explorer(my_own_weights)")
    assert "A page has no kernel" in still
    assert "<img" not in still


def test_what_the_pages_need_is_pinned() -> None:
    """Their versions stand with all others; each pin is within its range."""
    text = (COURSE_ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.M)}
    for requirement in NEEDED:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    learners = (COURSE_ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "sphinx" not in learners.lower()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the pages on this machine only."""

    class Files(QuietHandler, http.server.SimpleHTTPRequestHandler):
        """The files of a folder."""

    with served(functools.partial(Files, directory=str(site))) as (found, _):
        yield f"{found}/"


# Set in the page: what loads late counts too, and a phone must not scroll sideways.
LOOK = """() => ({
  broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 90)),
  width: document.documentElement.scrollWidth,
})"""


@built_here
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_in_a_browser(site: Path, address: str, width: int) -> None:
    """No error in the console, every picture loads, no request to elsewhere, no sideways scroll."""
    tool = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    pages = [p for p in site.rglob("*.html") if not {"_static", "_modules"} & set(p.parts)]
    faults: list[str] = []
    with tool.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False)
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and faults.append(f"{page.url}: {m.text}"),
        )
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda r: r.url.startswith((address, "data:")) or faults.append(f"asks for {r.url}"),
        )
        for path in sorted(pages):
            name = path.relative_to(site).as_posix()
            page.goto(address + name, wait_until="load")
            page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
            page.wait_for_function("[...document.images].every(i => i.complete)")
            seen = page.evaluate(LOOK)
            faults += [f"{name}: {source} does not load" for source in seen["broken"]]
            if seen["width"] > width:
                faults.append(f"{name} is {seen['width']} wide")
        browser.close()
    assert not faults
