"""The set-up: files that say the same, one .venv, and a Colab that keeps its torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import house
import nbformat
import publish_as
import pytest
import run_lessons
import yaml
from helpers import python
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from course_utils import __version__, colab, hardware
from course_utils.paths import COURSE_ROOT

ADDRESS = publish_as.current()
CELL = (COURSE_ROOT / "scripts" / "colab_cell.ipy").read_text(encoding="utf-8")

# Of these, which are needed and which version serves depends on the machine, so they have no pin.
PLATFORM = ("nvidia-", "cuda-", "triton", "appnope", "colorama", "pywin")

pinned = pytest.mark.skipif(
    os.environ.get("CONSTRAINTS") == "", reason="run on the newest versions"
)

posix = pytest.mark.skipif(
    os.name == "nt" or shutil.which("make") is None, reason="needs make and a POSIX shell"
)

clone = pytest.mark.skipif(
    not (COURSE_ROOT / ".git").exists() or shutil.which("git") is None, reason="not a clone"
)


def lines(name: str) -> list[str]:
    text = (COURSE_ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def requirements() -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, lines("requirements.txt"))}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    return {
        canonicalize_name(n): v for n, v in (line.split("==") for line in lines("constraints.txt"))
    }


def test_every_pin_is_within_its_range(requirements, pins) -> None:
    """A tested version outside the supported range means that the range was never tested."""
    ship = {canonicalize_name(r.name): r for r in map(Requirement, lines("requirements-ship.txt"))}
    for name, requirement in (requirements | ship).items():
        assert name in pins, f"{name} has no exact version in constraints.txt"
        assert requirement.specifier.contains(pins[name]), (str(requirement), pins[name])


def test_the_ranges_admit_the_torch_of_gpu_images(requirements) -> None:
    """A GPU image brings a torch of its own, and it should serve."""
    assert requirements["torch"].specifier.contains("2.10.0")


def test_conda_reads_the_same_two_files() -> None:
    """environment.yml repeats no version, so it cannot drift."""
    text = (COURSE_ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "- -r requirements.txt" in text
    assert "- -c constraints.txt" in text
    assert re.findall(r"^  - (\w+)", text, flags=re.M) == ["conda", "python", "pip", "pip"]
    project = tomllib.loads((COURSE_ROOT / "pyproject.toml").read_text())
    # Binder reads one version, such as python=3.12, and takes its own default for a range.
    (version,) = re.findall(r"^  - python=([\d.]+)\b", text, flags=re.M)
    assert SpecifierSet(project["project"]["requires-python"]).contains(version)


@pinned
def test_pip_can_read_the_lines_for_conda(tmp_path: Path) -> None:
    """conda and Binder hand these lines to pip in a file next to environment.yml."""
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(COURSE_ROOT / name, tmp_path)
    for name in ("course_utils", "preflight"):
        shutil.copytree(COURSE_ROOT / name, tmp_path / name)
    text = (COURSE_ROOT / "environment.yml").read_text(encoding="utf-8")
    (tmp_path / "lines.txt").write_text("\n".join(re.findall(r"^      - (.+)$", text, flags=re.M)))
    options = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "-r", "lines.txt"]
    done = python("-m", "pip", "install", *options, cwd=tmp_path)
    if "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip")
    assert done.returncode == 0, done.stderr
    assert "Would install finetuning-course" in done.stdout


def installed(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the installed version of all that those need, directly or by way of others."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(r.name, extra) for r in requirements for extra in ("", *r.extras)]
    while todo:
        name, extra = canonicalize_name(todo[-1][0]), todo.pop()[1]
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        there = distribution(name)
        found[name] = Version(there.version).public
        for needed in map(Requirement, there.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed.name, e) for e in ("", *needed.extras)]
    return found


@pinned
def test_what_runs_here_is_what_is_pinned(requirements, pins) -> None:
    """The whole .venv is the tested one, libraries of libraries included."""
    there = installed(requirements.values())
    there = {name: v for name, v in there.items() if not name.startswith(PLATFORM)}
    assert there == {name: pins.get(name) for name in there}


@pinned
def test_every_pin_installs_on_the_oldest_python(requirements, pins) -> None:
    """Debian 12 has Python 3.11.2: one pin that needs 3.11.5 stops `make run` there."""
    there = [name for name in installed(requirements.values()) if name in pins]
    needs = {name: distribution(name).metadata["Requires-Python"] for name in there}
    for version in ("3.11.0", "3.12.0", "3.13.0"):
        wrong = {n: s for n, s in needs.items() if not SpecifierSet(s or "").contains(version)}
        assert not wrong, f"not for Python {version}"


def test_colab_cell_fetches_a_pinned_tag() -> None:
    """An unpinned course would change under a class; a tag of that form is the version."""
    assert f"--branch {ADDRESS.tag} " in CELL
    citation = yaml.safe_load((COURSE_ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    if version := publish_as.VERSION_TAG.fullmatch(ADDRESS.tag):
        assert version[1] == __version__


@clone
def test_one_repository_is_named_everywhere() -> None:
    """Else the first click of whoever publishes the course leads to somebody else, or nowhere."""
    github = f"https://github.com/{ADDRESS.repository}"
    assert re.findall(r'"(https://github\.com/[^"]+)"', CELL) == [github]
    citation = yaml.safe_load((COURSE_ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == github
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    assert f"git clone {github}\ncd {ADDRESS.repository.partition('/')[2]}\n" in readme
    own = re.compile(
        r"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh|git clone .*?github\.com)"
        r"/([\w.-]+/[\w.-]+)"
    )
    texts = publish_as.tracked(COURSE_ROOT)
    del texts[Path("tests/test_setup.py")]
    named = {name for text in texts.values() for name in own.findall(text)}
    assert named == {ADDRESS.repository}


@clone
def test_the_course_can_be_published_by_anybody_and_back(tmp_path: Path) -> None:
    """No trace of the old name stays, and no other byte changes."""
    before = publish_as.tracked(COURSE_ROOT)
    for path, text in before.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text.encode("utf-8"))
    git = ["git", "-C", str(tmp_path)]
    for command in (["init", "--quiet"], ["add", "--all", "--force"]):
        subprocess.run([*git, *command], check=True)
    owner, name = "somebody", "a.course"  # not in one text: this file is among the copied ones
    new = publish_as.Address(f"{owner}/{name}", "v7.8.9")
    changed = publish_as.publish(new, tmp_path)
    after = publish_as.tracked(tmp_path)
    assert not [path for path, text in after.items() if ADDRESS.named.search(text)]
    assert not [p for p, t in after.items() if re.search(rf"{ADDRESS.tag}(?![\w.-])", t)]
    assert publish_as.current(tmp_path) == new
    assert f"https://github.com/{owner}/{name}\ncd {name}\n" in after[Path("README.md")]
    assert '__version__ = "7.8.9"' in after[Path("course_utils/__init__.py")]
    assert yaml.safe_load(after[Path("CITATION.cff")])["version"] == "7.8.9"
    cell = after[Path("scripts/colab_cell.ipy")].strip()
    for path in (path for path in changed if path.suffix == ".ipynb"):
        was, now = (nbformat.reads(texts[path], as_version=4) for texts in (before, after))
        assert now.cells[1].source == cell
        assert [c.get("outputs") for c in now.cells] == [c.get("outputs") for c in was.cells]
    publish_as.publish(publish_as.Address(ADDRESS.repository, "main"), tmp_path)
    publish_as.publish(ADDRESS, tmp_path)
    assert publish_as.tracked(tmp_path) == before


@clone
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--repository", "https://github.com/ada/course"], "Allowed is owner/name"),
        (["--repository", "course"], "Allowed is owner/name"),
        (["--repository", "ada/course.git"], "Allowed is owner/name"),
        (["--repository", "huggingface/trl"], "is named already"),
        (["--tag", "v1/2"], "Allowed are letters"),
        ([], "make publish-as REPOSITORY=owner/name"),
    ],
)
def test_a_wrong_address_changes_nothing(given, says, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda *given: pytest.fail("a file is written"))
    assert publish_as.main(given) == 2
    assert says in capsys.readouterr().err


def test_colab_keeps_torch_and_numpy_and_drops_old_torchao(requirements, pins) -> None:
    """Reinstalling them breaks the session; torchao 0.10 breaks peft on any get_peft_model."""
    there = {"torch": "2.11.0+cu128", "numpy": "2.0.2", "torchao": "0.10.0"}
    there["transformers"] = "5.0.0"
    wanted, held, unwanted = colab.plan(there)
    assert held == ["torch==2.11.0+cu128", "numpy==2.0.2"]
    assert unwanted == ["torchao"]
    names = {Requirement(w).name for w in wanted}
    assert not names & {"torch", "numpy"}
    assert f"transformers=={pins['transformers']}" in wanted
    assert f"trl=={pins['trl']}" in wanted
    assert not names & {"jupyterlab", "nbval", "pytest", "ruff"}


def test_colab_leaves_what_fits(requirements, pins) -> None:
    """Colab's own ipywidgets 7.7 is within the range; a second run has nothing to do."""
    there = {**pins, "ipywidgets": "7.7.1", "torchao": "0.17.0"}
    assert colab.plan(there) == ([], [f"torch=={pins['torch']}", f"numpy=={pins['numpy']}"], [])


def test_a_failed_install_says_what_to_do() -> None:
    """pip's own last lines, and the way out."""
    with pytest.raises(RuntimeError, match="Disconnect and delete runtime"):
        colab._run([sys.executable, "-m", "pip", "install", "--no-index", "no-such-library-here"])


def test_the_cell_does_nothing_elsewhere(tmp_path: Path) -> None:
    """Outside Colab it must neither fetch nor print nor change folder."""
    script = "from IPython.core.interactiveshell import InteractiveShell as S; import os, sys\n"
    script += f"r = S.instance().run_cell({CELL!r}); sys.exit(not r.success or bool(os.listdir()))"
    done = python("-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_cell_sets_colab_up(tmp_path: Path) -> None:
    """No other run takes the branch for Colab: fetch the tag, change folder, import, install."""
    origin, content = tmp_path / "origin", tmp_path / "content"
    for name in ("course_utils", "preflight", "notebooks/images"):
        shutil.copytree(COURSE_ROOT / name, origin / name)
    for name in ("requirements.txt", "constraints.txt"):
        shutil.copy(COURSE_ROOT / name, origin)
    (tmp_path / "google" / "colab").mkdir(parents=True)
    for folder in ("google", "google/colab"):
        (tmp_path / folder / "__init__.py").touch()
    git = ["git", "-C", str(origin), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init"], ["add", "."], ["commit", "-m", "x"], ["tag", ADDRESS.tag]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    environment = {"PYTHONPATH": str(tmp_path), "GIT_CONFIG_COUNT": "1"}
    environment["GIT_CONFIG_KEY_0"] = f"url.{origin.as_uri()}.insteadOf"
    environment["GIT_CONFIG_VALUE_0"] = f"https://github.com/{ADDRESS.repository}"
    cell = CELL.replace("/content", str(content))
    script = "from IPython.core.interactiveshell import InteractiveShell as S; import os\n"
    script += f"import google.colab; r = S.instance().run_cell({cell!r}); r.raise_error()\n"
    script += "from course_utils import colab; print(os.getcwd(), colab.__file__, sep='\\n')"
    for _ in range(2):  # a cell can be run twice
        done = python("-c", script, **environment)
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stdout.splitlines()[-2:] == [
            str(content / "course" / "notebooks"),
            str(content / "course" / "course_utils" / "colab.py"),
        ]
        assert "torch and numpy stay as they are" in done.stdout


def test_the_picture_of_the_readme_is_the_one_of_lesson_08() -> None:
    """The first thing that a visitor sees is a result; a new run of the lesson has a new one."""
    assert house.PICTURE.read_bytes() == house.picture(), "run: python scripts/house.py"
    name = house.PICTURE.relative_to(COURSE_ROOT).as_posix()
    assert f"]({name})" in (COURSE_ROOT / "README.md").read_text(encoding="utf-8")


@posix
def test_an_old_python_is_refused_by_name(tmp_path: Path) -> None:
    """Without it the first thing that a reader with Python 3.9 sees is a page of pip."""
    for name in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(COURSE_ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", f"PYTHON={old}", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.9.2. The course needs Python 3.11 or newer" in done.stdout
    assert not (tmp_path / ".venv").exists()


@posix
def test_make_says_what_it_can_do() -> None:
    """`make` alone explains itself, every target included."""
    makefile = (COURSE_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.M)[0].split()
    command = ["make", "--no-print-directory"]
    done = subprocess.run(command, cwd=COURSE_ROOT, capture_output=True, text=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(targets)


def test_a_lesson_is_chosen_by_its_number(tmp_path: Path, monkeypatch) -> None:
    """make run NB=01, and a clear word for a number that does not exist."""
    assert len(run_lessons.lessons()) == len(list((COURSE_ROOT / "notebooks").glob("*.ipynb")))
    (tmp_path / "notebooks" / "deeper").mkdir(parents=True)
    for name in ("01_data", "05a_methods", "05b_tasks", "deeper/06_proofs", "deeper/06b_more"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    monkeypatch.setattr(run_lessons, "ROOT", tmp_path)

    def chosen(number: str) -> list[str]:
        return [run_lessons.label(path) for path in run_lessons.lessons(number)]

    assert chosen("") == ["01", "05a", "05b"]
    assert chosen("1") == chosen("01") == ["01"]
    assert chosen("5") == chosen("05") == ["05a", "05b"]
    assert chosen("5b") == chosen("05b") == ["05b"]
    assert chosen("deeper/06") == ["deeper/06", "deeper/06b"]
    assert chosen("deeper/6b") == ["deeper/06b"]
    for wrong in ("77", "06", "deeper/01", "elsewhere/06", "lora"):
        with pytest.raises(ValueError, match=r"lessons are: 01, 05a, 05b, deeper/06, deeper/06b"):
            run_lessons.lessons(wrong)


def test_one_bad_lesson_does_not_stop_the_others(tmp_path: Path, monkeypatch, capsys) -> None:
    """A failed cell or killed kernel is reported; the rest run, the notebooks stay unchanged."""
    pages = tmp_path / "build"
    (tmp_path / "notebooks").mkdir()
    sources = ["1 / 0", "import os; os._exit(1)", "print(6 * 7)"]
    for i, source in enumerate(sources):
        path = tmp_path / "notebooks" / f"{i:02}_lesson.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    before = {path: path.read_bytes() for path in (tmp_path / "notebooks").iterdir()}
    monkeypatch.setattr(run_lessons, "ROOT", tmp_path)
    monkeypatch.setattr(run_lessons, "PAGES", pages)
    monkeypatch.setattr(sys, "argv", ["run_lessons.py"])
    for name in (*run_lessons.QUIET, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that the script's own setting is undone as well
    assert run_lessons.main() == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert "Kernel died" in printed
    assert "1 of 3 lessons ran" in printed
    assert [page.name for page in pages.iterdir()] == ["02_lesson.html"]
    assert "42" in (pages / "02_lesson.html").read_text(encoding="utf-8")
    assert before == {path: path.read_bytes() for path in (tmp_path / "notebooks").iterdir()}


def test_a_lessons_line_has_the_recorded_time() -> None:
    """With as many lessons at a time as then: with a neighbour all is slower."""
    jobs = run_lessons.recorded()["jobs"]
    outcome = run_lessons.Outcome(run_lessons.lessons("00")[0], seconds=61.0, peak=2**30)
    line = run_lessons.described(outcome, jobs)
    assert re.fullmatch(r"00_quickstart +61 s +1\.0 GiB +\(recorded: \d+ s\)", line)
    assert "recorded" not in run_lessons.described(outcome, jobs + 1)


def test_two_lessons_at_a_time_only_where_there_is_room() -> None:
    """A GPU's memory is measured in lessons: a neighbour would be measured with it."""
    roomy = hardware.Machine("cpu", "x86_64", 24, bf16=False, cores=2, ram=24)
    assert run_lessons.lessons_at_once(roomy) == 2
    for change in ({"cores": 1}, {"ram": 4.0}, {"device": "cuda"}):
        assert run_lessons.lessons_at_once(replace(roomy, **change)) == 1


def test_saved_notebooks_hold_nothing_of_the_run() -> None:
    """Times and widget state change at every run and would make each commit a rewrite."""
    cell = new_code_cell("1", metadata={"execution": {"iopub.execute_input": "now"}})
    metadata = {"kernelspec": {"name": "python3", "display_name": "P"}, "widgets": {}}
    metadata["language_info"] = {"name": "python"}
    notebook = run_lessons.without_run_data(new_notebook(cells=[cell], metadata=metadata))
    assert set(notebook.metadata) == {"kernelspec"}
    assert notebook.cells[0].metadata == {}


def test_a_notebook_left_out_fails_the_run(tmp_path: Path) -> None:
    """The count at the end of `make test` is a check, not decoration."""
    options = ["--every-notebook", "-q", "-k", "no_such_test"]
    done = python("-m", "pytest", "tests/maintenance/test_pictures.py", *options)
    assert done.returncode == 1, done.stdout
    assert "notebooks run: 0 of" in done.stdout


def test_the_seed_is_in_one_place() -> None:
    """COURSE_SEED changes it; a wrong one stops a lesson, and not the command that looks for it."""
    code = "from course_utils import SEED; print(SEED)"
    for seed, printed in (("", "0\n"), ("0", "0\n"), ("7", "7\n")):
        assert python("-c", code, COURSE_SEED=seed).stdout == printed
    for wrong in ("-1", "1.5", "one", "1000001"):
        message = python("-c", code, COURSE_SEED=wrong).stderr
        assert f"COURSE_SEED is '{wrong}'. Allowed is a whole number from 0 to 1,000,000" in message
    assert python("-m", "course_utils", "memory", "--list", COURSE_SEED="one").returncode == 0
