"""The check of a dataset before training: every fault found, with its rows, and no sound row."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import make_bad
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from course_utils import data, paths
from preflight.dataset_check import Report, check
from preflight.dataset_check.formats import recognise
from preflight.findings import Finding

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'clerk' %}{{ raise_exception('who?') }}{% endif %}"
    "{{ m['content'] + eos_token }}{% endfor %}"
)


def turn(role: Any, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


POOR = turn("assistant", "No idea.")
USER, REPLY = turn("user", "Where is my lamp?"), turn("assistant", "On its way.")


def make_tokenizer(**changes: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer of one's own, with some of its attributes changed."""
    made = AutoTokenizer.from_pretrained(paths.POCKET_MODEL)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def faults(report: Report, split: str = "train") -> dict[str, list[int]]:
    """Return the codes that name rows of the split, with those rows."""
    return {f.code: list(f.rows) for f in report.findings if f.count and f.split == split}


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings} - {"not_checked"}


def find(report: Report, code: str) -> Finding:
    return next(finding for finding in report.findings if finding.code == code)


def mapped(report: Report, dataset: Dataset) -> Dataset:
    """Run the line of code of the report as it stands there."""
    scope = {"dataset": dataset}
    exec(report.mapping, scope)
    return scope["dataset"]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- the bad dataset ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bad dataset, made anew."""
    folder = tmp_path_factory.mktemp("bad")
    make_bad.make_bad(folder)
    return folder


def check_bad(folder: Path, name: str, tokenizer: Any) -> Report:
    both = {"eval_dataset": folder / "validation.jsonl", "num_labels": 4}
    return check(folder / name, tokenizer, max_rows=100, **(both if name == "bad.jsonl" else {}))


@pytest.mark.parametrize(
    "name", ["bad.jsonl", "tokenised.jsonl", "broken.jsonl", "dates.jsonl", "codes.csv"]
)
def test_every_fault_of_the_bad_dataset_is_found(bad: Path, name: str, tokenizer: Any) -> None:
    """A fault that is missed, or one that is seen in a sound row, makes the check worthless."""
    expected = json.loads((bad / "faults.json").read_text())
    report = check_bad(bad, name, tokenizer)
    assert faults(report) == expected[name]
    assert not report.ok
    if name == "bad.jsonl":
        assert faults(report, "eval") == expected["validation.jsonl"]


def test_the_bad_dataset_in_the_repository_is_what_the_script_makes(bad: Path) -> None:
    """The card and the lessons speak of row numbers, which must be those of the files."""
    for made in bad.iterdir():
        assert made.read_bytes() == (paths.DATA / "bad" / made.name).read_bytes(), made.name
    card = (paths.DATA / "bad" / "README.md").read_text()
    for found in json.loads((bad / "faults.json").read_text()).values():
        assert all(f"`{code}`" in card for code in found)


def test_without_a_tokenizer_the_rest_is_still_found(bad: Path) -> None:
    """A reader without a model at hand gets the other findings, and reads what is missing."""
    need_tokens = {"boundary_moves", "completion_cut_away", "completion_cut_partly", "too_long"}
    expected = json.loads((bad / "faults.json").read_text())["bad.jsonl"]
    report = check_bad(bad, "bad.jsonl", None)
    assert faults(report) == {c: rows for c, rows in expected.items() if c not in need_tokens}
    last = report.findings[-1]
    assert (last.code, last.severity) == ("not_checked", "info") and "tokenizer" in last.fix


def test_bad_dataset_after_load_dataset(bad: Path, tokenizer: Any, tmp_path: Path) -> None:
    """One number in a column makes datasets read all JSON text in it as dicts; a finding."""
    expected = json.loads((bad / "faults.json").read_text())["bad.jsonl"]
    loaded = datasets.load_dataset(
        "json", data_files=str(bad / "bad.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    report = check(loaded, tokenizer, num_labels=4, max_rows=100)
    found = find(report, "json_column")
    assert found.severity == "error" and found.example == "['prompt', 'completion']"
    assert isinstance(loaded[0]["completion"], dict) and 0 in faults(report)["wrong_type"]
    # A key that was absent is now a None; what the JSON does not touch keeps its row.
    assert faults(report)["none_value"] == sorted(
        expected["none_value"] + expected["missing_column"]
    )
    for code in ("mixed_forms", "control_character", "empty_value", "label_out_of_range"):
        assert faults(report)[code] == expected[code]


# --- formats --------------------------------------------------------------------------------------

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
SAME_ROLES = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]
INPUT_OUTPUT = [{"input": "Hi", "output": "Hello"}]
CHAT = [USER, REPLY]
SPAN = {"text": ["Ann"], "answer_start": [0]}
QA = "question and answer"
# Name: (format, row); the columns are those of public datasets.
# fmt: off
READY = {
    "plain": ("text", {"text": "Once upon a time"}),
    "sft": ("prompt-completion", {"prompt": "Hi", "completion": " Hello"}),
    "sft chat": ("conversational prompt-completion", {"prompt": [USER], "completion": [REPLY]}),
    "tulu": ("messages", {"id": "1", "messages": CHAT, "source": "x"}),
    "same roles": ("ShareGPT", {"source": "x", "conversations": SAME_ROLES}),
    "tokenised": ("tokenised", {"input_ids": [1, 2], "labels": [-100, 2]}),
}
MAPPED = {
    "sharegpt": ("ShareGPT", {"id": "1", "conversations": TURNS}),
    "openthoughts": ("ShareGPT", {"system": "x", "conversations": SAME_ROLES}),
    "other name": ("messages in column 'conversations'", {"conversations": CHAT}),
    "lima": ("list of turns in 'conversations'", {"conversations": ["Hi", "Ho"], "source": "x"}),
    "capybara": ("pairs of turns in 'conversation'", {"conversation": INPUT_OUTPUT}),
    "alpaca": ("Alpaca", {"instruction": "Add", "input": "1 1", "output": "2"}),
    "alpaca without input": ("Alpaca", {"instruction": "Add", "input": "", "output": "2"}),
    "dolly": ("Dolly", {"instruction": "Who?", "context": "Ann.", "response": "A", "topic": "x"}),
    "gsm8k": (QA, {"question": "1+1?", "answer": "2"}),
    "capitals": (QA, {"Question": "1+1?", "Answer": "2"}),
    "openorca": (QA, {"system_prompt": "Be brief.", "question": "1+1?", "response": "2", "id": 1}),
    "metamath": (QA, {"type": "x", "query": "1+1?", "response": "2"}),
    "squad": (QA, {"question": "Who?", "context": "Ann.", "answers": SPAN}),
    "dialogue and summary": (QA, {"dialogue": "A: hi", "summary": "hi"}),
    "no_robots": ("messages", {"prompt": "Hi", "messages": CHAT}),
    "text, too": ("prompt-completion", {"prompt": "a", "completion": " b", "text": "a b"}),
    "hh-rlhf": ("preference", {"chosen": "H: hi A: yes", "rejected": "H: hi A: no"}),
    "dpo": ("preference", {"prompt": "Hi", "chosen": " yes", "rejected": " no"}),
    "ultrafeedback": ("preference", {"prompt": "Hi", "chosen": CHAT, "rejected": [USER, POOR]}),
    "dpo chat": ("preference", {"prompt": [USER], "chosen": [REPLY], "rejected": [POOR]}),
    "sentences": ("text in column 'sentence'", {"idx": 1, "sentence": "A fine film."}),
    "one column": ("text in column 'poem'", {"poem": "Roses are red"}),
}
# fmt: on


@pytest.mark.parametrize("name", READY)
def test_public_formats_that_the_trainer_takes(name: str) -> None:
    """A mapping of what needs none would only cost time."""
    form, row = READY[name]
    report = check([row])
    assert (report.format, report.mapping, codes(report)) == (form, "", set())


@pytest.mark.parametrize("name", MAPPED)
def test_public_formats_and_their_mapping(name: str) -> None:
    """The line of code in the report, run as it stands, must give what SFTTrainer takes."""
    form, row = MAPPED[name]
    dataset = Dataset.from_list([row])
    report = check(dataset)
    assert report.format == form
    assert codes(report) - {"preference_data"} == {"mapping_needed"}
    rows = mapped(report, dataset)
    again = check(rows)
    assert again.ok and again.mapping == "" and codes(again) == set()
    extracted = recognise(dataset.column_names, [row]).extract(row)
    target = {name: rows[0][name] for name in extracted}
    if "messages" in target:  # a kept key such as "from" does no harm, and is not compared
        extracted["messages"] = [turn(m["role"], m["content"]) for m in extracted["messages"]]
    assert target == extracted, "the check looked at something else than what is trained on"


def test_prompts_keep_their_parts() -> None:
    """Context and system prompt are part of what the model must see."""
    row = {"system_prompt": "Be brief.", "question": "Who?", "context": "Ann.", "response": "Ann"}
    assert mapped(check([row]), Dataset.from_list([row]))[0] == {
        "prompt": "Be brief.\n\nWho?\n\nAnn.\n\nAnswer:",
        "completion": " Ann",
    }


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"prompt": "Hi"}, "missing_column", "completion"),
        ({"completion": "Hi"}, "missing_column", "prompt"),
        ({"instruction": "Hi", "topic": "x"}, "missing_column", "output"),
        ({"text": "Hi", "role": "x", "parent_id": None}, "unknown_format", "parent_id"),
        ({}, "unknown_format", "without a column"),
    ],
)
def test_columns_that_do_not_make_a_dataset(row: dict, code: str, words: str) -> None:
    """Today's `KeyError: 'completion'` does not say which columns there are."""
    report = check([row])
    assert not report.ok and words in find(report, code).example


# --- single rules ---------------------------------------------------------------------------------


CALL, ANSWER = turn("assistant", None, tool_calls=[{"name": "find"}]), turn("tool", "a")
# fmt: off
MESSAGES = [
    # the one fault of a row ("": none), and its messages
    ("", [USER, REPLY]),
    ("", [turn("system", ""), USER, REPLY, USER, REPLY]),
    ("", [turn("developer", "x"), USER, REPLY]),
    ("", [USER, turn("assistant", [{"type": "text", "text": "x"}])]),
    ("", [USER, CALL, ANSWER, ANSWER, REPLY]),
    ("assistant_first", [REPLY, USER, REPLY]),
    ("repeated_role", [USER, USER, REPLY]),
    ("repeated_role", [USER, REPLY, REPLY]),
    ("system_not_first", [USER, turn("system", "x"), REPLY]),
    ("ends_with_user", [USER, REPLY, USER]),
    ("no_assistant", [USER]),
    ("unknown_role", [USER, turn("gpt", "x")]),
    ("empty_value", [USER, turn("assistant", " ")]),
    ("empty_value", []),
    ("none_value", [USER, turn("assistant", None)]),
    ("none_value", None),
    ("wrong_type", [USER, turn("assistant", 5)]),
    ("wrong_type", [USER, turn(None, "x")]),
    ("wrong_type", [USER, turn(1, "x")]),
    ("wrong_type", [USER, {}]),
    ("wrong_type", [USER, None]),
    ("wrong_type", [1, 2]),
    ("wrong_type", [None]),
    ("wrong_type", {"role": "user"}),
    ("mixed_forms", "[]"),
]
TOKENISED = [
    # the same of rows that a script tokenised, which goes wrong in masks and lengths first
    ("", {"input_ids": [1, 2]}),
    ("", {"input_ids": [1, 2], "labels": None}),
    ("", {"input_ids": [1, 2], "completion_mask": [0, 1]}),
    ("fully_masked", {"input_ids": [1, 2], "completion_mask": [0, 0]}),
    ("fully_masked", {"input_ids": [1, 2], "assistant_masks": [0, 1], "completion_mask": [1, 0]}),
    ("wrong_type", {"input_ids": [1, 2], "labels": [1]}),
    ("wrong_type", {"input_ids": [1, "2"]}),
    ("wrong_type", {"input_ids": "12"}),
    ("none_value", {"input_ids": None, "labels": [1]}),
    ("missing_column", {"labels": [1]}),
    ("token_out_of_range", {"input_ids": [1, -7], "labels": [1, 2]}),
]
# fmt: on
# What the pocket model's own template does not take.
TEMPLATE_FAULTS = {"template_fails", "parts_not_read", "content_missing", "role_not_read"}
TEMPLATE_FAULTS |= {"calls_lost"}


@pytest.mark.parametrize(
    ("fault", "row"), [*((fault, {"messages": turns}) for fault, turns in MESSAGES), *TOKENISED]
)
def test_one_fault_of_a_row(fault: str, row: dict[str, Any], tokenizer: Any) -> None:
    """Each wrong order has its own name, and a tool's turns or parts of content are no fault."""
    chats = [{"messages": [turn("user", f"Row {i}?"), REPLY]} for i in range(3)]
    ids = [{"input_ids": [3, 4 + i]} for i in range(3)]
    report = check([*(chats if "messages" in row else ids), row], tokenizer)
    found = {c: r for c, r in faults(report).items() if c not in TEMPLATE_FAULTS}
    assert found == ({fault: [3]} if fault else {})


def test_template_that_refuses_a_row() -> None:
    """SFTTrainer would stop in the middle of the data with a Jinja error and no row number."""
    rows = [{"messages": [USER, REPLY]}, {"messages": [turn("clerk", "x"), REPLY]}]
    report = check(rows, make_tokenizer(chat_template=STRICT))
    assert faults(report) == {"unknown_role": [1], "template_fails": [1]}
    assert "who?" in find(report, "template_fails").example


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"chat_template": None}, set()), ({"pad_token": None}, {"pad_is_eos"})],
)
def test_what_text_needs_of_the_tokenizer(changes: dict, expected: set[str]) -> None:
    """No chat template; without a pad token eos stands in. (book/bad_input.yaml has the rest.)"""
    report = check([{"text": "a"}], make_tokenizer(**changes))
    assert codes(report) == expected and report.ok


def test_lengths_of_chats(tokenizer: Any) -> None:
    """In messages the first answer may begin after max_length; then nothing of it is trained on."""
    long = " ".join(["lamp"] * 200)
    rows = [
        {"messages": [USER, REPLY]},
        {"messages": [turn("user", long), REPLY]},
        {"messages": [turn("user", "Why?"), turn("assistant", long)]},
    ]
    assert faults(check(rows, tokenizer, max_length=100)) == {
        "too_long": [1, 2],
        "completion_cut_away": [1],
        "completion_cut_partly": [2],
    }
    assert faults(check(rows, tokenizer, max_length=None)) == {}


def test_completion_without_tokens_of_its_own(tokenizer: Any) -> None:
    """A conversational completion that renders to nothing leaves a row fully masked."""
    users = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    silent = make_tokenizer(chat_template=users)
    rows = [{"prompt": [USER], "completion": [REPLY]}]
    assert "fully_masked" in faults(check(rows, silent))
    assert faults(check(rows, tokenizer)) == {}


NO_OR_YES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
LABELS = [
    # rows, number of classes, and the rows that are wrong
    (Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=NO_OR_YES), None, [1]),
    ([{"text": "a", "label": 0}, {"text": "b", "label": 2}], None, []),  # may be right
    ([{"text": "a", "label": 0}, {"text": "b", "label": 2}], 2, [1]),
    ([{"text": "a", "tags": [-100, 1]}, {"text": "b", "tags": [-100, 9]}], 2, [1]),
]


@pytest.mark.parametrize(("rows", "num_labels", "wrong"), LABELS)
def test_labels_and_classes(rows: Any, num_labels: int | None, wrong: list[int]) -> None:
    """Hub test splits hold -1 for "no label", which stops training deep inside the loss."""
    expected = {"label_out_of_range": wrong} if wrong else {}
    assert faults(check(rows, num_labels=num_labels)) == expected


def test_all_rows_are_counted_and_the_first_few_named() -> None:
    """A report on a large file must not hold a million numbers, yet must count them."""
    report = check([{"text": None}] * 50, max_rows=3)
    found = report.findings[0]
    assert (found.count, found.rows) == (50, (0, 1, 2))
    assert found.where() == "train: 0, 1, 2, ... (50 rows)"


# --- sources --------------------------------------------------------------------------------------


def test_every_source_gives_the_same_findings(tmp_path: Path) -> None:
    """The same rows must give the same report, whatever holds them."""
    rows = [{"text": "one"}, {"text": "two"}, {"text": None}]
    made = Dataset.from_list(rows)
    made.to_parquet(tmp_path / "a.parquet")
    made.to_csv(tmp_path / "a.csv", index=False)
    made.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": rows}))
    (tmp_path / "array.jsonl").write_text(json.dumps(rows))
    write(tmp_path / "lines.json", *rows)
    lines = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "crlf.jsonl").write_bytes(lines.replace(b"\n", b"\r\n"))
    folder = tmp_path / "saved"
    made.save_to_disk(folder)
    sources = [
        *sorted(path for path in tmp_path.iterdir() if path.is_file()),
        str(tmp_path / "a.jsonl"),
        folder,
        rows,
        made,
        made.with_format("numpy"),
        made.to_iterable_dataset(),
        DatasetDict(train=made),
        {"train": rows},
        {"text": ["one", "two", None]},
        pd.DataFrame(rows),
    ]
    assert len(sources) > 18
    for source in sources:
        report = check(source)
        assert report.rows == {"train": 3}, source
        assert faults(report) == {"none_value": [2]}, source


def test_folder_of_splits(tmp_path: Path) -> None:
    """A folder as it comes from the hub: shards, a card, a description, a hidden file."""
    for shard in range(2):
        Dataset.from_dict({"text": [f"row {shard}"]}).to_parquet(
            tmp_path / f"train-0000{shard}-of-00002.parquet"
        )
    write(tmp_path / "test.jsonl", {"text": "row 1"})
    (tmp_path / "labels.json").write_text('["a"]')
    (tmp_path / "README.md").write_text("# card")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache/train.jsonl", {"text": "hidden"})
    report = check(tmp_path)
    assert list(report.rows.items()) == [("train", 2), ("test", 1)]
    assert faults(report, "test") == {"split_overlap": [0]}


def test_csv_reads_missing_cells_as_pandas_does(tmp_path: Path) -> None:
    """load_dataset turns the word NA into None, which stops training; the check must see that."""
    (tmp_path / "a.csv").write_text('text,kind\n"a, b\nc",x\nNA,x\n,x\nnone,x\n')
    loaded = datasets.load_dataset(
        "csv", data_files=str(tmp_path / "a.csv"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [n for n, text in enumerate(loaded["text"]) if text is None] == [1, 2]
    assert faults(check(tmp_path / "a.csv")) == {"none_value": [1, 2]}


@pytest.mark.parametrize(
    ("name", "content", "code", "rows"),
    [
        ("a.jsonl", '{"data": [{"text": "x"}, {"text": "y"}]}\n', "wrapped_rows", 2),
        ("a.json", '{\n"data": [{"text": "x"}, {"text": "y"}]}', "wrapped_rows", 2),
        ("a.csv", "text,kind,text\nx,1,z\ny,2,z\n", "repeated_column", 2),
        ("a.jsonl", '{"text": "x"}\n{"text": "y", "text": "z"}\n', "broken_line", 1),
        ("a.json", '{"text": "y", "text": "z"}', "broken_line", 0),
    ],
)
def test_what_load_dataset_reads_otherwise(
    name: str, content: str, code: str, rows: int, tmp_path: Path
) -> None:
    """A file that passes here must not become one row, another column or an error there."""
    (tmp_path / name).write_text(content)
    kind, cache = name.split(".")[1].replace("jsonl", "json"), str(tmp_path / "cache")
    how = {"data_files": str(tmp_path / name), "split": "train", "cache_dir": cache}
    report = check(tmp_path / name)
    found = find(report, code)
    assert report.rows == {"train": rows}
    if code == "broken_line":
        with pytest.raises(datasets.exceptions.DatasetGenerationError):
            datasets.load_dataset(kind, **how)
    elif code == "wrapped_rows":
        assert datasets.load_dataset(kind, **how).column_names == ["data"]
        assert 'field="data"' in found.example
        assert datasets.load_dataset(kind, field="data", **how)["text"][:] == ["x", "y"]
    else:
        loaded = datasets.load_dataset(kind, **how)
        assert list(report.columns) == loaded.column_names == ["text", "kind", "text.1"]
        assert loaded["text"][:] == ["x", "y"] and "duplicate" not in codes(report)


NOTHING = {"empty_dataset": []}  # SFTTrainer stops with a StopIteration that says nothing
FILES = [
    # name, content, number of rows, findings
    ("a.jsonl", b"", 0, NOTHING),
    ("a.json", b"", 0, NOTHING),
    ("a.csv", b"", 0, NOTHING),
    ("a.jsonl.gz", gzip.compress(b"", mtime=0), 0, NOTHING),
    # A comma outside quotes shifts every cell of a row.
    ("a.csv", b"text,kind\na,x\nb,c,x\nd,x\n", 2, {"broken_line": [3]}),
    # Only JSON lines stop at a key that is there twice; in a list load_dataset takes the last.
    ("a.json", b'[{"text": "x", "text": null}, {"text": "y"}]', 2, {"none_value": [0]}),
]


@pytest.mark.parametrize(("name", "content", "rows", "expected"), FILES)
def test_odd_files(name: str, content: bytes, rows: int, expected: dict, tmp_path: Path) -> None:
    """What is in such files is found, and named by its line or row."""
    (tmp_path / name).write_bytes(content)
    report = check(tmp_path / name)
    found = {f.code: list(f.rows) for f in report.findings if f.code != "not_checked"}
    assert (report.rows, found) == ({"train": rows}, expected)


def test_broken_lines_of_shards_name_their_file(tmp_path: Path) -> None:
    """Line 2 of which of a hundred files?"""
    names = [f"train-0000{shard}-of-00002.jsonl" for shard in range(2)]
    for name in names:
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\nbroken\n')
    found = [f for f in check(tmp_path).findings if f.code == "broken_line"]
    assert [f.where() for f in found] == ["train: 2 (1 line)"] * 2
    assert all(name in f.example for name, f in zip(names, found, strict=True))
    (tmp_path / names[1]).unlink()
    alone = check(tmp_path)
    assert names[0] not in alone.findings[0].example, "one file needs no name"


def test_splits_of_one_name_are_kept_apart() -> None:
    """The split `eval` of a dict, and an eval_dataset, which is called so too."""
    both = {"train": [{"text": "a"}], "eval": [{"text": "b"}, {"text": "c"}]}
    report = check(both, eval_dataset=[{"text": None}])
    assert report.rows == {"train": 1, "eval": 2, "eval (2)": 1}
    assert faults(report, "eval (2)") == {"none_value": [0]}


def test_pictures_are_not_decoded() -> None:
    """Decoding a million pictures to look at their captions would take hours."""
    features = Features({"image": datasets.Image(), "text": Value("string")})
    broken = {"bytes": b"no picture", "path": None}
    made = Dataset.from_dict({"image": [broken], "text": ["a lamp"]}, features=features)
    assert check(made).ok


def test_no_rows_and_one_row(tokenizer: Any) -> None:
    """The two smallest datasets are the ones that index the first row blindly."""
    assert "empty_dataset" in codes(check([], tokenizer))
    assert "empty_dataset" in codes(check(Dataset.from_dict({"text": []}), tokenizer))
    assert check([{"text": "a"}], tokenizer).findings == ()
    nothing = check({"train": [{"text": "a"}], "test": []}, tokenizer)
    assert faults(nothing) == {} and codes(nothing) == {"empty_dataset"}


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("train.parquet", FileNotFoundError, "hub id"),
        (5, ValueError, "int"),
        (Path("pointer.parquet"), ValueError, "LFS"),  # the commonest broken download
        (Path("pointer.jsonl.gz"), ValueError, "LFS"),
    ],
)
def test_sources_that_cannot_be_opened(
    source: Any, error: type, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong path must not become a riddle about repository names."""
    monkeypatch.chdir(tmp_path)
    for name in ("pointer.parquet", "pointer.jsonl.gz"):
        Path(name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(error, match=words):
        check(source)


@pytest.mark.parametrize("length", [-1, 1.5, "1024", True])
def test_a_wrong_length_is_refused(length: Any) -> None:
    """One of -1 would report every row, and a string fail far from here."""
    with pytest.raises(ValueError, match="max_length"):
        check([{"text": "a"}], max_length=length)


# --- odd rows -------------------------------------------------------------------------------------

ODD = [None, 0, -1, 2.5, float("nan"), True, "", " ", "a\x00", "\ud800", b"a", (), [], {}, [None]]
ODD += [[[]], [{}], {"a": None}, [1, "a", None], [{"role": "user"}], [{"from": 1, "value": 2}]]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize(
    "form",
    [
        "text",
        "prompt completion",
        "messages",
        "conversations",
        "instruction input output",
        "question answers",
        "chosen rejected",
        "input_ids labels",
        "whatever label",
    ],
)
def test_odd_values_never_crash(form: str, with_tokenizer: bool, tokenizer: Any) -> None:
    """One odd row of a public dataset must be a finding, not the end of the check."""
    columns = form.split()
    odd_rows = [{name: value for name in columns} for value in ODD]
    odd_rows += [{columns[0]: "fine", columns[-1]: value} for value in ODD]
    sound = {"messages": [USER, REPLY], "conversations": TURNS, "input_ids": [1]}
    rows = [{name: sound.get(name, "fine") for name in columns}, {}, None, 7, *odd_rows]
    for order in (rows, rows[::-1]):
        report = check(order, tokenizer if with_tokenizer else None)
        assert not report.ok and report.rows == {"train": len(rows)}
        json.dumps(report.to_dict()), str(report), report._repr_html_()


def test_deeply_nested_and_huge_rows(tmp_path: Path, tokenizer: Any) -> None:
    """A row of 1.5 MB, or nested 900 deep, must neither crash the check nor fill the report."""
    deep = '{"text": ' + "[" * 900 + "]" * 900 + "}"
    huge = json.dumps({"text": "lamp " * 300_000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{deep}\n{huge}\n{"[" * 200_000}\n')
    report = check(tmp_path / "a.jsonl", tokenizer)
    assert faults(report) == {"wrong_type": [1], "too_long": [2], "broken_line": [4]}
    assert len(str(report)) < 3000


def write_large(path: Path, rows: int, text: str) -> Path:
    return write(path, *({"prompt": f"{n} {text}", "completion": f" {n}"} for n in range(rows)))


def test_large_file_in_seconds(tmp_path: Path) -> None:
    """A check that grows with the square of the rows is of no use on a public dataset."""
    path = write_large(tmp_path / "large.jsonl", rows=30_000, text="lamp " * 100)
    start = time.process_time()
    report = check(path)
    assert report.rows == {"train": 30_000} and report.ok
    assert time.process_time() - start < 12


def test_large_file_in_little_memory(tmp_path: Path) -> None:
    """Of each row it may keep a hash, but not its text."""
    path = write_large(tmp_path / "large.jsonl", rows=5_000, text="lamp" * 1_000)
    tracemalloc.start()
    check(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


# --- the report -----------------------------------------------------------------------------------


def test_report_in_its_four_shapes() -> None:
    """Text, dict, DataFrame and HTML must tell the same findings."""
    report = check([{"text": None}, {"text": "a"}, {"text": "A "}])
    frame = report.to_frame()
    assert [f.code for f in report.findings] == frame["code"].tolist()
    assert frame["code"].tolist() == ["none_value", "duplicate", "not_checked"]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is report.ok is False
    assert [f["rows"] for f in plain["findings"]] == [[0], [2], []]
    for shape in (str(report), report._repr_html_()):
        assert all(f.code in shape for f in report.findings)
    assert list(check([{"text": "a"}]).to_frame().columns) == list(frame.columns)


# --- against SFTTrainer ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that builds SFTTrainer on rows, with a model of a few thousand weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    folder = tmp_path_factory.mktemp("trainer")

    def build(rows: list[dict], tokenizer: Any, **options: Any) -> Any:
        config = SFTConfig(
            str(folder), report_to=[], use_cpu=True, shuffle_dataset=False, **options
        )
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        return SFTTrainer(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )

    return build


def test_foresees_what_the_trainer_drops_and_cuts(train: Any, tokenizer: Any) -> None:
    """If SFTTrainer changes how it truncates, the check must not go on telling the old story."""
    rows = [{"id": n, **make_bad.good(n)} for n in range(12)]
    rows[3]["prompt"] = "lamp " * 200 + rows[3]["prompt"]
    rows[5]["completion"] = " lamp" * 200
    expected = faults(check(rows, tokenizer, max_length=180))
    assert expected["completion_cut_away"] == [3] and expected["completion_cut_partly"] == [5]
    kept = train(rows, tokenizer, max_length=180).train_dataset
    assert sorted(set(range(12)) - set(kept["id"])) == expected["completion_cut_away"]
    no_eos = [row["id"] for row in kept if row["labels"][-1] != tokenizer.eos_token_id]
    assert no_eos == expected["completion_cut_partly"]


def test_foresees_a_boundary_that_moves(train: Any, tokenizer: Any) -> None:
    """The report says which token the trainer leaves out of the prompt."""
    rows = [{"prompt": "Record: ", "completion": '{"name": "Ann"}'}]
    assert {"prompt_ends_in_space", "boundary_moves"} == set(faults(check(rows, tokenizer)))
    row = train(rows, tokenizer).train_dataset[0]
    learned = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
    ]
    assert tokenizer.decode(learned).startswith(" {"), "the prompt's space is now in the completion"


def test_mappings_that_only_the_trainer_shows_to_be_needed(train: Any, tokenizer: Any) -> None:
    """Two public layouts look fine, yet one crashes and the other never learns to stop."""
    chat = {"messages": [USER, REPLY], "prompt": "Where is my lamp?"}
    with pytest.raises(KeyError, match="completion"):
        train([chat], tokenizer)
    both = {"prompt": "Hi", "completion": " Hello", "text": "Hi Hello"}
    assert train([both], tokenizer).train_dataset[0]["labels"][-1] != tokenizer.eos_token_id
    assert check([chat]).mapping and check([both]).mapping


# --- the course's own datasets --------------------------------------------------------------------


@pytest.mark.parametrize("form", data.FORMS)
def test_tickets_are_sound(form: str, tokenizer: Any) -> None:
    """The course's own dataset must pass the course's own check, in each of its forms."""
    report = check(data.load("tickets", form=form), tokenizer, max_length=None)
    assert report.findings == ()
    assert report.format == form and report.mapping == ""


@pytest.mark.parametrize(
    ("named", "said", "begins", "differs"),
    [
        ("LlamaTokenizerFast", True, False, True),  # as DeepSeek-V3's
        ("LlamaTokenizerFast", None, False, True),
        ("LlamaTokenizerFast", False, True, True),
        ("LlamaTokenizerFast", True, True, False),
        ("LlamaTokenizerFast", False, False, False),
        ("PreTrainedTokenizerFast", True, False, False),  # no version goes by the file
    ],
)
def test_a_first_token_that_depends_on_the_version(
    named: str, said: bool | None, begins: bool, differs: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """Measured with transformers 4.57.3 and 5.24.0: 4 goes by the file of some classes."""
    tokenizer.save_pretrained(tmp_path)
    of_file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    bos, number = tokenizer.eos_token, tokenizer.eos_token_id
    if begins:
        first, rest = {"id": bos, "type_id": 0}, {"id": "A", "type_id": 0}
        of_file["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": first}, {"Sequence": rest}],
            "pair": [{"Sequence": rest}, {"Sequence": rest | {"id": "B"}}],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(of_file), "utf-8")
    config = {"tokenizer_class": named, "bos_token": bos, "eos_token": bos, "pad_token": "<|pad|>"}
    config |= {} if said is None else {"add_bos_token": said}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded("a")["input_ids"][0] == number) == begins
    rows = [{"prompt": "When?", "completion": " Soon."}]
    found = {f.code: f.example for f in check(rows, loaded).findings}
    assert ("bos_by_version" in found) == differs
    chat = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Soon."}]
    assert "bos_by_version" not in codes(check([{"messages": chat}], loaded))
