"""The check of DPOTrainer and GRPOTrainer before they train: each fault next to a sound trainer.

What is said of most stands in book/bad_input.yaml. Here: what a training then does, that the check
leaves no trace, and that sound trainers pass.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import CALM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from course_utils.paths import POCKET_MODEL
from preflight.findings import Finding
from preflight.training_check import check_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = {"prompt": ["the cat sat"] * 4, "chosen": [" on the mat"] * 4, "rejected": [" up"] * 4}
PROMPTS = {"prompt": ["the cat sat"] * 4, "answer": ["a", "b", "c", "d"]}
CHAT = {"prompt": [[{"role": "user", "content": "Where is my lamp?"}]] * 4}
LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4}
LN_2 = 0.6931


def pocket(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=dtype)


def tuned(**options: Any) -> PeftModel:
    """Return the model with an adapter that does something, as one that SFT has trained."""
    torch.manual_seed(0)
    model = get_peft_model(pocket(), LoraConfig(**LORA | options))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


def merged() -> Any:
    """Return the model with that adapter merged in, to be trained whole."""
    return tuned().merge_and_unload().requires_grad_(True)


def dpo(folder: Path, model: Any = None, rows: dict[str, Any] = PAIRS, **options: Any) -> Any:
    """Return a DPOTrainer of one step; the names of its own arguments go to it."""
    own = {name: options.pop(name) for name in ("peft_config", "ref_model") if name in options}
    settings = CALM | {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 2}
    return DPOTrainer(
        model=model or pocket(), args=DPOConfig(str(folder), **settings | options),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL), **own,
    )  # fmt: skip


def grpo(
    folder: Path, rewards: Any, rows: dict[str, Any] = PROMPTS, model: Any = None, **options: Any
) -> Any:
    """Return a GRPOTrainer of one step with two prompts of two completions."""
    settings = CALM | {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
    settings |= {"num_generations": 2, "max_completion_length": 24}
    peft_config = options.pop("peft_config", None)
    return GRPOTrainer(
        model=model or pocket(), reward_funcs=rewards,
        args=GRPOConfig(str(folder), **settings | options),
        train_dataset=Dataset.from_dict(rows), peft_config=peft_config,
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
    )  # fmt: skip


def found(trainer: Any) -> dict[str, Finding]:
    kept = check_trainer(trainer).findings
    return {one.code: one for one in kept if one.code != "all_weights"}


def first(trainer: Any, name: str = "loss") -> float:
    """Train a step, and return what was logged of it."""
    trainer.train()
    return {k: v for row in trainer.state.log_history for k, v in row.items()}[name]


def size(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(one)) for one in completions]


def size_of_messages(completions: list[Any], **kwargs: Any) -> list[float]:
    return size([one[0]["content"] for one in completions])


# --- DPO ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: dpo(folder),
        lambda folder: dpo(folder, peft_config=LoraConfig(**LORA)),
        lambda folder: dpo(folder, tuned()),
        lambda folder: dpo(folder, merged(), peft_config=LoraConfig(**LORA)),
        lambda folder: dpo(folder, pocket(torch.bfloat16), peft_config=LoraConfig(**LORA)),
        lambda folder: dpo(folder, peft_config=LoraConfig(**LORA), precompute_ref_log_probs=True),
    ],
    ids=["all weights", "new adapter", "adapter of SFT", "merged", "bfloat16", "precomputed"],
)
def test_a_sound_dpo_trainer_passes(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """And its loss begins at ln 2, with an adapter that SFT has trained, too."""
    trainer = make(tmp_path)
    assert found(trainer) == {}
    assert first(trainer) == pytest.approx(LN_2, abs=2e-3)


def test_a_merged_model_is_held_against_its_base(tmp_path: Path) -> None:
    """Without an adapter the reference is loaded from the folder that the config names."""
    trainer = dpo(tmp_path, merged())
    one = found(trainer)["first_loss"]
    loss = float(one.what.partition("begins at ")[2].split(",")[0])
    assert one.severity == "error" and "Save the merged model" in one.fix
    assert abs(loss - LN_2) > 0.01
    assert first(trainer) == pytest.approx(loss, abs=2e-3), "what was foreseen is what comes"


def test_a_reference_next_to_an_adapter(tmp_path: Path) -> None:
    """The base as ref_model: the policy is not held near what SFT made, but near the base."""
    one = found(dpo(tmp_path, tuned(), ref_model=pocket()))["first_loss"]
    assert one.severity == "warning" and "Leave ref_model out" in one.fix
    same = dpo(tmp_path, tuned(), ref_model=merged())
    assert found(same) == {}


def test_a_reference_of_another_vocabulary(tmp_path: Path) -> None:
    other = pocket()
    other.resize_token_embeddings(other.vocab_size + 8)
    one = found(dpo(tmp_path, ref_model=other))["reference_vocabulary"]
    assert f"{other.vocab_size:,}" in one.what


def test_log_probs_of_another_model(tmp_path: Path) -> None:
    """They are computed when the trainer is built; what changes the model later is too late."""
    trainer = dpo(tmp_path, peft_config=LoraConfig(**LORA), precompute_ref_log_probs=True)
    torch.manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    assert "Build the trainer anew" in found(trainer)["first_loss"].fix


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base(start: str, tmp_path: Path) -> None:
    """Switched off, such an adapter leaves another base: said once, by its own rule."""
    config = LoraConfig(**LORA, init_lora_weights=start)
    trainer = dpo(tmp_path, pocket(), peft_config=config)
    assert {*found(trainer)} & {"reference_off", "first_loss"} == {"reference_off"}
    assert abs(first(trainer) - LN_2) > 1e-3


@pytest.mark.parametrize("start", ["pissa", True])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_copy_that_changes_the_base(start: Any, fixed: bool, tmp_path: Path) -> None:
    """The loss begins at ln 2, and yet the model is no longer the one that was given."""
    config = LoraConfig(**LORA, init_lora_weights=start)
    model, ids = get_peft_model(pocket(), config).eval(), torch.arange(5, 25)[None]
    with torch.no_grad():
        given = model(ids).logits
    if fixed:
        model.peft_config["default"].init_lora_weights = True
    trainer = dpo(tmp_path, model)
    with torch.no_grad():
        change = float((model.eval()(ids).logits - given).abs().max())
    damaged = start == "pissa" and not fixed
    assert ("reference_copy" in found(trainer)) is damaged
    assert (change > 0.1) is damaged and (change < 1e-3) is not damaged
    assert first(trainer) == pytest.approx(LN_2, abs=2e-3)


def test_equal_answers_by_their_tokens(tmp_path: Path) -> None:
    rows = {"prompt": ["a"] * 3, "chosen": [" b"] * 3, "rejected": [" c", " b", " b"]}
    assert found(dpo(tmp_path, rows=rows))["equal_answers"].rows == (1, 2)


@pytest.mark.filterwarnings("ignore:The `'keep_end'`")
@pytest.mark.parametrize(("mode", "rows"), [("keep_start", (0,)), ("keep_end", (2,))])
def test_answers_that_are_cut_to_the_same(mode: str, rows: tuple[int], tmp_path: Path) -> None:
    """By the collator that will cut them, and in its mode."""
    long = " on the mat" * 20
    pairs = {
        "prompt": ["a"] * 3,
        "chosen": [long + " here", " x", "y" + long],
        "rejected": [long + " there", " y", "z" + long],
    }
    trainer = dpo(tmp_path, rows=pairs, max_length=16, truncation_mode=mode)
    assert found(trainer)["equal_truncated"].rows == rows
    trainer.train_dataset = trainer.train_dataset.select([*rows])
    trainer.args.per_device_train_batch_size = 1
    assert first(trainer, "rewards/margins") == 0
    assert "equal_truncated" not in found(dpo(tmp_path, rows=pairs, truncation_mode=mode))


def test_settings_that_do_nothing(tmp_path: Path) -> None:
    """beta=0 alone makes the whole loss the same; two losses say what they read."""
    trainer = dpo(tmp_path, beta=0.0)
    assert found(trainer)["beta"].severity == "error"
    assert first(trainer, "grad_norm") == 0
    assert "robust" in found(dpo(tmp_path, label_smoothing=0.1))["no_effect"].what
    assert found(dpo(tmp_path, label_smoothing=0.1, loss_type="robust")) == {}
    assert "beta=0.3" in found(dpo(tmp_path, beta=0.3, loss_type="sft"))["no_effect"].what
    assert "sync_ref_model" in found(dpo(tmp_path, ref_model_sync_steps=9))["no_effect"].what


def test_smoothing_is_not_read_by_sigmoid(tmp_path: Path) -> None:
    """It was, in older versions: the loss is the same to the last bit."""
    losses = [first(dpo(tmp_path, merged(), label_smoothing=one))
              for one in (0.0, 0.3)]  # fmt: skip
    assert losses[0] == losses[1]


def test_dropout(tmp_path: Path) -> None:
    """DPOTrainer sets it to 0, that of the adapter, too; else the loss is noise at the start."""
    config = LoraConfig(**LORA, lora_dropout=0.5)
    off = found(dpo(tmp_path, peft_config=config))["dropout"]
    assert off.severity == "info" and "lora_dropout=0.5" in off.what
    trainer = dpo(tmp_path, tuned(lora_dropout=0.5), disable_dropout=False)
    assert found(trainer)["dropout"].severity == "warning"
    assert abs(first(trainer) - LN_2) > 1e-3


def test_pairs_of_a_reward_model(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(POCKET_MODEL, num_labels=1)
    rows = {"chosen": ["the cat", "a dog"], "rejected": ["the cat", "a cow"]}
    trainer = RewardTrainer(
        model, args=RewardConfig(str(tmp_path), **CALM), train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
    )  # fmt: skip
    assert found(trainer)["equal_answers"].rows == (0,)


# --- GRPO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: grpo(folder, size),
        lambda folder: grpo(folder, size, peft_config=LoraConfig(**LORA), beta=0.1),
        lambda folder: grpo(folder, size, model=tuned(), beta=0.1),
        lambda folder: grpo(folder, [size, lambda completions, **_: [1.0] * len(completions)]),
        lambda folder: grpo(folder, lambda completions, answer, **_: size(completions)),
        lambda folder: grpo(folder, size_of_messages, CHAT,
                            num_generations=4, per_device_train_batch_size=8, temperature=2.0),
    ],
    ids=["all weights", "new adapter", "adapter of SFT", "two rewards", "a column", "messages"],
)  # fmt: skip
def test_a_sound_grpo_trainer_passes(make: Callable[[Path], Any], tmp_path: Path) -> None:
    trainer = make(tmp_path)
    assert {*found(trainer)} <= {"never_ends"}
    assert first(trainer, "grad_norm") > 0


def test_a_check_of_grpo_leaves_no_trace(tmp_path: Path) -> None:
    """It generates and calls rewards, and the training goes as it would have."""

    def drawing(completions: list[str], **kwargs: Any) -> list[float]:
        kwargs["answer"].clear()
        return [random.random() + np.random.rand() + float(torch.rand(1)) for _ in completions]

    def state(trainer: Any) -> list[Any]:
        return [
            random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            [module.training for module in trainer.model.modules()],
            [(name, one.requires_grad) for name, one in trainer.model.named_parameters()],
            trainer.train_dataset[0], str(trainer.state), str(trainer.generation_config),
            {name: [*values] for name, values in trainer._metrics["train"].items()},
        ]  # fmt: skip

    trained = []
    for checked in (False, True):
        random.seed(0)
        np.random.seed(0)
        trainer = grpo(tmp_path, drawing, learning_rate=1e-2)
        if checked:
            before = state(trainer)
            check_trainer(trainer)
            assert before == state(trainer)
        trainer.train()
        trained.append([one.detach().clone() for one in trainer.model.parameters()])
    assert all(map(torch.equal, *trained))


def say(value: Any) -> Callable[..., Any]:
    """Return a reward function that gives each completion a value."""

    def reward(completions: list[Any], **kwargs: Any) -> list[Any]:
        return [value for _ in completions]

    return reward


def by_json(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(bool(json.loads(one))) for one in completions]


def first_word(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len((one or "a").split(maxsplit=1)[0])) for one in completions]


def with_yes(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("cat" in one) for one in completions]


SAYS = {
    "equal": (say(1.0), PROMPTS, {}, "equal_groups", "always 1"),
    "none": (say(None), PROMPTS, {}, "reward_none", "None or NaN"),
    "nan": (say(float("nan")), PROMPTS, {}, "reward_none", "None or NaN"),
    "infinite": (say(float("inf")), PROMPTS, {}, "reward_infinite", "inf"),
    "text": (say("good"), PROMPTS, {}, "reward_fails", "could not convert string to float"),
    "no json": (by_json, PROMPTS, {}, "reward_fails", "JSONDecodeError"),
    "json of messages": (by_json, CHAT, {}, "reward_fails", "completion[0]['content']"),
    "text in messages": (with_yes, CHAT, {}, "equal_groups", "lists of messages"),
    "short": (lambda completions, **_: [1.0], PROMPTS, {}, "reward_length", "1 rewards for 2"),
    "no list": (lambda completions, **_: 1.0, PROMPTS, {}, "reward_fails", "not iterable"),
    "no column": (lambda completions, gold, **_: [0.0], PROMPTS, {}, "reward_column", "gold"),
    "too little": (lambda completions: [0.0], PROMPTS, {}, "reward_arguments", "completion_ids"),
    "greedy": (size, PROMPTS, {"top_k": 1}, "no_sampling", "not sampled"),
    "few": (size, {"prompt": ["the cat sat"]}, {}, "too_few_prompts", "makes no step"),
    "no prompt": (size, {"question": ["a"] * 4}, {}, "no_prompt", "KeyError"),
    "temperature": (size, PROMPTS, {"temperature": 0.0}, "generation", "strictly positive"),
    "cut": (size, PROMPTS, {"max_completion_length": 1}, "never_ends", "halves of answers"),
    "cut and masked": (size, PROMPTS, {"max_completion_length": 1,
                       "mask_truncated_completions": True}, "never_ends", "nothing is learned"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_rewards_that_teach_nothing(name: str, tmp_path: Path) -> None:
    """Each is called on real completions of the model, before the first step is paid for."""
    reward, rows, options, code, words = SAYS[name]
    one = found(grpo(tmp_path, reward, rows, **options))[code]
    assert words in one.what


def test_columns_that_are_dropped(tmp_path: Path) -> None:
    """One with a default is called without its column, and nothing says so."""

    def needs(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        return size(completions)

    def asks(completions: list[str], answer: Any = None, **kwargs: Any) -> list[float]:
        return size(completions)

    for reward, severity in ((needs, "error"), (asks, "warning")):
        one = found(grpo(tmp_path, reward, remove_unused_columns=True))["reward_column"]
        assert one.severity == severity and "remove_unused_columns=True" in one.what
        assert {*found(grpo(tmp_path, reward))} <= {"never_ends"}


def test_a_text_that_comes_sooner_or_later(tmp_path: Path) -> None:
    """The completions that were made pass; an empty one would end the training."""

    def brittle(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(one)) / len(one) + len(one) for one in completions]

    def comparing(completions: list[str], **kwargs: Any) -> list[float]:
        middle = statistics.quantiles(map(len, completions))[1]  # of two or more
        return [len(one) - middle for one in completions]

    assert {*found(grpo(tmp_path, comparing))} <= {"never_ends"}
    one = found(grpo(tmp_path, brittle))["reward_raises"]
    assert "''" in one.what and "ZeroDivisionError" in one.what


def test_what_a_check_of_grpo_costs(tmp_path: Path) -> None:
    """Four groups at most, and it says how many tokens and seconds they took."""
    one = found(grpo(tmp_path, say(0.0)))["equal_groups"]
    assert "In 4 groups of 2 completions" in one.what
    tokens = int(one.what.partition("(")[2].split()[0])
    assert 8 <= tokens <= 4 * 2 * 24
