"""What other releases of the libraries change is noticed, named, and reported where it is read."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import drift_report
import nbformat
import peft
import pytest
import transformers
import yaml
from helpers import python
from nbformat.v4 import new_code_cell, new_notebook

from course_utils.paths import COURSE_ROOT

RECORD = json.loads(drift_report.RECORD.read_text(encoding="utf-8"))
WORKFLOW = COURSE_ROOT / ".github" / "workflows" / "drift.yml"

pinned = pytest.mark.skipif(
    os.environ.get("CONSTRAINTS") == "", reason="run on other versions than the pinned ones"
)


@pinned
def test_the_record_is_of_the_lessons_and_of_the_pinned_versions() -> None:
    """A report on an old record blames what has long been fixed."""
    advice = "run: python scripts/drift_report.py --record"
    assert RECORD["calls"] == drift_report.record(), advice
    assert RECORD["versions"] == drift_report.versions(RECORD["versions"]), advice
    assert {"trl.SFTTrainer", "peft.LoraConfig", "transformers.TrainingArguments"} <= {
        *RECORD["calls"]
    }


@pinned
def test_nothing_is_reported_where_nothing_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert drift_report.main([]) == 0
    printed = capsys.readouterr().out
    assert "Versions: as recorded." in printed
    assert printed.count(": 0") == 3


def changed(without: str, *more: inspect.Parameter) -> Any:
    """Return a stand-in for LoraConfig: without one of its parameters, and with others."""

    def stand_in(**arguments: Any) -> None:
        raise NotImplementedError

    now = inspect.signature(peft.LoraConfig)
    kept = [p for name, p in now.parameters.items() if name != without]
    stand_in.__signature__ = now.replace(parameters=[*kept, *more])
    return stand_in


ALPHA = inspect.Parameter("alpha", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=16)


def report(tmp_path: Path, junit: Path | None = None) -> tuple[int, str]:
    """Return the exit code and the text of a report."""
    output = tmp_path / "build" / "drift.md"
    given = [] if junit is None else ["--junit", str(junit)]
    code = drift_report.main([*given, "--output", str(output)])
    return code, output.read_text(encoding="utf-8")


def test_a_parameter_that_is_gone_is_named_with_the_lessons_that_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault that stops a lesson: which call, where, and how it was and is."""
    monkeypatch.setattr(peft, "LoraConfig", changed("lora_alpha", ALPHA))
    code, printed = report(tmp_path)
    assert code == 1
    breaking, harmless = printed.split("whose changes break none")
    entry = breaking.partition("`peft.LoraConfig`")[2]
    assert "04_lora" in entry.splitlines()[0]
    assert "old: LoraConfig(..., lora_alpha=8, ...)\nnew: LoraConfig(..., alpha=16)\n" in entry
    assert "peft.LoraConfig" not in harmless


def test_a_name_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports vanish too, and then no line of the lesson runs."""
    monkeypatch.delattr(peft, "get_peft_model")
    code, printed = report(tmp_path)
    entry = printed.partition("`peft.get_peft_model` in ")[2]
    assert "04_lora" in entry.splitlines()[0]
    assert "new: gone (AttributeError: module 'peft' has no attribute 'get_peft_model')" in entry
    assert code == 1, "and what cannot be imported without it does not end the report"


def test_one_parameter_more_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries grow at each release; a weekly alarm over that is soon switched off."""
    old = transformers.set_seed
    monkeypatch.setattr(
        transformers, "set_seed", lambda seed, deterministic=False, quick=True: old(seed)
    )
    before = {"transformers.set_seed": RECORD["calls"]["transformers.set_seed"]}
    changes = drift_report.compare(before)
    assert [(c.old, c.new, c.breaks) for c in changes] == [
        ("set_seed(...)", "set_seed(..., quick=True)", False)
    ]
    monkeypatch.setattr(transformers, "set_seed", lambda seed, deterministic: old(seed))
    (default,) = drift_report.compare(before)
    assert default.old == "set_seed(..., deterministic=False)"
    assert default.new == "set_seed(..., deterministic)"
    assert default.breaks, "a call without it fails now"


def test_a_failed_lesson_and_a_failed_test_are_traced_to_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pytest's own file, of a notebook and of a module that such a change stops."""
    source = "class LoraConfig:\n    def __init__(self, r):\n        pass\n"
    call = "LoraConfig(r=8, lora_alpha=16)"
    lesson = new_notebook(cells=[new_code_cell(source), new_code_cell(call)])
    nbformat.write(lesson, tmp_path / "04_lora.ipynb")
    (tmp_path / "test_it.py").write_text(f"{source}\ndef test_adapter():\n    {call}\n")
    (tmp_path / "test_other.py").write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    junit = tmp_path / "junit.xml"
    options = ["-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    options += [f"--junitxml={junit}", f"--rootdir={tmp_path}", "."]
    done = python("-m", "pytest", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    monkeypatch.setattr(peft, "LoraConfig", changed("lora_alpha"))
    code, printed = report(tmp_path, junit)
    assert code == 1
    assert "## Tests that failed: 3" in printed
    failed = printed.partition("## Signatures")[0].split("### ")[1:]
    error = "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'lora_alpha'"
    for start in ("04_lora", "test_it: test_adapter"):
        (one,) = (text for text in failed if text.startswith(start))
        assert error in one
        assert "`peft.LoraConfig` in " in one and "old: LoraConfig(" in one
    (other,) = (text for text in failed if text.startswith("test_other"))
    assert "It names no call that changed." in other


# --- the workflow ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_every_week_the_newest_and_the_oldest_releases_are_tried(jobs: dict[str, Any]) -> None:
    """requirements.txt promises both ends of its ranges."""
    events = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))[True]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", events["schedule"][0]["cron"])
    newest, oldest = commands(jobs["newest"]), commands(jobs["oldest"])
    assert "make test CONSTRAINTS= " in newest and "--junitxml" in str(jobs["newest"])
    assert "scripts/drift_report.py --junit" in newest
    assert "--resolution lowest-direct" in oldest and "-c constraints.txt" not in oldest
    assert "python -m course_utils doctor" in oldest
    named = re.findall(r"tests/test_\w+\.py", oldest)
    assert named and all((COURSE_ROOT / name).is_file() for name in named)


def test_what_runs_new_code_cannot_write_and_what_writes_runs_none(jobs: dict[str, Any]) -> None:
    """A release of a library may be anybody's, once."""
    assert jobs["report"]["permissions"] == {"issues": "write"}
    assert not [name for name, job in jobs.items() if "permissions" in job and name != "report"]
    assert not re.search(r"pip|python|make", commands(jobs["report"]))
    uses = [step["uses"].split("@")[0] for step in jobs["report"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact"]
