"""Where the course lies: in a folder with an odd name and locale, or one that cannot be written.

A test that runs as root is refused nothing, so there the processes give up the right to pass over
permissions (the capability DAC_OVERRIDE) before they start; a probe makes sure of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import QUIET, code_cells, copy_course, everything, kernel

from course_utils import compare

# Spaces, an apostrophe, accents, Chinese, a letter that is no letter of the alphabet, and what
# would be a pattern for several names.
NAME = "Mia's Kurs – Prüfung 課程 🦙 [2]"
# The locale of a bare container, and a time zone that is 45 minutes off.
ODD = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu"}
SMALL_TRAINING = """
config.max_steps = 2
config.logging_steps = 1
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course in a folder with an odd name."""
    return copy_course(tmp_path_factory.mktemp("place") / NAME)


def run(
    root: Path, *arguments: str, prefix: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the course that lies at `root`."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "course_utils", *arguments],
        cwd=root, env=os.environ | QUIET | {"PYTHONPATH": str(root)} | more,
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


def works(root: Path, *arguments: str, **more: str) -> str:
    done = run(root, *arguments, **more)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout


# A folder and a locale that are odd.


def test_the_commands_work_in_an_odd_folder(course: Path, tmp_path: Path) -> None:
    """And say every letter, in a locale that has only ASCII."""
    before = everything(course)
    environment = ODD | {"HF_HOME": str(tmp_path / "Zwischenspeicher 快取")}
    assert "FAIL" not in works(course, "doctor", **environment)
    bad = works(course, "check", "data/bad/bad.jsonl", "--eval", "data/bad/validation.jsonl",
                "--tokenizer", "data/models/pocket-llama", **environment)  # fmt: skip
    assert "error" in bad
    odd = tmp_path / "Versuche – 実験.yaml"
    assert odd.name in works(course, "compare", "--write", str(odd), **environment)
    assert compare.read(odd) == compare.standard()
    assert everything(course) == before, "no command should write in the course's folder"


def test_a_comparison_and_its_dates_in_an_odd_folder(course: Path, tmp_path: Path) -> None:
    """The worker is a process of its own; the date is in UTC wherever the machine is."""
    rows = course.parent / "Daten – 資料 [1]"
    rows.mkdir()
    (course.parent / "Daten – 資料 1").mkdir()  # which the name, read as a pattern, would be
    line = json.dumps({"prompt": "Größe?", "completion": " 大"}, ensure_ascii=False) + "\n"
    for split in ("train", "test"):
        (rows / f"{split}.jsonl").write_text(line * 4, encoding="utf-8")
        (course.parent / "Daten – 資料 1" / f"{split}.jsonl").write_text("{}", encoding="utf-8")
    experiment = {
        "name": "größe 大", "peft": {"peft_type": "LORA", "target_modules": "all-linear"},
        "training": {"max_steps": 1, "learning_rate": 0.005},
        "data": str(rows),
    }  # fmt: skip
    file = course.parent / "experiments – 実験.json"
    file.write_text(json.dumps({"experiments": [experiment]}), encoding="utf-8")
    output = tmp_path / "Ergebnisse 結果"
    printed = works(course, "compare", str(file), "--seeds", "1", "--output", str(output), **ODD)
    (result,) = (json.loads(p.read_text(encoding="utf-8")) for p in output.glob("*.json"))
    assert result["status"] == "ok", result
    assert result["date"].endswith("+00:00")
    assert experiment["name"] in printed and output.name in printed


@pytest.mark.long
def test_lesson_00_trains_in_an_odd_folder(course: Path, tmp_path: Path) -> None:
    """In a kernel with such a locale, from the imports to the saved adapter."""
    before = everything(course)
    cells = code_cells("00", course)
    (training,) = [i for i, source in enumerate(cells) if "trainer.train()" in source]
    (saving,) = [source for source in cells if "trainer.save_model" in source]
    environment = ODD | {"PYTHONPATH": str(course), "HF_HOME": str(tmp_path / "快取")}
    with kernel(course / "notebooks", **environment) as lesson:
        for source in cells[:training]:
            lesson.well(source)
            if source.startswith("tickets = "):
                lesson.well('tickets["test"] = tickets["test"].select(range(2))')
        lesson.well(SMALL_TRAINING)
        assert "Loss" in lesson.well(cells[training]).text
        lesson.well("tuned = trainer.model")
        lesson.well(saving)
        where = lesson.well("import course_utils; print(course_utils.__file__)").text
    assert where.startswith(str(course)), "the copy of the course should be what is tested"
    now = everything(course)
    changed = {name for name in now if now[name] != before.get(name)}
    assert changed and all(name.startswith("notebooks/runs/") for name in changed), changed
    shutil.rmtree(course / "notebooks" / "runs")


# A folder that cannot be written.


def without_override() -> tuple[str, ...]:
    """Return the beginning of a command that root's permissions do not go beyond."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("as root, without setpriv, a process is refused nothing")
    return ("setpriv", "--bounding-set=-dac_override")


@pytest.fixture
def read_only(course: Path) -> Iterator[Path]:
    """The copy of the course, without the permission to write in any of its folders."""
    folders = [course, *(path for path in course.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        probe = [*without_override(), sys.executable, "-c", "open('probe', 'w')"]
        refused = subprocess.run(probe, cwd=course, capture_output=True, text=True)
        assert "PermissionError" in refused.stderr, "the folder can be written after all"
        yield course
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_a_read_only_course_says_what_to_do(read_only: Path, tmp_path: Path) -> None:
    """The commands work as they are; where something is to be saved, the way out is said."""
    before, prefix = everything(read_only), without_override()
    environment = {"HF_HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(read_only, *arguments, prefix=prefix, **environment)

    assert command("check", "data/tickets").returncode in (0, 1)
    doctor = command("doctor")
    assert doctor.returncode == 1, doctor.stdout
    (line,) = [line for line in doctor.stdout.splitlines() if "course folder" in line]
    assert line.startswith("FAIL") and "cannot be written" in line
    assert "copy the folder to one of your own" in doctor.stdout
    refused = command("compare", "--methods", "lora", "--seeds", "1", "--train-rows", "4")
    assert refused.returncode == 2
    assert "'build/comparison' cannot be written" in refused.stderr
    assert "choose a folder that you may write to" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert everything(read_only) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_the_first_cells_of_lesson_00_say_so_too(read_only: Path, tmp_path: Path) -> None:
    """Before anything is trained whose adapter could not be saved."""
    cells = code_cells("00", read_only)
    (asks,) = [i for i, source in enumerate(cells) if "doctor.examine()" in source]
    source = "\n".join(cells[: asks + 1])
    done = subprocess.run(
        [*without_override(), sys.executable, "-c", source],
        cwd=read_only / "notebooks", capture_output=True, text=True,
        env=os.environ | QUIET | {"PYTHONPATH": str(read_only), "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "python -m course_utils doctor" in done.stderr.splitlines()[-1], done.stderr
