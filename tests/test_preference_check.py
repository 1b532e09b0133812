"""The check of pairs and of prompts with rewards: what each fault is held to, and sound rows.

What is said of each fault stands in book/bad_input.yaml. Here: that it is so in TRL, and that sound
data pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import CALM
from test_data_check import codes, faults, find, make_tokenizer, turn
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.data_utils import extract_prompt

from course_utils import data
from course_utils.paths import DATA, POCKET_MODEL
from preflight.dataset_check import check
from preflight.dataset_check.formats import recognise
from preflight.dataset_check.pairs import PairFaults, pair_in, shared_start
from preflight.dataset_check.rendering import Renderer
from preflight.dataset_check.rules import RULES, rules_of

pytestmark = pytest.mark.usefixtures("one_thread")

ASK, GOOD, POOR = turn("user", "Where is it?"), turn("assistant", "Here."), turn("assistant", "No.")


def pair(chosen: Any, rejected: Any, prompt: Any = "the cat sat", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


SOUND: dict[str, list[dict[str, Any]]] = {
    "text": [pair(" on the mat", " up")],
    "chat": [pair([GOOD], [POOR], [ASK])],
    "whole conversations": [{"chosen": [ASK, GOOD], "rejected": [ASK, POOR]}],
    "whole texts": [{"chosen": "Q: a? A: yes", "rejected": "Q: a? A: no"}],
    "several pairs of a prompt": [pair(" a", " b"), pair(" a", " c"), pair(" b", " c")],
    "scores": [pair(" a", " b", score_chosen=2.5, score_rejected=1)],
    "a worse answer that is cut off": [pair(" It is on the mat.", " It is on the")],
    "a start in common": [pair(" The cat is on the mat.", " The cat is on the moon.")],
    "a call against a text": [
        pair([turn("assistant", "", tool_calls=[{"type": "function", "function": {
            "name": "find", "arguments": {"what": "lamp"}}}])], [POOR], [ASK])
    ],
    # A word more in each, and a stop in half of them, is how answers differ.
    "many": [
        pair(f" It is {n}" + "." * (n % 2), f" It was {n}" + "." * (n % 3 > 0), f"Is it {n}?")
        for n in range(60)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_pairs_pass(name: str) -> None:
    """A check that cries wolf is not read when it matters."""
    tokenizer = make_tokenizer()
    if "call" in name:
        shown = "{{ m['content'] }}{{ m['tool_calls'] or '' }}{{ eos_token }}"
        shown = "{% for m in messages %}" + shown + "{% endfor %}"
        tokenizer = make_tokenizer(chat_template=shown)
    report = check(SOUND[name], tokenizer, trainer="dpo")
    assert codes(report) - {"arguments_form"} == set()
    assert report.mapping == ""
    known = {"preference_data", "mapping_needed", "duplicate", "conflicting_answers"}
    known |= {"answer_cut_off", "arguments_form"}
    assert codes(check(SOUND[name], tokenizer)) <= known


def prompts_of(name: str) -> Dataset:
    """Return rows of the course as prompts with a gold answer."""
    rows = data.load(name, "train").select(range(300))
    if name == "qa":
        return rows.map(
            lambda row: {
                "prompt": f"{row['context']}\n{row['question']}",
                "answer": row["answers"]["text"][0],
            }
        )
    asked, gold = {"tickets": ("prompt", "completion"), "summaries": ("message", "summary")}[name]
    return rows.rename_columns({asked: "prompt", gold: "answer"} if asked != "prompt"
                               else {gold: "answer"})  # fmt: skip


@pytest.mark.parametrize("name", ["tickets", "qa", "summaries"])
def test_the_prompts_of_the_course_pass(name: str) -> None:
    """What their makers mean by them stands in other tests: several questions on a message."""
    report = check(prompts_of(name), make_tokenizer(), max_length=None, trainer="grpo")
    assert report.ok and codes(report) <= {"reward_columns", "near_duplicate"}, report


@pytest.mark.parametrize(
    "path", sorted((DATA / "preferences").glob("*.jsonl")), ids=lambda path: path.stem
)
def test_the_pairs_of_the_course_pass(path: Path) -> None:
    """The pairs that lesson 11a trains on."""
    if "chosen" not in json.loads(path.read_text("utf-8").splitlines()[0]):
        pytest.skip("no pairs")
    report = check(path, make_tokenizer(), max_length=None, trainer="dpo")
    assert report.ok, report


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("ab cd", "ab ef"), ("abc", "xyz"), ("ab", "abc"), ("the cat sat", "the cat sang"),
     ([ASK, GOOD], [ASK, POOR]), ([GOOD], [POOR]), ([ASK, GOOD, ASK], [ASK, GOOD, GOOD])],
)  # fmt: skip
def test_the_shared_start_is_trls(chosen: Any, rejected: Any) -> None:
    """What DPOTrainer takes for the prompt where there is no column of prompts."""
    theirs = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert theirs["prompt"] == chosen[: shared_start(chosen, rejected)]


def tokenised(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> Dataset:
    """Return what DPOTrainer makes of rows."""
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        args=DPOConfig(str(folder), **CALM, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train_dataset


TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}
FORMS = {
    "text": pair(" on the mat", " up"),
    "text with its end": pair(" on the mat<|end|>", " up"),
    "chat": pair([GOOD], [POOR], [ASK]),
    "implicit": {"chosen": [ASK, GOOD], "rejected": [ASK, POOR]},
    "implicit text": {"chosen": "Q: a? A: yes", "rejected": "Q: a? A: no"},
    "tools": pair([GOOD], [POOR], [ASK], tools=json.dumps([TOOL])),
    "settings": pair([GOOD], [POOR], [ASK], chat_template_kwargs={"tone": "kind"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_pair_is_rendered_as_dpo_trainer_does(name: str, tmp_path: Path) -> None:
    """Token for token: the prompt, both answers, the end that is added, a row's tools."""
    shown = "{{ tone }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    shown += "<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=shown)
    row = FORMS[name]
    made = tokenised(tmp_path, [row], tokenizer)[0]
    looks = PairFaults(recognise([*row], [row]), Renderer(tokenizer, tokenizer, False), 1024, set())
    one = pair_in(looks.form, row)
    asked, chosen, rejected = looks._tokens(one, row, sure=True, start="")
    assert chosen == made["prompt_ids"] + made["chosen_ids"]
    assert rejected == made["prompt_ids"] + made["rejected_ids"]
    assert asked == len(made["prompt_ids"])


def test_equal_where_dpo_trainer_has_equal_tokens(tmp_path: Path) -> None:
    """Rendered or cut, the two answers are the same to the model, and only these are named."""
    trim = "{% for m in messages %}{{ m['role'] + m['content'] | trim }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=trim)
    late = turn("assistant", " on the mat" * 40)
    rows = [
        pair([GOOD], [turn("assistant", "Here. \n")], [ASK]),
        pair([GOOD], [POOR], [ASK]),
        *(pair([turn("assistant", late["content"] + a)], [turn("assistant", late["content"] + b)],
               [ASK]) for a, b in ((" today", " now"),)),
        pair([late], [turn("assistant", "The mat." + late["content"])], [ASK]),
    ]  # fmt: skip
    report = check(rows, tokenizer, max_length=40, trainer="dpo")
    made = tokenised(tmp_path, rows, tokenizer, max_length=40)
    same = [row["chosen_ids"] == row["rejected_ids"] for row in made]
    cut = [
        (row["prompt_ids"] + row["chosen_ids"])[:40]
        == (row["prompt_ids"] + row["rejected_ids"])[:40]
        for row in made
    ]
    assert same == [True, False, False, False] and cut == [True, False, True, False]
    assert faults(report)["equal_rendered"] == [0]
    assert faults(report)["equal_truncated"] == [2]
    assert "equal_truncated" not in faults(check(rows, tokenizer, trainer="dpo"))


def test_a_prompt_that_fills_max_length_is_dropped(tmp_path: Path) -> None:
    """Nobody says so."""
    rows = [pair(" on", " up"), pair(" on", " up", "the cat sat on the mat " * 9)]
    report = check(rows, make_tokenizer(), max_length=16, trainer="dpo")
    assert faults(report)["completion_cut_away"] == [1]
    assert "DPOTrainer drops" in find(report, "completion_cut_away").what
    assert len(tokenised(tmp_path, rows, make_tokenizer(), max_length=16)) == 1


def test_a_prompt_of_text_before_whole_conversations(tmp_path: Path) -> None:
    """The form of a well-known dataset, which DPOTrainer took until it read prompts itself."""
    rows = [pair([ASK, GOOD], [ASK, POOR], "Where is it?")] * 2
    report = check(rows, trainer="dpo")
    assert codes(report) == {"mapping_needed", "duplicate"}
    with pytest.raises((AttributeError, TypeError)):  # which one depends on the order of a set
        tokenised(tmp_path, rows, make_tokenizer())
    scope = {"dataset": Dataset.from_list(rows)}
    exec(report.mapping, scope)
    made = tokenised(tmp_path, list(scope["dataset"]), make_tokenizer())
    assert made[0]["prompt"] == [ASK] and made[0]["chosen"] == [GOOD]


def test_what_many_pairs_show_together() -> None:
    """Bias is said of 20 pairs or more, and with its figures."""
    long = [pair(f" It is {n}, I think", f" It is {n}", f"{n}?") for n in range(20)]
    said = find(check(long, trainer="dpo"), "length_bias").example
    assert said.startswith("'chosen is longer in 100% of 20 pairs: 1")
    assert not codes(check(long[:19], trainer="dpo"))
    mixed = [one if n % 4 else pair(one["rejected"], one["chosen"], one["prompt"])
             for n, one in enumerate(long)]  # fmt: skip
    assert not codes(check(mixed, trainer="dpo"))


def test_the_default_is_what_the_columns_allow() -> None:
    """A file of pairs is examined for SFT and as pairs; trainer="sft" leaves the second out."""
    rows = [pair(" b", " b", "a")]
    usual = {"preference_data", "mapping_needed"}
    assert codes(check(rows)) == usual | {"equal_answers"}
    assert codes(check(rows, trainer="sft")) == usual
    assert codes(check(rows, trainer="dpo")) == {"equal_answers"}
    assert codes(check([{"text": "a"}], trainer="dpo")) == {"unknown_format"}
    with pytest.raises(ValueError, match="trainer='ppo' was given"):
        check(rows, trainer="ppo")


def test_both_marks_are_sound() -> None:
    rows = [{"prompt": f"{n}?", "completion": f" {n}", "label": n % 5 > 0} for n in range(40)]
    assert "one_label" not in codes(check(rows))


def test_sound_prompts_pass() -> None:
    """A gold answer that the prompt has to hold, such as one of its words, is no leak."""
    rows = [
        {"prompt": "Which of red and blue is warm?", "answer": "red", "hint": None},
        {"prompt": "The lamp is in the hall. Where is it?", "answer": "in the hall", "hint": "x"},
        {"prompt": "What is 2 + 2? Say a number from 1 to 9.", "answer": "9", "hint": None},
    ]
    report = check(rows, make_tokenizer(), trainer="grpo")
    assert codes(report) == {"reward_columns"} and report.ok
    assert find(report, "reward_columns").example == "'answer, hint'"
    chat = [{"prompt": [ASK], "answer": "Here."}]
    assert codes(check(chat, make_tokenizer(), trainer="grpo")) == {"reward_columns"}


def test_each_trainer_is_called_by_its_name() -> None:
    for trainer, name in (("dpo", "DPOTrainer"), ("grpo", "GRPOTrainer")):
        texts = [rule.what for code, rule in rules_of(trainer).items() if code == "none_value"]
        assert name in texts[0] and "SFTTrainer" not in texts[0]
        assert rules_of(trainer).keys() == RULES.keys()
    assert rules_of("sft") == RULES
