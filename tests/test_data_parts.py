"""The check foresees what load_dataset makes of JSON beyond its first part, for each two types."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import architectures
import datasets
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from transformers import AutoTokenizer

from course_utils.paths import POCKET_MODEL
from preflight.dataset_check import check, parts

ABSENT = object()
# One of each type that JSON has, and those that load_dataset tells apart.
VALUES: dict[str, Any] = {
    "text": "abc",
    "digits": "12",
    "date": "2024-02-07",
    "int": 5,
    "float": 1.5,
    "round": 2.0,
    "bool": True,
    "null": None,
    "absent": ABSENT,
    "big": 2**63 + 5,
    "small": -(2**63) - 5,
    "list": ["a"],
    "numbers": [1],
    "empty": [],
    "object": {"a": "x"},
    "wider": {"a": "x", "b": "y"},
}
FIRST = [name for name in VALUES if name not in ("big", "small")]
CODES = {"load_stops", "load_changes", "json_column", "text_as_other_type"}
SHORT = 5000  # bytes of a part, so that the files are small


def row(value: Any, *, nested: bool) -> dict[str, Any]:
    held = {"k": 1} | ({} if value is ABSENT else {"v": value})
    return {"prompt": "x" * 200, "completion": "y"} | ({"held": [held]} if nested else held)


def value_of(loaded: dict[str, Any], *, nested: bool) -> Any:
    return (loaded["held"][0] if nested else loaded).get("v")


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def load(paths: list[Path], **options: Any) -> Dataset:
    cache = str(paths[0].parent / "cache")
    files = [str(path) for path in paths]
    return datasets.load_dataset(
        "json", data_files=files, split="train", cache_dir=cache, **options
    )


def found(source: Path, **options: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    findings = check(source, max_rows=3, **options).findings
    return {f.code: (f.rows, f.example) for f in findings if f.code in CODES}


def kept(before: Any, after: Any) -> bool:
    """Return whether a value stays what it is, but for None in it and the type of a number."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before == {name: held for name, held in after.items() if held is not None}
    numbers = all(type(value) in (int, float) for value in (before, after))
    return before == after and (numbers or type(before) is type(after))


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", SHORT)


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize(
    ("first", "nested"),
    [*((first, False) for first in FIRST), ("text", True), ("absent", True), ("object", True)],
)
def test_each_two_types(first: str, nested: bool, tmp_path: Path) -> None:
    """One row of another type after the first part, and one file of it after another."""
    wrong = {}
    sound = [row(VALUES[first], nested=nested)] * 70
    for later, value in VALUES.items():
        if later == first:
            continue
        odd = row(value, nested=nested)
        mixed = [write(tmp_path / later / "a.jsonl", [*sound, odd, sound[0]])]
        two = [
            write(tmp_path / f"{later}-2" / f"a-0000{n}-of-00002.jsonl", rows)
            for n, rows in enumerate([sound, [odd] * 2])
        ]
        for files in (mixed, two):
            try:
                loaded = value_of(load(files, chunksize=SHORT)[70], nested=nested)
                changed = not kept(None if value is ABSENT else value, loaded)
                # A later part in which all text of a field is dates is not looked for.
                missed = later == "date" and first in ("text", "digits")
                foreseen = {"load_changes"} if changed and not missed else set()
            except DatasetGenerationError:
                foreseen = {"load_stops"}
            says = found(files[0] if len(files) == 1 else files[0].parent)
            if {*says} != foreseen or any(70 not in rows for rows, _ in says.values()):
                wrong[later, len(files)] = foreseen, says
    assert not wrong


@pytest.mark.usefixtures("short_parts")
def test_sound_rows_after_a_number_among_text_are_put_in_quotes(tmp_path: Path) -> None:
    """The reason why a change without a word is an error."""
    rows = [{"prompt": "x" * 90, "completion": f"so {n}"} for n in range(200)]
    rows[100] = rows[100] | {"completion": 5}
    path = write(tmp_path / "a.jsonl", rows)
    loaded = load([path], chunksize=SHORT)["completion"][:]
    assert loaded[0] == "so 0" and loaded[100:102] == ["5", '"so 101"'] and loaded[-1] == '"so 199"'
    says = "completion: text in the first part, and here a whole number: 5"
    assert says in found(path)["load_changes"][1] and found(path)["load_changes"][0] == (100,)
    whole = load([path], chunksize=os.path.getsize(path))["completion"][:]
    assert whole == [one["completion"] for one in rows]


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize(
    ("first", "later"),
    [(None, "abc"), (ABSENT, "abc"), (5, 1.5), ("2024-02-07", "abc"), (5, 2**63 + 5), (True, "a")],
)
def test_the_advice_for_a_file_at_which_loading_stops(
    first: Any, later: Any, tmp_path: Path
) -> None:
    rows = [row(first, nested=False)] * 70 + [row(later, nested=False)]
    path = write(tmp_path / "a.jsonl", rows)
    assert found(path)["load_stops"][0] == (70,)
    assert load([path], chunksize=os.path.getsize(path))[70]["v"] == pytest.approx(later)


def test_the_first_part_is_10_megabytes(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 1000, "completion": "y", "note": None}] * 11_000
    rows[10_900] = rows[0] | {"note": "seen"}
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DatasetGenerationError):
        load([path])
    says = "note: null in the first part, and here text: 'seen'"
    assert found(path) == {"load_stops": ((10_900,), repr(says))}
    rows[1000] = rows[10_900]
    assert found(write(path, rows)) == {} and load([path])[10_900]["note"] == "seen"


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("long", [False, True])
def test_a_file_that_is_one_list_has_one_part(long: bool, tmp_path: Path) -> None:
    """So a date, a late key or a number beside text in it stops nothing."""
    count = 200 if long else 5
    path = tmp_path / "a.json"

    def says(answers: list[Any], **others: Any) -> tuple[list[Any], dict[str, Any]]:
        rows = [{"prompt": "x" * 90, "completion": answer} for answer in answers]
        rows[-1] |= others
        path.write_text(json.dumps(rows))
        return load([path], chunksize=SHORT)["completion"][:], found(path)

    dates = ["2024-02-07"] * count
    loaded, finding = says(dates)
    assert not isinstance(loaded[0], str) and finding["text_as_other_type"][0] == (0, 1, 2)
    assert says([*dates, "unknown"]) == ([*dates, "unknown"], {})
    assert says(["so"] * count, late=1) == (["so"] * count, {})
    loaded, finding = says(["so", '{"a": 1}'] + ["so"] * count + [5])
    assert loaded[1] == {"a": 1} and [*finding] == ["json_column"]


@pytest.mark.usefixtures("short_parts")
def test_text_that_is_json_beside_other_values_in_the_first_part(tmp_path: Path) -> None:
    """No row is named, since to drop these would leave the column as it is."""
    answers = ["so", 5, '{"a": 1}', "12", "true", "[so]", "null", '"so"']
    rows = [{"prompt": str(n), "completion": answer} for n, answer in enumerate(answers)]
    path = write(tmp_path / "a.jsonl", rows)
    loaded = load([path])["completion"][:]
    changed = [n for n, answer in enumerate(answers) if loaded[n] != answer]
    assert changed == [2, 3, 4, 6, 7]
    assert found(path)["json_column"][1] == str(["completion: the text '{\"a\": 1}'"])
    words = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": a}] for a in answers
    ]
    words[1][1]["content"] = [{"type": "text", "text": "so"}]
    path = write(tmp_path / "b.jsonl", [{"messages": turns} for turns in words])
    assert load([path])[3]["messages"][1]["content"] == 12
    assert "messages.[].content: the text" in found(path)["json_column"][1]


def test_dates_in_messages_of_several_forms_stay_text(tmp_path: Path) -> None:
    """Such messages are kept as JSON, with all that is in them."""
    turns = [
        {"role": "user", "content": "2024-02-07"},
        {"role": "assistant", "content": "2024-02-08"},
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])
    assert [*found(path)] == ["text_as_other_type"]
    turns[0]["name"] = "Ann"
    path = write(tmp_path / "b.jsonl", [{"messages": turns}])
    assert load([path])[0]["messages"] == turns and found(path) == {}


def tool_row(name: str, argument: str) -> dict[str, Any]:
    about = {"type": "object", "properties": {argument: {"type": "string"}}}
    call = {"type": "function", "function": {"name": name, "arguments": {argument: "Lisbon"}}}
    turns = [
        {"role": "user", "content": f"Ask {name}."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Rain", "name": name},
        {"role": "assistant", "content": "It rains."},
    ]
    tools = [{"type": "function", "function": {"name": name, "parameters": about}}]
    return {"messages": turns, "tools": tools}


def test_nulls_that_datasets_fills_in(tmp_path: Path) -> None:
    """Qwen3's template writes them; a file that is loaded by itself keeps its objects."""
    rows = [tool_row("weather", "city"), tool_row("look_up", "word")]
    template = (architectures.TRL_TEMPLATES / "qwen3.jinja").read_text("utf-8")
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)

    def written(dataset: Dataset) -> bool:
        given = {"tools": dataset[0]["tools"], "chat_template": template, "tokenize": False}
        return "null" in tokenizer.apply_chat_template(dataset[0]["messages"], **given)

    filled = Dataset.from_list(rows)
    finding = next(f for f in check(filled).findings if f.code == "nulls_filled")
    assert written(filled) and finding.rows == (0, 1) and "arguments" in finding.example
    kept = [Dataset.from_list(rows, on_mixed_types="use_json")]
    kept += [load([write(tmp_path / "a.jsonl", rows)])]
    for dataset in (*kept, rows, tmp_path / "a.jsonl"):
        assert "nulls_filled" not in {f.code for f in check(dataset).findings}
        assert not isinstance(dataset, Dataset) or not written(dataset)


@pytest.mark.usefixtures("short_parts")
def test_nulls_that_are_filled_in_after_the_first_part(tmp_path: Path) -> None:
    rows = [tool_row("weather", "city") for _ in range(50)]
    rows[40]["messages"][1]["tool_calls"][0]["function"]["arguments"] = {}
    for one in rows:  # all messages have the same keys, so that they stay objects
        one["messages"] = [{"name": "", "tool_calls": None} | turn for turn in one["messages"]]
    path = write(tmp_path / "a.jsonl", rows)
    call = load([path], chunksize=SHORT)[40]["messages"][1]["tool_calls"][0]
    assert call["function"]["arguments"] == {"city": None}
    finding = next(f for f in check(path).findings if f.code == "nulls_filled")
    assert finding.rows == (40,) and "arguments" in finding.example


def test_settings_that_only_some_rows_have_are_null_in_the_others(tmp_path: Path) -> None:
    """SFTTrainer stops at a null among the settings of the template."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": turns, "chat_template_kwargs": {"thinking": True}}, {"messages": turns}]
    path = write(tmp_path / "a.jsonl", rows)
    assert load([path])[1]["chat_template_kwargs"] is None
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    finding = next(f for f in check(path, tokenizer).findings if f.code == "template_fails")
    assert finding.rows == (1,) and "chat_template_kwargs is None" in finding.example


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_packed_files_and_a_mark_at_the_start(start: bytes, packed: bool, tmp_path: Path) -> None:
    """Blank lines are no rows, but where a field has several types loading stops at them."""
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    lines = [json.dumps(row("abc", nested=False)) + "\n" for _ in range(70)]
    lines[60] = json.dumps(row(5, nested=False)) + "\n"
    for blank in ("", "\n"):
        text = start + "".join(line + blank for line in lines).encode()
        path.write_bytes(gzip.compress(text) if packed else text)
        if blank:
            with pytest.raises(DatasetGenerationError):
                load([path], chunksize=SHORT)
        else:
            assert load([path], chunksize=SHORT)[60]["v"] == "5"
        assert found(path)["load_stops" if blank else "load_changes"][0] == (60,)


def test_a_field_that_cannot_be_written_as_json_is_an_error_of_the_file() -> None:
    """A list in some rows and a number in others, where the list's items are of several types."""
    with pytest.raises(ValueError, match="several types"):
        parts.read(b'{"a": [1]}\n{"a": 5}\n', [["a", 0]])
