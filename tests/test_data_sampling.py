"""Which rows of a large dataset are looked at: no fault of a few rows is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_data_check import check, codes, faults, find, turn
from test_data_rendering import ROWS, tokenizer_of

from preflight.__main__ import main
from preflight.dataset_check import sampling, tokens

TOPICS = "lamp sofa table kettle ladder mirror".split()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the first 30 rows, and later at none by chance."""
    monkeypatch.setattr(sampling, "FIRST", 30)
    monkeypatch.setattr(sampling, "ONE_IN", 10**9)
    monkeypatch.setattr(tokens, "CHATS", 5)


def chat(number: int) -> dict[str, Any]:
    topic = TOPICS[number % len(TOPICS)]
    asked = turn("user", f"When does the {topic} number {number} come?")
    return {"messages": [asked, turn("assistant", f"On day {number} of the month, we think.")]}


def pair(number: int) -> dict[str, str]:
    asked, answer = (m["content"] for m in chat(number)["messages"])
    return {"prompt": asked, "completion": f" {answer}"}


def same(rows: list[Any], tokenizer: Any, **options: Any) -> str:
    """Compare with a look at every row, and return the share that was looked at."""
    every = check(rows, tokenizer, max_rows=99, every_row=True, **options)
    some = check(rows, tokenizer, max_rows=99, **options)
    assert [f for f in some.findings if f.code != "sampled"] == [*every.findings]
    assert "sampled" not in codes(every)
    return find(some, "sampled").example if "sampled" in codes(some) else ""


@pytest.mark.parametrize("make", [chat, pair])
def test_sound_rows_are_passed_over(make: Any) -> None:
    """The share is said, and what is found by the rows alone is still found in all."""
    rows = [*map(make, range(300)), make(7)]
    report = check(rows, tokenizer_of("Qwen3"), max_rows=99)
    assert faults(report) == {"duplicate": [300]} and report.ok
    if make is chat:
        assert same(rows, tokenizer_of("Qwen3")) == "'30 of 301 rows looked at'"
    else:  # no text has more tokens than bytes, so none of these can be too long
        assert same(rows, tokenizer_of("Qwen3")) == ""
        assert same(rows, tokenizer_of("Qwen3"), max_length=80) == "'30 of 301 rows looked at'"


@pytest.mark.parametrize("model", ["Qwen3", "Llama 3.1", "Gemma 3", "DeepSeek-V3", "Phi-3"])
def test_faults_of_single_rows_are_found(model: str) -> None:
    """Each has a role, a key, markup or a start that the rows before it had not."""
    odd = [{"messages": messages} for messages in ROWS.values()]
    answers = ["With <|im_end|> or <|eot_id|>.", "long " * 1100, " ", "\n\n  x"]
    odd += [{"messages": [turn("user", "How does it end?"), turn("assistant", a)]} for a in answers]
    odd += [{"messages": [turn("assistant", "Hello."), *chat(1)["messages"]]}]
    odd += [{**chat(2), "tools": "no JSON"}, {**chat(3), "tools": [{"name": "f"}]}]
    odd += [{**chat(4), "chat_template_kwargs": {"x": 1}}]
    rows = [*map(chat, range(80)), *odd, *map(chat, range(80, 160))]
    assert same(rows, tokenizer_of(model)) != ""
    assert same(rows[::-1], tokenizer_of(model)) != ""


@pytest.mark.parametrize("model", ["Llama 3.2", "GLM-4", "gpt-oss"])
def test_what_a_template_does_to_all_rows(model: str) -> None:
    """The date of today, an answer without an end: counted in all rows, without a look at each."""
    assert same([*map(chat, range(200))], tokenizer_of(model)) == "'30 of 200 rows looked at'"


def test_a_fault_of_the_words_has_all_rows_of_that_shape_looked_at() -> None:
    """How many rows it is in could not be said otherwise."""
    developer = [{"messages": [turn("developer", "Be brief."), *chat(n)["messages"]]}
                 for n in range(100)]  # fmt: skip
    rows = [*map(chat, range(100, 200)), *developer]
    assert same(rows, tokenizer_of("Qwen3")) == "'130 of 200 rows looked at'"
    assert faults(check(rows, tokenizer_of("Qwen3"), max_rows=1)) == {"role_not_read": [100]}


def test_answers_only() -> None:
    """Training on answers alone has other faults, which are of the template, too."""
    rows = [*map(chat, range(100)), {"messages": ROWS["earlier thought"]}]
    assert same(rows, tokenizer_of("Qwen3"), assistant_only_loss=True) != ""


def test_prompt_and_completion() -> None:
    """A boundary that moves, tokens that come twice or are written out, and rows that are long."""
    odd = [
        {"prompt": "Record: ", "completion": '{"name": "Ann"}'},
        {"prompt": "<|begin_of_text|>And now?", "completion": " Nothing."},
        {"prompt": "How does it end?", "completion": " With <|eot_id|> it ends."},
        {"prompt": "The un", "completion": "believable"},
        {"prompt": "Write much.", "completion": " word" * 1100},
        {"prompt": "Write numbers.", "completion": " 7" * 600},
        {"prompt": "Write Chinese.", "completion": "你好世界" * 300},
    ]
    rows = [*map(pair, range(80)), *odd, *map(pair, range(80, 120))]
    found = faults(check(rows, tokenizer_of("Llama 3.1"), max_rows=99))
    assert {"boundary_moves", "second_bos", "special_token_in_text", "too_long"} <= found.keys()
    same(rows, tokenizer_of("Llama 3.1"))
    same([{"text": r["prompt"] + r["completion"]} for r in rows], tokenizer_of("Llama 3.1"))
    talks = [
        {"prompt": [turn("user", r["prompt"])], "completion": [turn("assistant", r["completion"])]}
        for r in rows
    ]
    assert same(talks, tokenizer_of("Qwen3")) != ""


def test_ends_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a tokenizer join more than the words next to the boundary, whole rows are compared."""
    monkeypatch.setattr(tokens, "BATCH", 10)
    monkeypatch.setattr(sampling.Ends, "apart", lambda self, pairs: [True] * len(pairs))
    rows = [{"prompt": f"Record {n}: ", "completion": f'{{"n": {n}}}'} for n in range(60)]
    assert same(rows, tokenizer_of("Qwen3"), max_length=40) == ""


def test_rows_of_other_forms_are_sampled_too() -> None:
    """Each form by itself; the pairs are too short to be too long, which needs no tokens."""
    rows = [*map(chat, range(300)), *map(pair, range(300, 500))]
    assert same(rows, tokenizer_of("Qwen3")) == "'230 of 500 rows looked at'"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sample is said there as well, and can be left."""
    import json

    from course_utils.paths import POCKET_MODEL

    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(chat(n)) + "\n" for n in range(50)))
    assert main(["check", str(file), "--tokenizer", str(POCKET_MODEL)]) == 0
    assert "30 of 50 rows looked at" in capsys.readouterr().out
    assert main(["check", str(file), "--tokenizer", str(POCKET_MODEL), "--every-row"]) == 0
    assert "looked at" not in capsys.readouterr().out
