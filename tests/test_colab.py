"""On a Colab runtime, imitated as far as can be: its packages for pip, its widgets and kernel.

What the cell itself does is in test_setup.py. These tests fetch a few packages; without a network
they are skipped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from helpers import python
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.version import Version

from course_utils import colab, hardware
from course_utils.doctor import TORCHAO_MINIMUM
from course_utils.paths import COURSE_ROOT

# Found, not imported: before Python 3.12, a process that has imported pip cannot import setuptools.
try:
    PIP = metadata.distribution("pip").locate_file("pip")
except metadata.PackageNotFoundError:
    pytest.skip("this environment has no pip: python -m ensurepip", allow_module_level=True)

FREEZE = COURSE_ROOT / "tests" / "colab_freeze.txt"
# A kernel as Colab's, next to the libraries of this environment.
KERNEL = ("ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel==6.17.1")
NEEDED_BY_THEM = ("ipython-genutils", "decorator", "backcall", "pickleshare")
NO_NETWORK = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")

# Makes each explorer, moves its controls, and prints all that it then shows.
EXPLORERS = """\
import re
import ipywidgets, torch
from course_utils import widgets
from preflight import explorers
from course_utils.paths import POCKET_MODEL

assert ipywidgets.__version__ == {version!r}, ipywidgets.__version__

def moved(explorer, **values):
    display(explorer)
    for name, value in values.items():
        explorer.controls[name].value = value
    assert explorer.kwargs == explorer.kwargs | values
    assert 'src="data:image/png' in explorer.result.data, explorer.result.data
    print(explorer, re.sub(r'src="[^"]*"', "", explorer.result.data), sep="\\n")

moved(widgets.schedule_explorer(), lr_scheduler_type="linear", warmup_steps=0.2)
weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
moved(widgets.quantization_explorer(weights), double_quant=True)
moved(explorers.lora_explorer(POCKET_MODEL, batch_size=1, length=64, device="cpu"), r=32)
moved(explorers.memory_planner("qwen3-0.6b"), length=256, method="lora")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with Colab's widgets and kernel."""
    folder = tmp_path_factory.mktemp("kernel")
    ask_pip("install", "--no-deps", "--target", str(folder), *KERNEL, *NEEDED_BY_THEM)
    yield folder


def ask_pip(*arguments: str, **environment: str) -> None:
    """Run pip; skip the test where it reaches no index."""
    done = python(*(["-S"] if environment else []), "-m", "pip", *arguments, **environment)
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip("pip reaches no index")
    assert done.returncode == 0, done.stderr


def freeze() -> dict[str, str]:
    """Return the packages of the imagined runtime, by name."""
    rows = FREEZE.read_text(encoding="utf-8").splitlines()
    return dict(row.split("==") for row in rows if row and not row.startswith("#"))


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="needs a symbolic link, which Windows may forbid")
def test_pip_finds_versions_that_go_with_what_colab_brings(tmp_path: Path) -> None:
    """One library that needs another torch, and the first cell of every lesson fails."""
    there = freeze()
    wanted, held, unwanted = colab.plan(there)
    for name, version in there.items():
        if name not in unwanted:
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text, encoding="utf-8")
    (tmp_path / "pip").symlink_to(str(PIP))
    (tmp_path / "held.txt").write_text("\n".join(held), encoding="utf-8")
    options = ["--dry-run", "--quiet", "--report", str(tmp_path / "report.json")]
    options += ["--constraint", str(tmp_path / "held.txt")]
    ask_pip("install", *options, *wanted, PYTHONPATH=str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    found = [one["metadata"] for one in report["install"]]
    news = {one["name"].lower(): one["version"] for one in found}
    assert not {"torch", "numpy", "torchvision", "triton", "ipykernel", "ipython"} & set(news)
    after = there | news
    for requirement in hardware.runtime_requirements():
        version = after[requirement.name].partition("+")[0]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert colab.plan({n: v for n, v in after.items() if n not in unwanted})[0] == []


def test_the_imagined_runtime_is_one_that_needs_the_set_up() -> None:
    """A list that has all the right versions would test nothing."""
    there = freeze()
    assert Version(there["torchao"]) < TORCHAO_MINIMUM
    assert {f"{name}=={there[name]}" for name in ("ipywidgets", "ipython", "ipykernel")} == {
        *KERNEL
    }
    assert "transformers" in {Requirement(name).name for name in colab.plan(there)[0]}


def shown(environment: dict[str, str], version: str) -> list[str]:
    """Return what the explorers print in a kernel that is started with these variables."""
    notebook = new_notebook(cells=[new_code_cell(EXPLORERS.format(version=version))])
    client = NotebookClient(notebook, timeout=300, extra_arguments=["--log-level=ERROR"])
    client.execute(cwd=str(COURSE_ROOT), env={**os.environ, **environment})
    outputs = client.nb.cells[0].outputs
    views = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert len(views) == 4, "an explorer was not displayed as a widget"
    return "".join(o.text for o in outputs if o.get("name") == "stdout").splitlines()


@pytest.mark.long
def test_the_explorers_show_the_same_on_colabs_widgets(kernel: Path) -> None:
    """Colab has stayed at ipywidgets 7.7 and IPython 7.34; the course is written on newer ones."""
    import ipywidgets

    old = shown({"PYTHONPATH": f"{kernel}{os.pathsep}{COURSE_ROOT}"}, "7.7.1")
    assert old == shown({}, ipywidgets.__version__)
    assert len(old) > 20


def test_a_library_that_is_loaded_and_was_replaced_is_named(monkeypatch) -> None:
    """Without a restart the session would go on with the old one, and fail far from here."""
    monkeypatch.setitem(sys.modules, "trl", object())
    monkeypatch.delitem(sys.modules, "nervaluate", raising=False)
    before = {"trl": "0.9", "nervaluate": "0.1", "nbformat": "5.0"}
    assert colab.outdated(before, {"trl": "1.16.0", "nervaluate": "1.2.1"}) == ["trl"]
    assert colab.outdated(before, before) == []


@pytest.mark.parametrize(("library", "module"), [("pillow", "PIL"), ("pyyaml", "yaml")])
def test_a_library_that_is_imported_by_another_name_is_named(monkeypatch, library, module) -> None:
    """A picture drawn by half of the old Pillow and half of the new one fails."""
    monkeypatch.setitem(sys.modules, module, object())
    assert colab.outdated({library: "1.0"}, {library: "2.0"}) == [library]
