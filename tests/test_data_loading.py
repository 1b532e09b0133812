"""The check of a file foresees what load_dataset makes of the same file."""

from __future__ import annotations

import ast
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from preflight.dataset_check import check

CODES = {"text_as_other_type", "load_stops", "load_changes", "messages_as_text"}
DAY, TIME = "2024-02-07", "2024-02-07T10:00:00"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, 'you'"}]


def pair(answer: Any, **others: Any) -> dict[str, Any]:
    return {"prompt": "When?", "completion": answer, **others}


def spoken(answer: str) -> dict[str, Any]:
    asked, replied = {"role": "user", "content": "When?"}, {"role": "assistant", "content": answer}
    return {"prompt": [asked], "completion": [replied]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, **options: Any) -> Dataset:
    kind = "csv" if path.suffix == ".csv" else "json"
    cache = str(path.parent / "cache")
    return datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=cache, **options
    )


def found(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    findings = check(path, max_rows=3).findings
    return {f.code: (f.rows, f.example) for f in findings if f.code in CODES}


def answers(dataset: Dataset) -> list[Any]:
    values = dataset["completion"][:]
    return [value[0]["content"] if isinstance(value, list) else value for value in values]


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("a.jsonl", [pair(DAY), pair(None), pair(TIME)], f"completion: the text '{DAY}', as time"),
        ("a.json", [pair(DAY + " 10:00"), pair(TIME + "Z")], "as timestamp[s]"),
        ("a.jsonl", [spoken(DAY)], f"completion.[].content: the text '{DAY}', as timestamp[s]"),
        ("a.jsonl.gz", [pair(DAY)], "as timestamp[s]"),
        ("a.csv", [pair("007"), pair("12")], "completion: the text '007', as int64"),
        ("a.csv", [pair("1.50"), pair("None")], "completion: the text '1.50', as double"),
        ("a.csv", [pair("True"), pair("false")], "completion: the text 'True', as bool"),
    ],
)
def test_text_that_becomes_something_else(
    name: str, rows: list[dict[str, Any]], says: str, tmp_path: Path
) -> None:
    """The rows that are named are those that load_dataset changes, and the advice keeps them."""
    path = write(tmp_path / name, rows)
    loaded = answers(load(path))
    changed = [n for n, answer in enumerate(loaded) if answer is not None]
    assert changed and not any(isinstance(answer, str) for answer in loaded)
    numbers, example = found(path)["text_as_other_type"]
    assert list(numbers) == changed and says in example
    if path.suffix == ".csv":
        kept = Dataset.from_pandas(pd.read_csv(path, dtype=str, keep_default_na=False))
    elif path.suffix == ".jsonl":
        kept = Dataset.from_list([json.loads(line) for line in path.open()])
    else:
        return
    assert answers(kept) == answers(Dataset.from_list(rows))


def test_features_alone_do_not_keep_a_date(tmp_path: Path) -> None:
    """So the advice is another one."""
    as_text = Features({"prompt": Value("string"), "completion": Value("string")})
    path = write(tmp_path / "a.jsonl", [pair(DAY)])
    assert answers(load(path, features=as_text)) == [f"{DAY} 00:00:00"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.jsonl", [pair(DAY), pair("unknown")]),
        ("a.jsonl", [pair("yes", day=DAY), pair("no", day=DAY)]),
        ("a.jsonl", [pair("2024-02-07T10:00:00.5"), pair("2024-2-7"), pair("10:00"), pair("7")]),
        ("a.csv", [pair(DAY), pair(TIME)]),
        ("a.csv", [pair("007", id=7, done=True), pair("x", id=8, done=False)]),
        ("a.csv", [pair("1,000"), pair("2")]),
        ("a.csv", [pair("True"), pair("no")]),
    ],
)
def test_text_that_stays(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """One other answer keeps all as text, and a column that is not trained on may be a date."""
    path = write(tmp_path / name, rows)
    assert answers(load(path)) == [row["completion"] for row in rows]
    assert found(path) == {}


@pytest.mark.parametrize(
    ("name", "first", "count", "last", "says"),
    [
        ("a.jsonl", DAY, 11_000, "unknown", "'unknown', as timestamp[s]"),
        ("a.csv", "007", 10_000, "abc", "'abc', as int64"),
        ("a.csv", "7", 10_000, "1.5", "'1.5', as int64"),
        ("a.csv", "True", 10_000, "maybe", "'maybe', as bool"),
        ("a.csv", "", 10_000, "abc", "'abc', as double"),
    ],
)
def test_a_row_at_which_loading_stops(
    name: str, first: str, count: int, last: str, says: str, tmp_path: Path
) -> None:
    """Once the first part of the file is read; the error of load_dataset names no row."""
    prompt = "x" * (1000 if name == "a.jsonl" else 1)
    rows = [{"prompt": prompt, "completion": first}] * count
    path = write(tmp_path / name, [*rows, pair(last)])
    with pytest.raises(DatasetGenerationError):
        load(path)
    numbers, example = found(path)["load_stops"]
    assert numbers == (count,) and says in example


@pytest.mark.parametrize("column", ["messages", "completion"])
def test_messages_in_csv(column: str, tmp_path: Path) -> None:
    """One string comes back, which is no JSON, and of Dataset.to_csv no Python either."""
    path = tmp_path / "a.csv"
    rows = [{"prompt": "x", "completion": CHAT} if column == "completion" else {column: CHAT}] * 2
    pd.DataFrame(rows).to_csv(path, index=False)
    assert ast.literal_eval(load(path)[0][column]) == CHAT
    assert found(path)["messages_as_text"][0] == (0, 1)
    Dataset.from_list(rows).to_csv(path)
    text = load(path)[0][column]
    for parse in (json.loads, ast.literal_eval):
        with pytest.raises((ValueError, SyntaxError)):
            parse(text)
    assert found(path)["messages_as_text"][0] == (0, 1)
    Dataset.from_list(rows).to_json(tmp_path / "a.jsonl")
    assert load(tmp_path / "a.jsonl")[0][column] == CHAT


@pytest.mark.parametrize(
    ("last", "changed"),
    [
        (["007", "12"], "the text '007' becomes '7'"),
        (["7", "", "1.50"], "the text '1.50' becomes '1.5'"),
        (["True", "False"], "the text 'True' becomes 'true'"),
        (["7", "12"], ""),
        (["007", "abc"], ""),
        (["1,5", "2"], ""),
    ],
)
def test_numbers_in_a_later_part_of_texts(last: list[str], changed: str, tmp_path: Path) -> None:
    """Of a column of text, a part of 10,000 rows that holds nothing but numbers."""
    path = write(tmp_path / "a.csv", [pair("yes")] * 10_000 + [pair(text) for text in last])
    loaded = answers(load(path))[10_000:]
    differs = [10_000 + n for n, text in enumerate(last) if text and text != loaded[n]]
    finding = {f.code: f for f in check(path).findings}.get("load_changes")
    assert list(finding.rows if finding else ()) == differs
    assert changed in (finding.example if finding else "") and bool(finding) == bool(changed)


def test_a_later_part_of_csv_in_a_column_that_is_not_trained_on(tmp_path: Path) -> None:
    rows = [pair("yes", id=7)] * 10_000
    path = write(tmp_path / "a.csv", [*rows, pair("no", id="A12")])
    with pytest.raises(DatasetGenerationError):
        load(path)
    numbers, example = found(path)["load_stops"]
    assert numbers == (10_000,) and "id: the text 'A12', as int64" in example
    path = write(tmp_path / "a.csv", [*rows[1:], pair("no", id="A12")])
    assert load(path)[0]["id"] == "7" and found(path) == {}


def test_a_second_file_with_another_column(tmp_path: Path) -> None:
    """The columns are those of the first; one that is missing is filled with None."""
    folder = tmp_path / "both"
    folder.mkdir()
    write(folder / "a-00000-of-00002.csv", [pair("yes", id=7), pair("so", id=9)])
    second = write(
        folder / "a-00001-of-00002.csv", [pair("no", id=8, note="x"), pair("never", id=8, note="x")]
    )
    files = sorted(map(str, folder.iterdir()))
    with pytest.raises(DatasetGenerationError):
        datasets.load_dataset("csv", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert found(folder)["load_stops"] == ((2,), "'note: not in the first file'")
    write(second, [pair("no"), pair("never")])
    datasets.load_dataset("csv", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert found(folder) == {}
