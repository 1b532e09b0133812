"""The recorded comparisons: whole, without failure, made by what the lessons name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapter_types
import dataset_checks
import neighbours
import planners
import pytest
import run_lessons
import teaching
import yaml

from course_utils import claims, compare
from course_utils.compare import results as compare_results
from course_utils.compare.results import Sources, jobs, model_fingerprint
from course_utils.compare.runner import at_rate, require_valid
from course_utils.paths import COURSE_ROOT, DATA, POCKET_MODEL
from preflight.memory_plan import Overhead, fit_gpus

RESULTS = DATA / "results"
RECORD = RESULTS / "comparison"
SWEEPS = ("capacity", "batch")


@pytest.mark.parametrize("name", ["comparison", *SWEEPS])
def test_no_run_failed_and_none_is_half_written(name: str) -> None:
    """`load` passes over what is broken, so a damaged record would only look smaller."""
    files = sorted((RESULTS / name).glob("*.json"))
    results = compare.load(RESULTS / name)
    assert len(results) == len(files) > 0
    assert {result["status"] for result in results} == {"ok"}
    assert len({result["device"] for result in results}) == 1
    assert len({json.dumps(result["versions"]) for result in results}) == 1
    assert all("/" not in result["device"] for result in results)


def test_it_was_made_with_the_model_and_the_rows_that_are_shipped() -> None:
    """A record of another model's weights would be compared with this one's."""
    results = compare.load(RECORD)
    assert {result["model"] for result in results} == {model_fingerprint(str(POCKET_MODEL))}
    assert {result["data"] for result in results} == {Sources().data(compare.METHODS["full"])}


def test_on_the_machine_of_the_record_nothing_would_be_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key that the course finds today is the one that the file has."""
    results = compare.load(RECORD)
    made_on = {name: results[0][name] for name in ("device", "versions")}
    monkeypatch.setattr(compare_results, "environment", lambda: made_on)
    keys = {result["key"] for result in results}
    experiments = [
        replace(at_rate(compare.METHODS[r["method"]], rate_of(r)), seeds=(r["seed"],))
        for r in results
    ]
    found = list(jobs(experiments, Sources()))
    assert {job.key for job in found} == keys and len(found) == len(keys)
    assert all((RECORD / job.file).is_file() for job in found)


def rate_of(result: dict[str, Any]) -> float:
    return result["experiment"]["training"]["learning_rate"]


@pytest.mark.parametrize("name", compare.METHODS)
def test_the_comparison_is_that_of_its_command(name: str) -> None:
    """`--sweep --seeds 3`: three rates or more, the best of them inside and with three seeds."""
    differs = {"name", "method", "training", "seeds"}
    expected = compare.METHODS[name].to_dict()
    validation: dict[float, float] = {}
    seeds: dict[float, set[int]] = {}
    for result in compare.load(RECORD):
        experiment = result["experiment"]
        if experiment["method"] != name:
            continue
        rate = experiment["training"]["learning_rate"]
        for key in (experiment.keys() | expected.keys()) - differs:
            assert experiment[key] == expected[key]
        seeds.setdefault(rate, set()).add(result["seed"])
        if result["seed"] == 0:
            validation[rate] = result["metrics"]["validation loss"]
    assert len(validation) >= 3
    best = min(validation, key=validation.get)
    assert min(validation) < best < max(validation)
    assert seeds[best] == {0, 1, 2}
    # What a sweep may come to, `compare` must not refuse: prompt tuning's goes above 1.
    require_valid([at_rate(compare.METHODS[name], rate) for rate in validation], Sources())


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_that_of_its_file(name: str) -> None:
    """`--sweep --seeds 1`: of each experiment three rates or more, the best of them inside."""
    results = compare.load(RESULTS / name)
    assert {result["model"] for result in results} == {model_fingerprint(str(POCKET_MODEL))}
    expected = {one.name: one.to_dict() for one in compare.read(RESULTS / f"{name}.yaml")}
    assert {result["method"] for result in results} == expected.keys()
    for method, one in expected.items():
        runs = [result for result in results if result["method"] == method]
        for key in ("data", "train_rows", "peft", "quantization"):
            given = {json.dumps(run["experiment"].get(key)) for run in runs}
            assert given == {json.dumps(one.get(key))}, (method, key)
        validation = {
            run["experiment"]["training"]["learning_rate"]: run["metrics"]["validation loss"]
            for run in runs
        }
        best = min(validation, key=validation.get)
        assert min(validation) < best < max(validation), (method, validation)


def test_the_readme_says_how_many_claims_hold_on_the_real_model() -> None:
    """And each that does not hold has its reason for the page of the claims."""
    pocket, real = claims.recorded(claims.POCKET), claims.recorded("smollm2")
    assert real.keys() <= pocket.keys() and all(one.holds for one in pocket.values())
    readme = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    for lesson in map(run_lessons.label, run_lessons.lessons()):
        made = [one for one in real.values() if one.lesson == lesson]
        cell = f"{sum(one.holds for one in made)} of {len(made)}" if made else "–"
        assert re.search(rf"^\| {lesson} \|.*min \| {cell} \|", readme, re.M), (lesson, cell)
    reasons = yaml.safe_load((COURSE_ROOT / "book" / "claims.yaml").read_text(encoding="utf-8"))
    assert reasons.keys() == {name for name, one in real.items() if not one.holds}


def test_the_cost_of_every_lesson_is_on_record() -> None:
    """`make run` holds a lesson's time against it; a laptop has to bear the memory."""
    found = json.loads((RESULTS / "lessons.json").read_text())
    lessons = {path.stem for path in run_lessons.lessons()}
    assert found["lessons"].keys() == lessons
    assert all(cost["seconds"] > 0 for cost in found["lessons"].values())
    assert max(cost["peak_mib"] for cost in found["lessons"].values()) < 3 * 1024
    for name, cost in found["lessons"].items():
        minutes = teaching.run_minutes(name.partition("_")[0])
        assert abs(minutes - cost["seconds"] / 60) < 1, f"{name}: correct the README's table"
    assert found["jobs"] in (1, 2)


def test_the_overhead_is_what_the_record_of_planners_says() -> None:
    record = json.loads(planners.RESULTS.read_text(encoding="utf-8"))
    assert record["gaps"] == planners.gaps()
    assert Overhead().share == round(record["gaps"]["median"], 2)
    (note,) = fit_gpus("llama-3.2-1b", "L4", "qlora", length=64).notes
    spread = f"{record['gaps']['least']:.0%} to {record['gaps']['most']:.0%}".replace("%", "", 1)
    assert f"{spread} of their size (median {record['gaps']['median']:.0%})" in note


def test_the_page_of_planners_has_the_table_of_its_record() -> None:
    record = json.loads(planners.RESULTS.read_text(encoding="utf-8"))
    asked = [{key: case[key] for key in record["cases"][0]} for case in planners.cases()]
    assert record["cases"] == asked
    assert planners.table(record) in neighbours.PAGE.read_text(encoding="utf-8")
    assert all(record["versions"][name] == pin for name, pin in planners.PLANNERS.items())


def test_the_page_of_dataset_checks_has_the_table_of_its_record(tmp_path: Path) -> None:
    """And this course's column is what its check says now."""
    record = json.loads(dataset_checks.RESULTS.read_text(encoding="utf-8"))
    assert dataset_checks.table(record) in neighbours.PAGE.read_text(encoding="utf-8")
    now = dataset_checks.measure(dataset_checks.course, tmp_path)
    kept = record["checks"]["this course"]
    assert {**now, "seconds": kept["seconds"]} == kept


def test_the_table_of_adapter_types_has_all_and_says_why() -> None:
    """A new type of peft has to be measured, a no needs its reason, and a reason its no."""
    record = json.loads(adapter_types.RESULTS.read_text(encoding="utf-8"))
    assert list(record["types"]) == adapter_types.names()
    assert record["questions"] == adapter_types.QUESTIONS
    assert record["processor_seconds"] <= 60
    said: dict[str, set[str]] = {question: set() for question in adapter_types.QUESTIONS}
    for found in record["types"].values():
        assert found["effect"] >= 1
        for question, reasons in said.items():
            answer = found[question]
            assert answer["holds"] or answer["reason"]
            reasons |= {answer.get("reason")} - {None}
    assert said == {q: set(adapter_types.REASONS[q].values()) for q in said}


@pytest.mark.parametrize(
    "name",
    ["LORA", "LORA (PiSSA)", "LILY", "PREFIX_TUNING", "PROMPT_TUNING", "SHADOW", "XLORA"],
)
def test_a_part_of_the_table_of_adapter_types_is_measured_again(name: str) -> None:
    """Breaks with a version in which an adapter does what it did not, or no longer does."""
    recorded = json.loads(adapter_types.RESULTS.read_text(encoding="utf-8"))["types"][name]
    again = adapter_types.measure(name)
    assert again["course"] == recorded["course"]
    for question in adapter_types.QUESTIONS:
        now, then = again[question], recorded[question]
        assert {**now, "difference": 0} == {**then, "difference": 0}
