"""A comparison on the reader's own model and data, in the time that they have."""

from __future__ import annotations

import json
from pathlib import Path

import architectures
import pytest

from course_utils import compare
from course_utils.__main__ import main
from course_utils.compare.rows import load_rows


def chat(number: int) -> dict[str, object]:
    said = [("user", f"What is {number} + 1?"), ("assistant", f"It is {number + 1}.")]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


def written(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def test_a_file_of_chats_is_divided_into_pairs(tmp_path: Path) -> None:
    """What comes before the last answer is the prompt, whatever the user says after it."""
    rows = [chat(number) for number in range(20)]
    rows[0]["messages"].append({"role": "user", "content": "Thanks!"})
    split = load_rows(written(tmp_path / "own.jsonl", rows))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [16, 2, 2]
    assert split.columns == ["prompt", "completion"]
    assert [m["content"] for m in split.train[0]["prompt"]] == ["What is 0 + 1?"]
    assert split.train[0]["completion"] == [{"role": "assistant", "content": "It is 1."}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": [{"role": "user", "content": "Hello?"}]}] * 12, "row 1: there is no answer"),
        ([{"question": "a", "reply": "b"}] * 12, "It has to have rows with prompt and completion"),
        ([{"text": "a"}] * 3, "needs 10 at least"),
    ],
)
def test_a_file_that_cannot_be_compared_on_is_refused(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_rows(written(tmp_path / "own.jsonl", rows))


@pytest.mark.parametrize("name", ["gpt2", "phi-3"])
def test_methods_are_fitted_to_another_architecture(name: str) -> None:
    """GPT-2 and Phi-3 have none of Llama's names; PEFT itself says what fits."""
    model = str(architectures.model(name))
    fitted, notes = compare.fitted(compare.standard(seeds=1, model=model))
    assert [experiment.name for experiment in fitted] == list(compare.METHODS)
    assert any(note.startswith("lora-attention takes other names") for note in notes)


def test_ia3_scales_keys_where_pefts_default_scales_queries() -> None:
    model = str(architectures.model("qwen3"))
    (ia3,), notes = compare.fitted(compare.standard(["ia3"], model=model))
    assert "k_proj" in ia3.peft["target_modules"] and "q_proj" not in ia3.peft["target_modules"]
    assert len(notes) == 1
    assert compare.fitted(compare.standard(["ia3"]))[0] == compare.standard(["ia3"])


def test_a_method_that_fits_no_names_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("course_utils.compare.runner.OTHER_NAMES", {})
    model = str(architectures.model("phi-3"))
    fitted, notes = compare.fitted(compare.standard(["lora", "ia3"], model=model))
    assert [experiment.name for experiment in fitted] == ["lora"]
    assert notes[0].startswith("ia3 is left out: ") and "target_modules" in notes[0]


def test_the_command_compares_on_own_chats_within_the_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers that are not JSON are judged by their loss and tokens, and few rows are taken."""
    data = written(tmp_path / "own.jsonl", [chat(number) for number in range(40)])
    model, output = str(architectures.model("gpt2")), str(tmp_path / "out")
    command = ["compare", "--model", model, "--data", data, "--methods", "lora", "--seeds", "1"]
    assert main([*command, "--minutes", "1", "--output", output]) == 0
    printed = capsys.readouterr()
    assert "1 runs in about 1 minutes, with rows: 32 train, 4 test, 4 validation" in printed.err
    (result,) = compare.load(output)
    assert set(result["metrics"]) >= {"test loss", "token accuracy"}
    assert "exact match" not in result["metrics"] and "token accuracy" in printed.out
    assert main([*command, "--minutes", "0.1", "--output", output]) == 2
    assert "minutes are too few" in capsys.readouterr().err


def test_a_written_file_names_model_and_data(tmp_path: Path) -> None:
    """A colleague who gets the file repeats the same comparison."""
    file = tmp_path / "e.yaml"
    model = str(architectures.model("gpt2"))
    assert main(["compare", "--model", model, "--data", "own.jsonl", "--write", str(file)]) == 0
    assert {(e.model, e.data) for e in compare.read(file)} == {(model, "own.jsonl")}
