"""The mappings that the check prints: each is run on data of its form and loses no word unnamed.

Words are compared before and after, those of keys and of speakers aside.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from datasets import Dataset
from test_data_check import MAPPED, check, codes, faults, find, mapped, train, turn

from preflight.dataset_check.formats import recognise

__all__ = ["train"]  # the fixture

TOOL = {
    "name": "weather",
    "description": "Tells what the sky does in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = {"name": "weather", "arguments": {"city": "Bern"}}
CALLED = [
    {"from": "human", "value": "Is it wet in Bern?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": '{"rain": "much"}'},
    {"from": "gpt", "value": "Yes, take boots."},
]
HUMAN = {"from": "human", "value": "Is it wet?"}
GPT = {"from": "gpt", "value": "It is."}
BAD = {"from": "gpt", "value": "Unlikely."}
ASK, GOOD, POOR = turn("user", "Is it wet?"), turn("assistant", "It is."), turn("assistant", "No!")
SCORES = {"score_chosen": 4.5, "score_rejected": 1.5}

# fmt: off
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sharegpt, tools as text": ("ShareGPT", {
        "id": "p9", "conversations": CALLED, "tools": json.dumps(TOOLS), "system": "Be kind."}),
    "sharegpt, tools": ("ShareGPT", {"conversations": CALLED, "tools": TOOLS}),
    "sharegpt, more keys": ("ShareGPT", {
        "conversations": [{**HUMAN, "lang": "en"}, {**GPT, "mood": "calm"}]}),
    "sharegpt, a picture": ("ShareGPT", {"conversations": [HUMAN, GPT], "image": "sky.png"}),
    "sharegpt, system": ("ShareGPT", {"conversations": [HUMAN, GPT], "system": "Be kind."}),
    "messages, system": ("messages in column 'messages'", {
        "system": "Be kind.", "messages": [ASK, GOOD]}),
    "sharegpt preference": ("preference", {
        "conversations": [HUMAN], "chosen": GPT, "rejected": BAD}),
    "sharegpt preference, texts": ("preference", {
        "conversations": [HUMAN], "chosen": "It is.", "rejected": "Unlikely."}),
    "messages preference": ("preference", {
        "messages": [ASK], "chosen": [GOOD], "rejected": [POOR]}),
    "scores": ("preference", {"prompt": "Wet?", "chosen": " yes", "rejected": " never", **SCORES}),
    "ultrafeedback, whole": ("preference", {
        "prompt": "Is it wet?", "prompt_id": "q7", "chosen": [ASK, GOOD], "rejected": [ASK, POOR],
        "messages": [ASK, GOOD], **SCORES}),
    "implicit prompt": ("preference", {"chosen": [ASK, GOOD], "rejected": [ASK, POOR]}),
    "other names": ("preference", {
        "chosen_messages": [ASK, GOOD], "rejected_messages": [ASK, POOR]}),
    "prompt as text": ("preference", {
        "prompt": "Is it wet?", "chosen": [GOOD], "rejected": [POOR]}),
    "answers as text": ("preference", {
        "prompt": [ASK], "chosen": "It is.", "rejected": "Unlikely."}),
    "orca": ("preference", {
        "system": "Be kind.", "question": "Wet?", "chosen": "very", "rejected": "never"}),
    "alpaca preference": ("preference", {
        "instruction": "Add", "input": "one one", "chosen": "two", "rejected": "three"}),
    "marked": ("unpaired preference (prompt-completion)", {
        "prompt": "Wet?", "completion": " yes", "label": True}),
    "marked chat": ("unpaired preference (conversational prompt-completion)", {
        "prompt": [ASK], "completion": [GOOD], "label": True}),
    "marked messages": ("unpaired preference (messages)", {
        "messages": [ASK, GOOD], "label": True}),
    "marked sharegpt": ("unpaired preference (ShareGPT)", {
        "conversations": [HUMAN, GPT], "kto_tag": True}),
    "self-instruct": ("Self-Instruct", {
        "id": "seed1", "name": "rhymes", "instruction": "Find a rhyme.", "instances": [
            {"input": "boat", "output": "goat"}, {"input": "", "output": "float"}]}),
    "choices": ("question and answer", {
        "question": "Which?", "choices": ["left", "right"], "answer": "left"}),
    "conversations beside a prompt": ("messages in column 'conversations'", {
        "conversations": [ASK, GOOD], "prompt": "Is it wet?"}),
}
# fmt: on
FRAME = set(
    "from value human gpt function_call observation role content user assistant system tool type "
    "function input output text answer_start".split()
)


def words(value: Any) -> set[str]:
    """Return the words of a value, with those of the keys in it."""
    if isinstance(value, dict):
        return set().union(*map(words, [*value.keys(), *value.values()])) if value else set()
    if isinstance(value, list):
        return set().union(*map(words, value)) if value else set()
    return set(re.findall(r"\w+", str(value))) - {"None"}


def two_rows(row: dict[str, Any]) -> Dataset:
    """Return the row and, where answers are marked, the same with a bad answer that is false."""
    mark = next((name for name in ("label", "kto_tag") if type(row.get(name)) is bool), None)
    if mark is None:
        return Dataset.from_list([row])
    text = json.dumps(row).replace("yes", "wrongly").replace("It is.", "Wrongly.")
    return Dataset.from_list([row, {**json.loads(text), mark: False}])


@pytest.mark.parametrize("name", [*MAPPED, *FORMS])
def test_a_mapping_loses_no_word_that_it_does_not_name(name: str) -> None:
    """What is printed is run on a reader's data: a definition or an answer must not vanish."""
    form, row = MAPPED.get(name) or FORMS[name]
    dataset = two_rows(row)
    report = check(dataset)
    made = mapped(report, dataset)
    assert report.format == form and report.mapping
    assert len(made) == (2 if name == "self-instruct" else 1)
    named = ", ".join(re.findall(r"# leaves out (.*)", report.mapping))
    allowed = FRAME | {column for column in row}
    for column, value in row.items():
        if repr(column) in named or named.endswith(f"the other {column}"):
            allowed |= words(value)
    lost = words(row) - words(list(made))
    assert lost <= allowed, lost
    again = check(made)
    assert again.mapping == "" and not codes(again) - {"media"}
    seen = recognise(dataset.column_names, list(dataset))
    looked_at = [example for one in dataset for example in seen.examples(one)]
    trained_on = [{column: one[column] for column in looked_at[0]} for one in made]
    assert trained_on == looked_at, "the check looked at something else than what is trained on"


def test_tool_calls_and_definitions_reach_the_trainer(train: Any, tokenizer: Any) -> None:
    """A call of row 1,500 is lost where `map` infers the type of a message from rows 0 to 999."""
    plain = {"conversations": [HUMAN, GPT], "tools": ""}
    rows = [*[plain] * 1500, FORMS["sharegpt, tools as text"][1] | {"system": None}]
    dataset = Dataset.from_list(rows[-1:] + rows)
    made = mapped(check(dataset), dataset)
    assert made[0] == made[-1]
    called = made[-1]["messages"][1]
    assert called["role"] == "assistant" and called["tool_calls"][0]["function"] == CALL
    assert made[-1]["messages"][2]["role"] == "tool" and made[-1]["tools"] == TOOLS
    shows = make_template(tokenizer)
    built = train([made[-1], made[1]], shows, max_length=None).train_dataset
    texts = [shows.decode(row["input_ids"]) for row in built]
    assert "Tells what the sky does" in texts[0] and "Bern" in texts[0]
    assert "weather" not in texts[1]


def make_template(tokenizer: Any) -> Any:
    """Return a tokenizer whose template writes all that it is given."""
    from test_data_check import make_tokenizer

    return make_tokenizer(
        chat_template="{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
        "{{ m['content'] }}{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}"
        "{% endfor %}"
    )


@pytest.mark.parametrize("text", ["Call it now!", "[1, 2]", "{}", '{"name": 3', '["a"]', "null"])
def test_a_call_in_words_stays_what_it_was(text: str) -> None:
    """Public data hold calls that are no JSON; they must not end the mapping."""
    said = [HUMAN, {"from": "function_call", "value": text}, *CALLED[2:]]
    dataset = Dataset.from_list([{"conversations": CALLED}, {"conversations": said}])
    messages = mapped(check(dataset), dataset)[1]["messages"]
    assert messages[1] == {"role": "assistant", "content": text}


# name, and what is said of the trainer that learns from both kinds of answer
TRAINERS = {
    "dpo": "DPOTrainer takes", "dpo chat": "DPOTrainer takes", "hh-rlhf": "DPOTrainer takes",
    "ultrafeedback": "DPOTrainer needs", "implicit prompt": "DPOTrainer takes",
    "scores": "DPOTrainer takes", "ultrafeedback, whole": "DPOTrainer needs",
    "sharegpt preference": "DPOTrainer needs", "messages preference": "DPOTrainer needs",
    "prompt as text": "DPOTrainer needs", "answers as text": "DPOTrainer needs",
    "orca": "DPOTrainer needs", "other names": "DPOTrainer needs",
    "marked": "KTOTrainer takes", "marked chat": "KTOTrainer takes",
    "marked messages": "KTOTrainer needs", "marked sharegpt": "KTOTrainer needs",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINERS)
def test_which_trainer_takes_preferences_as_they_are(name: str) -> None:
    """Preference data are not ShareGPT with a turn missing; another trainer is made for them."""
    row = (MAPPED.get(name) or FORMS[name])[1]
    report = check(two_rows(row))
    code = "unpaired_preference" if "KTO" in TRAINERS[name] else "preference_data"
    assert codes(report) == {"mapping_needed", code}
    assert TRAINERS[name] in find(report, code).example


def test_bad_answers_are_not_taken_for_conflicts() -> None:
    """Of two answers to one prompt, one good and one bad, SFT sees one."""
    rows = [
        {"prompt": f"Sky {n // 2}?", "completion": f" {n}", "label": n % 2 == 0} for n in range(9)
    ]
    assert faults(check(rows)) == {}


def test_media_beside_messages() -> None:
    """A picture needs another model and collator, of which nobody is told."""
    for name in ("image", "images", "audio", "videos"):
        report = check([{"messages": [ASK, GOOD], name: ["a.png"]}])
        assert codes(report) == {"media"} and report.ok
        assert name in find(report, "media").example
    assert not codes(check([{"text": "a", "image": "a.png"}]))


@pytest.mark.parametrize("chats", [10, 30])
@pytest.mark.parametrize("pairs_first", [True, False])
@pytest.mark.parametrize("as_dataset", [True, False])
def test_mixed_forms_go_by_the_majority(chats: int, pairs_first: bool, as_dataset: bool) -> None:
    """The first row says nothing of the others: the fewer are blamed, and are told apart."""
    pairs = [{"prompt": f"Sky {n}?", "completion": f" {n} clouds"} for n in range(40 - chats)]
    talks = [{"conversations": [turn("user", f"Sea {n}?"), GOOD]} for n in range(chats)]
    rows = pairs + talks if pairs_first else talks + pairs
    fewer = pairs if chats == 30 else talks
    names = {name: None for row in rows for name in row}
    dataset = Dataset.from_list([{**names, **row} for row in rows])
    report = check(dataset if as_dataset else rows, max_rows=40)
    assert faults(report) == {"mixed_forms": [n for n, row in enumerate(rows) if row in fewer]}
    assert ("conversations" in report.format) is (chats == 30)
    made = mapped(report, dataset)
    assert len(made) == 30 and f"leaves out {10} rows" in report.mapping
    again = check(made)
    assert not codes(again) and again.mapping == ""


def test_the_majority_may_come_after_the_first_rows() -> None:
    """300 rows of one form, then 900 of another."""
    rows = [{"prompt": f"Sky {n}?", "completion": f" {n} clouds"} for n in range(300)]
    rows += [{"messages": [turn("user", f"Sea {n}?"), GOOD]} for n in range(900)]
    report = check(rows)
    assert report.format == "messages"
    assert (find(report, "mixed_forms").count, faults(report)) == (
        300,
        {"mixed_forms": [*range(5)]},
    )


def test_a_row_without_its_answer_is_no_other_form() -> None:
    """What lacks a column is told so, even where what is left has a name."""
    rows = [{"prompt": "Sky?", "completion": " blue"}, {"prompt": "Sea?"}]
    assert faults(check(rows)) == {"missing_column": [1]}
    rows = [
        {"instruction": "Add", "output": "2"},
        {"instruction": "Add", "input": "1", "output": "2"},
    ]
    assert "mixed_forms" not in faults(check(rows))
