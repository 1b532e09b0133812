"""The set-up: files that say the same, one .venv, and a Colab that keeps its torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from course_utils import __version__, colab
from course_utils.paths import COURSE_ROOT

sys.path.insert(0, str(COURSE_ROOT / "scripts"))
import run_lessons

CELL = (COURSE_ROOT / "scripts" / "colab_cell.ipy").read_text(encoding="utf-8")


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
    for name, requirement in requirements.items():
        assert name in pins, f"{name} has no exact version in constraints.txt"
        assert requirement.specifier.contains(pins[name]), (str(requirement), pins[name])


def test_the_ranges_admit_the_builds_of_gpu_images(requirements) -> None:
    """A GPU image brings torch and transformers of its own, and they should serve."""
    assert requirements["torch"].specifier.contains("2.10.0")
    assert requirements["transformers"].specifier.contains("5.17.0")


def test_conda_reads_the_same_two_files() -> None:
    """environment.yml repeats no version, so it cannot drift."""
    text = (COURSE_ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "- -r requirements.txt" in text
    assert "- -c constraints.txt" in text
    assert re.findall(r"^  - (\w+)", text, flags=re.M) == ["conda", "python", "pip", "pip"]
    project = tomllib.loads((COURSE_ROOT / "pyproject.toml").read_text())
    floor = project["project"]["requires-python"].removeprefix(">=")
    assert f"python>={floor}," in text


@pytest.mark.skipif(os.environ.get("CONSTRAINTS") == "", reason="run on the newest versions")
def test_what_runs_here_is_what_is_pinned(requirements, pins) -> None:
    """The .venv holds the tested versions."""
    from importlib.metadata import version

    for name in requirements:
        if name in pins:
            assert Version(version(name)).public == pins[name], name


def test_colab_cell_fetches_a_pinned_tag() -> None:
    """An unpinned course would change under a class; the tag is the package's version."""
    assert f"--branch v{__version__} " in CELL
    (repository,) = set(re.findall(r'"https://github\.com/([^"]+)"', CELL))
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    badges = set(re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", readme))
    assert badges == {repository}


def test_colab_keeps_torch_and_numpy_and_drops_old_torchao(requirements, pins) -> None:
    """Reinstalling them breaks the session; torchao 0.10 breaks peft on any get_peft_model."""
    there = {
        "torch": "2.11.0+cu128",
        "numpy": "2.0.2",
        "torchao": "0.10.0",
        "transformers": "5.0.0",
    }
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
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_lesson_is_chosen_by_its_number() -> None:
    """make run NB=01, and a clear word for a number that does not exist."""
    assert [path.name[:2] for path in run_lessons.lessons("01")] == ["01"]
    assert len(run_lessons.lessons()) == len(list((COURSE_ROOT / "notebooks").glob("*.ipynb")))
    with pytest.raises(ValueError, match=r"The lessons are: 00, 01"):
        run_lessons.lessons("77")


def test_saved_notebooks_hold_nothing_of_the_run() -> None:
    """Times and widget state change at every run and would make each commit a rewrite."""
    import nbformat

    cell = nbformat.v4.new_code_cell("1", metadata={"execution": {"iopub.execute_input": "now"}})
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "P"},
        "widgets": {},
        "language_info": {"name": "python"},
    }
    notebook = run_lessons.without_run_data(
        nbformat.v4.new_notebook(cells=[cell], metadata=metadata)
    )
    assert set(notebook.metadata) == {"kernelspec"}
    assert notebook.cells[0].metadata == {}


def test_a_notebook_left_out_fails_the_run(tmp_path: Path) -> None:
    """The count at the end of `make test` is a check, not decoration."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "--every-notebook",
        "-q",
        "-k",
        "no_such_test",
    ]
    done = subprocess.run(
        command, cwd=COURSE_ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 1, done.stdout
    assert "notebooks run: 0 of" in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    """`import course_utils` is for everybody, also where torch is broken."""
    heavy = {"torch", "transformers", "pandas"}
    code = f"import sys, course_utils; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=COURSE_ROOT).returncode == 0
