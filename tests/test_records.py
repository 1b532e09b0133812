"""The recorded comparison: whole, without failure, made by what the lesson names."""

from __future__ import annotations

import json

from course_utils import compare
from course_utils.compare.inputs import load_inputs, model_fingerprint
from course_utils.paths import DATA, POCKET_MODEL

RECORD = DATA / "results" / "comparison"


def test_no_run_failed_and_none_is_half_written() -> None:
    """`load` passes over what is broken, so a damaged record would only look smaller."""
    files = sorted((RECORD).glob("*.json"))
    results = compare.load(RECORD)
    assert len(results) == len(files) > 0
    assert {result["status"] for result in results} == {"ok"}
    assert len({result["device"] for result in results}) == 1
    assert len({json.dumps(result["versions"]) for result in results}) == 1
    assert all("/" not in result["device"] for result in results)


def test_it_was_made_with_the_base_model_that_is_shipped() -> None:
    """A record of another model's weights would be compared with this one's."""
    current = model_fingerprint(str(POCKET_MODEL))
    assert {result["model"] for result in compare.load(RECORD)} == {current}


def test_it_has_the_sweep_of_every_standard_method() -> None:
    """`--sweep`: each method as it is defined, at three learning rates or more."""
    results = compare.load(RECORD)
    data = load_inputs(compare.METHODS["full"]).fingerprint
    assert {result["data"] for result in results} == {data}
    for name, method in compare.METHODS.items():
        runs = [result["experiment"] for result in results if result["method"] == name]
        for key in ("peft", "quantization", "train_rows"):
            expected = method.to_dict().get(key)
            assert all(run.get(key) == expected for run in runs), (name, key)
        assert len({run["training"]["learning_rate"] for run in runs}) >= 3, name
