"""The recorded comparisons: whole, without failure, made by what the lesson names."""

from __future__ import annotations

import json

import pytest

from course_utils import compare
from course_utils.compare.inputs import load_inputs, model_fingerprint
from course_utils.paths import DATA, POCKET_MODEL

RESULTS = DATA / "results"
RECORDS = ("comparison", "capacity", "batch")


@pytest.mark.parametrize("record", RECORDS)
def test_no_run_failed_and_none_is_half_written(record: str) -> None:
    """`load` passes over what is broken, so a damaged record would only look smaller."""
    files = sorted((RESULTS / record).glob("*.json"))
    results = compare.load(RESULTS / record)
    assert len(results) == len(files) > 0
    assert {result["status"] for result in results} == {"ok"}
    assert len({result["device"] for result in results}) == 1
    assert len({json.dumps(result["versions"]) for result in results}) == 1
    assert all("/" not in result["device"] for result in results)


@pytest.mark.parametrize("record", RECORDS)
def test_it_was_made_with_the_base_model_that_is_shipped(record: str) -> None:
    """A record of another model's weights would be compared with this one's."""
    current = model_fingerprint(str(POCKET_MODEL))
    assert {result["model"] for result in compare.load(RESULTS / record)} == {current}


def test_the_comparison_is_that_of_its_command() -> None:
    """`--sweep --seeds 3`: every method, three rates or more, the winner with three seeds."""
    results = compare.load(RESULTS / "comparison")
    data = load_inputs(compare.METHODS["full"]).fingerprint
    assert {result["data"] for result in results} == {data}
    winners = compare.best(compare.table(RESULTS / "comparison"))
    for name, method in compare.METHODS.items():
        runs = [result for result in results if result["method"] == name]
        expected = method.to_dict() | {"training": None}
        for run in runs:
            described = run["experiment"] | {"training": None}
            assert {
                key: described.get(key) for key in ("peft", "quantization", "data", "train_rows")
            } == {key: expected.get(key) for key in ("peft", "quantization", "data", "train_rows")}
        rates = sorted({run["experiment"]["training"]["learning_rate"] for run in runs})
        assert len(rates) >= 3
        of_first_seed = {
            run["experiment"]["training"]["learning_rate"]: run["metrics"]["validation loss"]
            for run in runs
            if run["seed"] == 0
        }
        best = min(of_first_seed, key=of_first_seed.get)
        seeds = {r["seed"] for r in runs if r["experiment"]["training"]["learning_rate"] == best}
        assert seeds == {0, 1, 2}, name
        assert winners.set_index("method").loc[name, "seeds"] >= 1
        # The best is inside the sweep, unless it went on as far as it may.
        assert min(rates) < best < max(rates) or len(rates) == 5, (name, best, rates)


@pytest.mark.parametrize("record", ["capacity", "batch"])
def test_the_others_are_those_of_their_files(record: str) -> None:
    experiments = {e.name: e for e in compare.read(RESULTS / f"{record}.yaml")}
    results = compare.load(RESULTS / record)
    assert {result["name"] for result in results} == set(experiments)
    for result in results:
        described = experiments[result["name"]].to_dict()
        assert result["experiment"] == {k: v for k, v in described.items() if k != "seeds"}
