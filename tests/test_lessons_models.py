"""The lessons run on other models, cell by cell: real architectures, and a real model.

A claim may fail there, a cell may not. Few rows and steps are used, except with the real model.
A model of 0.6 billion parameters has to fit a free Colab, so a lesson holds few of them at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import architectures
import live_models
import pytest
from helpers import MANY

from course_utils.paths import COURSE_ROOT, REAL_MODELS

LESSONS = sorted(
    path.name.partition("_")[0] for path in (COURSE_ROOT / "notebooks").glob("[0-9]*.ipynb")
)
FAST = [(lesson, name) for lesson in ("00", "01", "09") for name in ("qwen3", "gpt2", "phi-3")]
# With MANY=1 every lesson on every architecture, which takes an hour.
PAIRS = [(lesson, name) for lesson in LESSONS for name in architectures.FAMILIES] if MANY else []
PARTS = ("course_utils", "preflight", "benchmarks", "scripts", "data")


def run(lesson: str, model: str | Path, place: Path, **variables: str) -> list[dict[str, object]]:
    """Execute a lesson in a copy of the notebooks' folder; return the claims that it made."""
    place.mkdir(exist_ok=True)
    for part in PARTS:
        (place / part).symlink_to(COURSE_ROOT / part)
    ignored = shutil.ignore_patterns("runs", ".ipynb_checkpoints")
    shutil.copytree(COURSE_ROOT / "notebooks", place / "notebooks", ignore=ignored)
    (notebook,) = (place / "notebooks").glob(f"{lesson}_*.ipynb")
    startup = place / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(live_models.__file__, startup)
    command = "import sys; from pathlib import Path; sys.path.insert(0, 'scripts'); "
    command += f"import run_lessons; run_lessons.execute(Path({str(notebook)!r}))"
    environment = os.environ | {
        "COURSE_MODEL": str(model),
        "COURSE_CLAIMS": str(place / "claims"),
        "IPYTHONDIR": str(place / "ipython"),
        live_models.FILE: str(place / "live.json"),
        "PYTHONPATH": str(COURSE_ROOT),
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=COURSE_ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text("utf-8")) for file in (place / "claims").glob("*.json")]


@pytest.mark.parametrize(("lesson", "name"), FAST)
def test_a_lesson_runs_on_another_architecture(lesson: str, name: str, tmp_path: Path) -> None:
    claims = run(lesson, architectures.model(name), tmp_path, COURSE_SHARE="0.02")
    assert claims and all(claim["name"].startswith(f"{lesson}-") for claim in claims)
    assert_few_are_alive(tmp_path, architectures.model(name))


@pytest.mark.long
@pytest.mark.parametrize(("lesson", "name"), sorted(set(PAIRS) - set(FAST)))
def test_every_lesson_runs_on_every_architecture(lesson: str, name: str, tmp_path: Path) -> None:
    assert run(lesson, architectures.model(name), tmp_path, COURSE_SHARE="0.02")
    assert_few_are_alive(tmp_path, architectures.model(name))


def assert_few_are_alive(place: Path, model: Path) -> None:
    """No cell leaves more than two copies of the model behind."""
    alive = json.loads((place / "live.json").read_text("utf-8"))
    one = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert alive and max(alive) < 2.2 * one, [round(size / one, 1) for size in alive]


@pytest.mark.long
@pytest.mark.parametrize("lesson", ["00"])
def test_a_lesson_runs_on_the_real_model(lesson: str, tmp_path: Path) -> None:
    """SmolLM2 learns the task of the first lesson."""
    if not REAL_MODELS["smollm2"].exists():
        pytest.skip("needs the real model: make real")
    (tmp_path / "build").symlink_to(COURSE_ROOT / "build")
    claims = {
        claim["name"]: claim for claim in run(lesson, "smollm2", tmp_path, COURSE_SHARE="0.1")
    }
    assert claims["00-fields"]["holds"], claims
