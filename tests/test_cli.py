"""The command line: exit codes, JSON, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from course_utils.__main__ import main
from course_utils.paths import COURSE_ROOT, DATA, POCKET_MODEL


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python without any library: -S leaves site-packages out."""
    code = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r})\n"
    code += f"from course_utils.__main__ import main; sys.exit(main({list(arguments)!r}))"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=COURSE_ROOT
    )


def test_a_python_without_the_libraries_is_told_to_install_them() -> None:
    """The first thing that goes wrong: the system's Python instead of the course's."""
    done = bare("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAIL  packaging: not installed")
    assert "fix: pip install -r requirements.txt" in done.stdout
    data = json.loads(bare("doctor", "--json").stdout)
    assert data["ok"] is False
    assert data["checks"][0]["status"] == "FAIL"
    done = bare("check", "some.jsonl")
    assert done.returncode == 2
    assert "pip install -r requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_prints_lines_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The bug form asks for the text; scripts ask for JSON."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("OK    torch: ") for line in lines)
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    assert {"checks", "machine", "recommendation"} <= set(data)


def test_check_finds_and_says_so_by_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """1 where the data should not be trained on, 0 where it can be."""
    good = str(DATA / "tickets" / "prompt_completion" / "train.jsonl")
    assert main(["check", good, "--tokenizer", str(POCKET_MODEL), "--max-length", "320"]) == 0
    assert main(["check", str(DATA / "bad" / "bad.jsonl"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out.split("\n{", 1)[1].join(["{", ""]))
    assert report["findings"]


@pytest.mark.parametrize("arguments", [["check", "no_such_file.jsonl"], ["check", "Makefile"]])
def test_what_cannot_run_is_said_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the three parts, never a traceback."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Error: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["docter"], ["check"]])
def test_a_wrong_call_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse's own message stands."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m course_utils" in capsys.readouterr().err
