"""Comparisons of DPO and GRPO with SFT, from an adapter: run for real, and what they depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from course_utils import compare, data
from course_utils.compare import Experiment, trainers
from course_utils.compare.results import Sources, jobs
from course_utils.compare.rows import load_rows
from course_utils.paths import POCKET_MODEL

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
SHORT = {"data": "tickets-chat", "train_rows": 16, "test_rows": 3}
QUICK = {
    "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("start") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL)
    get_peft_model(model, LORA).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def experiments(adapter: str) -> list[Experiment]:
    shared = SHORT | {"adapter": adapter, "model": str(POCKET_MODEL)}
    generations = {"num_generations": 4, "max_completion_length": 12}
    rewards = ("valid_json", "exact")
    return [
        Experiment("dpo", trainer="dpo", pairs="preferences", training=QUICK, **shared),
        Experiment("grpo", trainer="grpo", rewards=rewards, training=QUICK | generations, **shared),
    ]


def test_dpo_and_grpo_from_one_adapter(experiments: list[Experiment], tmp_path: Path) -> None:
    """Breaks if either is not trained as it says: DPO's reference is the adapter as it was, so that
    its first loss is ln 2, and both train the adapter's parameters alone."""
    frame = compare.run(experiments, tmp_path, progress=False)
    assert compare.reasons(tmp_path, ["dpo", "grpo"]) == []
    dpo, grpo = compare.load(tmp_path)
    assert dpo["loss"][0][1] == pytest.approx(math.log(2), abs=1e-3)
    assert [step for step, _ in dpo["margin"]] == [1, 2]
    assert [step for step, _ in grpo["reward"]] == [1, 2]
    assert "score" in dpo["memory"]["phases"]
    assert "generate" in grpo["memory"]["phases"]
    for result in (dpo, grpo):
        assert result["trainable_parameters"] == grpo["trainable_parameters"] < 1e5
        assert result["memory"]["phases"]["load"]["adapters"] > 0
        assert result["validation_loss"] == []
        assert result["tokens"] > 0
    assert {"exact match", "fields, unseen", "peak MiB", "training s"} <= set(frame.columns)
    assert list(compare.curves(tmp_path, "reward")) == ["grpo"]
    shown = compare.shown(frame)
    assert "dpo" in shown and "peak MiB" in shown


def test_a_result_depends_on_its_start_and_its_pairs(
    experiments: list[Experiment], adapter: str
) -> None:
    """Breaks if a result is taken for another's: of an adapter that was trained on since, say. And
    keys of SFT from the base must stay what they were, or every record is run again."""
    plain = Experiment("plain", data="tickets-chat")
    assert set(plain.to_dict()) == {"name", "data", "dtype", "seeds"}
    (before,) = jobs([experiments[0]], Sources())
    file = Path(adapter) / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file)
    (after,) = jobs([experiments[0]], Sources())
    save_file(weights, file)
    assert before.key != after.key
    more_sft = replace(experiments[0], trainer="sft", name="dpo")
    keys = {Sources().data(one) for one in (experiments[0], more_sft, experiments[1])}
    assert len(keys) == 3
    assert Experiment.from_dict(experiments[1].to_dict()) == experiments[1]


def test_sft_on_pairs_takes_the_chosen_answers() -> None:
    """Breaks if the control of DPO is trained on other answers than those it prefers."""
    rows = load_rows("tickets-chat")
    more = rows.with_pairs(Experiment("more", pairs="preferences"))
    pairs = data.load("preferences", "train")
    assert more.train["completion"][:5] == pairs["chosen"][:5]
    assert more.train.column_names == ["prompt", "completion"]
    assert more.test.to_list() == rows.test.to_list()
    assert set(rows.test["kind"]) == {"seen", "unseen"}


def test_rewards() -> None:
    """Breaks if valid JSON that is wrong is right, or another message than a chat's last counts."""
    texts = ['{"a": 1}', '{"a": 2} ', "no", "[1]"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    valid, exact = trainers.rewards(["valid_json", "exact"])
    assert valid(texts) == valid(chats) == [1, 1, 0, 0]
    assert exact(chats, answer=['{"a": 1}', '{"a": 2}', "yes", "[2]"]) == [1, 1, 0, 0]
    (own,) = trainers.rewards(["course_utils.metrics:json_record"])
    assert own('{"a": 1}') == {"a": 1}
    files = trainers.reward_files(["exact", "course_utils.metrics:json_record"])
    assert [file.name for file in files.values()] == ["metrics.py"]


def test_what_goes_by_a_validation_loss_is_refused(experiments: list[Experiment]) -> None:
    """Breaks if a sweep or a budget of minutes, which know SFT alone, are taken for others."""
    with pytest.raises(ValueError, match="sft alone has"):
        compare.sweep(experiments[:1], "unused")
    with pytest.raises(ValueError, match="Leave the minutes out"):
        compare.within(experiments, 5, Sources())
    text = replace(experiments[1], data=str(Path("no") / "where"))
    with pytest.raises(ValueError, match=r"train\.jsonl"):
        compare.run([text], "unused")
