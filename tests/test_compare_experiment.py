"""Experiments as data: what is read is what was written, and what cannot run is said at once."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import constants

from course_utils import compare, hardware
from course_utils.compare import Experiment
from course_utils.compare.results import Sources, environment, model_fingerprint
from course_utils.compare.rows import load_rows
from course_utils.compare.runner import _at_rates, require_valid
from course_utils.paths import POCKET_MODEL

LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_written_experiments_are_read_back_equal(tmp_path: Path, suffix: str) -> None:
    """A file is how a comparison is handed to a colleague."""
    experiments = [*compare.standard(), Experiment("mine", LORA, train_rows=5, seeds=(3, 1))]
    file = tmp_path / f"experiments.{suffix}"
    compare.write(file, experiments)
    assert compare.read(file) == experiments
    assert [p.name for p in tmp_path.iterdir()] == [file.name], "no half-written file is left"


def test_defaults_hold_for_each_experiment_that_does_not_say_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        "defaults: {seeds: [0, 1], training: {learning_rate: 0.1, max_steps: 3}}\n"
        "experiments:\n- name: a\n- {name: b, seeds: [5], training: {learning_rate: 0.2}}\n"
    )
    a, b = compare.read(file)
    assert a.seeds == (0, 1) and a.training == {"learning_rate": 0.1, "max_steps": 3}
    assert b.seeds == (5,) and b.training == {"learning_rate": 0.2, "max_steps": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("experiments: [{name: a, seeds: [0, 0]}]", "without repeats"),
        ("experiments: [{name: a, seeds: [-1]}]", "from 0 on"),
        ("experiments: [{name: a, train_rows: 0}]", "from 1 on"),
        ("experiments: [{name: a, peft: LORA}]", "a mapping of arguments"),
        ("experiments: [{name: a, dtype: int4}]", "float32 or bfloat16"),
        ("experiments: [a]", "has to be a mapping"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_faulty_file_is_refused_with_what_is_wrong(
    tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        compare.read(file)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training": {"lr_scheduler_type": "cosinus"}}, "cosinus"),
        ({"training": {"seed": 5}}, "seed cannot be set"),
        (
            {"peft": LORA, "quantization": {"load_in_4bit": True, "load_in_8bit": True}},
            "load_in_4bit and load_in_8bit",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    """The second of twenty experiments must not fail an hour later for a misspelt name."""
    wrong = Experiment("wrong", **values)
    with pytest.raises(ValueError, match=words):
        compare.run([Experiment("right"), wrong], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = [Experiment("a", training={"foo": 1}), Experiment("b", {"peft_type": "NOPE"})]
    with pytest.raises(ValueError, match=r"(?s)a: training.*b: peft"):
        require_valid(wrong, Sources())


def test_every_standard_method_is_valid() -> None:
    require_valid(compare.standard(), Sources())


def test_chosen_takes_a_file_or_methods(tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    compare.write(file, [Experiment("a", seeds=(7,))])
    assert compare.chosen(file)[0].seeds == (7,)
    assert compare.chosen(file, seeds=2, train_rows=9)[0].seeds == (0, 1)
    assert [e.name for e in compare.chosen(methods=["ia3", "full"])] == ["ia3", "full"]


@pytest.mark.parametrize(("rates", "words"), [([None], ""), ([None, 0.02], "0.02")])
def test_a_table_without_a_learning_rate_is_shown(rates: list[float | None], words: str) -> None:
    """It is optional, and the table comes when all runs are done."""
    names = [f"e{i}" for i in range(len(rates))]
    columns = {"method": names, "learning rate": rates, "seeds": 1, "failed": "1 crashed"}
    first, *rest = compare.shown(pd.DataFrame(columns, index=names)).splitlines()[1:]
    assert first.split() == ["e0", "1", "1", "crashed"]
    assert all(words in line for line in rest)


def test_where_there_is_no_cuda_the_device_is_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a Mac the training runs there too, whatever GPU it has."""
    apple = hardware.Machine("mps", "Apple GPU", 16, bf16=False)
    monkeypatch.setattr(hardware, "detect", lambda: apple)
    assert environment()["device"].startswith(f"CPU ({platform.machine()}), ")
    card = hardware.Machine("cuda", "NVIDIA L4", 22, bf16=True)
    monkeypatch.setattr(hardware, "detect", lambda: card)
    assert environment()["device"] == "NVIDIA L4"


def test_own_data_is_read_and_its_fingerprint_follows_its_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"{i}+1=", "completion": f" {i + 1}"}) for i in range(4)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    rows = load_rows(str(tmp_path))
    assert len(rows.train) == 4 and rows.validation is None and rows.heldout == []
    fewer = rows.cut(Experiment("mine", data=str(tmp_path), train_rows=2))
    assert fewer.train["prompt"] == rows.train["prompt"][:2]
    assert fewer.fingerprint() != rows.fingerprint() == load_rows(str(tmp_path)).fingerprint()
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no '.*test\.jsonl'"):
        load_rows(str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match="has another form"):
        load_rows(str(tmp_path))


def test_the_fingerprint_of_a_hub_model_is_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is uploaded anew under its name is another model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--own--model"
    (folder / "refs").mkdir(parents=True)
    seen = []
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(POCKET_MODEL / "config.json", folder / "snapshots" / commit)
        (folder / "refs" / "main").write_text(commit)
        seen.append(model_fingerprint("own/model"))
    assert seen == [f"own/model@{'a' * 40}", f"own/model@{'b' * 40}"]


def test_a_sweep_takes_variants_of_one_method_and_whole_numbers() -> None:
    """Two ranks of LoRA share the method; each keeps its own name at every rate."""
    names = set()
    for rank in (8, 16):
        lora = Experiment(f"lora r={rank}", method="lora", training={"learning_rate": 1})
        variants = _at_rates(lora, range(-1, 2))
        assert {variant.method for variant in variants} == {"lora"}
        names |= {variant.name for variant in variants}
    assert len(names) == 6


def test_test_rows_keep_each_kind_in_its_share() -> None:
    kinds = load_rows("tickets").cut(Experiment("few", test_rows=10)).test["kind"]
    assert sorted(set(kinds)) == ["seen", "unseen"]
    assert (kinds.count("seen"), kinds.count("unseen")) == (6, 4)
