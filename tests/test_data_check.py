"""The check of a dataset before training: every fault found, with its rows, and no sound row."""

from __future__ import annotations

import gzip
import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course_utils import data, paths
from preflight import dataset_check
from preflight.dataset_check.formats import recognise
from preflight.dataset_check.rules import RULES

TEMPLATE = """{% for m in messages %}{% if m['role'] == 'clerk' %}{{ raise_exception('who?') }}
{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
USER = {"role": "user", "content": "Where is my lamp?"}
REPLY = {"role": "assistant", "content": "On its way."}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, paths.DATA / "build" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_bad = load_script("make_bad")


def make_tokenizer(pad: str | None = "<|pad|>") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few rows of the bad dataset's own kind."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"],
    )
    rows = [make_bad.good(number) for number in range(30)]
    bpe.train_from_iterator((row["prompt"] + row["completion"] for row in rows), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token=pad)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One tokenizer for all tests; none may change it."""
    return make_tokenizer()


def faults(report: data.Report, split: str = "train") -> dict[str, list[int]]:
    """Return the codes that name rows of the split, with those rows."""
    return {f.code: list(f.rows) for f in report.findings if f.count and f.split == split}


def codes(report: data.Report) -> set[str]:
    return {finding.code for finding in report.findings} - {"not_checked"}


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


def check_bad(folder: Path, name: str, tokenizer: Any) -> data.Report:
    both = {"eval_dataset": folder / "validation.jsonl", "num_labels": 4}
    return dataset_check.check(
        folder / name, tokenizer, max_rows=100, **(both if name == "bad.jsonl" else {})
    )


@pytest.mark.parametrize("name", ["bad.jsonl", "tokenised.jsonl", "broken.jsonl"])
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
    """A reader without a model at hand gets the other findings, and is told what is missing."""
    need_tokens = {"boundary_moves", "completion_cut_away", "completion_cut_partly", "too_long"}
    expected = json.loads((bad / "faults.json").read_text())["bad.jsonl"]
    report = check_bad(bad, "bad.jsonl", None)
    assert faults(report) == {c: rows for c, rows in expected.items() if c not in need_tokens}
    last = report.findings[-1]
    assert (last.code, last.severity) == ("not_checked", "info") and "tokenizer" in last.fix


def test_bad_dataset_after_load_dataset(bad: Path, tokenizer: Any, tmp_path: Path) -> None:
    """One number in a column makes datasets read all JSON text in it as dicts; it must be said."""
    expected = json.loads((bad / "faults.json").read_text())["bad.jsonl"]
    loaded = datasets.load_dataset(
        "json", data_files=str(bad / "bad.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    report = dataset_check.check(loaded, tokenizer, num_labels=4, max_rows=100)
    found = next(finding for finding in report.findings if finding.code == "json_column")
    assert found.severity == "error" and found.example == "['prompt', 'completion']"
    assert isinstance(loaded[0]["completion"], dict) and 0 in faults(report)["wrong_type"]
    # A key that was absent is now a None; what the JSON does not touch keeps its row.
    assert faults(report)["none_value"] == sorted(
        expected["none_value"] + expected["missing_column"]
    )
    for code in ("mixed_forms", "control_character", "empty_value", "label_out_of_range"):
        assert faults(report)[code] == expected[code]


def test_dropping_the_rows_named_leaves_a_sound_dataset(bad: Path, tokenizer: Any) -> None:
    """What lesson 01 does: after the named rows are gone, the check must be silent."""
    rows = [json.loads(line) for line in (bad / "bad.jsonl").read_text().splitlines()]
    named = {n for rows in faults(check_bad(bad, "bad.jsonl", tokenizer)).values() for n in rows}
    sound = [row for number, row in enumerate(rows) if number not in named]
    assert len(sound) > 10
    report = dataset_check.check(sound, tokenizer, num_labels=4)
    assert report.ok and report.findings == ()


def test_every_rule_is_tested_here() -> None:
    """A rule that no dataset triggers is a promise that nothing keeps."""
    text = Path(__file__).read_text() + (paths.DATA / "bad" / "faults.json").read_text()
    assert [code for code in RULES if f'"{code}"' not in text] == []


# --- formats --------------------------------------------------------------------------------------

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
PUBLIC = {
    # name: (row, format, whether SFTTrainer needs a mapping); the columns are those of public sets
    "plain": ({"text": "Once upon a time"}, "text", False),
    "sft": ({"prompt": "Hi", "completion": " Hello"}, "prompt-completion", False),
    "tulu": ({"id": "1", "messages": [USER, REPLY], "source": "x"}, "messages", False),
    "pairs of messages": (
        {"prompt": [USER], "completion": [REPLY]},
        "conversational prompt-completion",
        False,
    ),
    "sharegpt": ({"id": "1", "conversations": TURNS}, "ShareGPT", True),
    "openthoughts": (
        {
            "system": "x",
            "conversations": [{"from": r["role"], "value": "x"} for r in (USER, REPLY)],
        },
        "ShareGPT",
        False,
    ),
    "conversations": ({"conversations": [USER, REPLY]}, "messages in column 'conversations'", True),
    "lima": (
        {"conversations": ["Hi", "Hello"], "source": "x"},
        "list of turns in 'conversations'",
        True,
    ),
    "capybara": (
        {"source": "x", "conversation": [{"input": "Hi", "output": "Hello"}]},
        "pairs of turns in 'conversation'",
        True,
    ),
    "alpaca": ({"instruction": "Add", "input": "1 1", "output": "2"}, "Alpaca", True),
    "alpaca without input": ({"instruction": "Add", "input": "", "output": "2"}, "Alpaca", True),
    "dolly": (
        {"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "qa"},
        "Dolly",
        True,
    ),
    "gsm8k": ({"question": "1+1?", "answer": "2"}, "question and answer", True),
    "capitals": ({"Question": "1+1?", "Answer": "2"}, "question and answer", True),
    "openorca": (
        {"id": "1", "system_prompt": "Be brief.", "question": "1+1?", "response": "2"},
        "question and answer",
        True,
    ),
    "metamath": ({"type": "x", "query": "1+1?", "response": "2"}, "question and answer", True),
    "squad": (
        {"question": "Who?", "context": "Ann.", "answers": {"text": ["Ann"], "answer_start": [0]}},
        "question and answer",
        True,
    ),
    "dialogue and summary": ({"dialogue": "A: hi", "summary": "hi"}, "question and answer", True),
    "no_robots": ({"prompt": "Hi", "messages": [USER, REPLY]}, "messages", True),
    "text beside": ({"prompt": "a", "completion": " b", "text": "a b"}, "prompt-completion", True),
    "hh-rlhf": ({"chosen": "H: hi A: yes", "rejected": "H: hi A: no"}, "preference", True),
    "dpo": ({"prompt": "Hi", "chosen": " yes", "rejected": " no"}, "preference", True),
    "ultrafeedback": (
        {"prompt": "Hi", "chosen": [USER, REPLY], "rejected": [USER, REPLY]},
        "preference",
        True,
    ),
    "dpo messages": (
        {"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY]},
        "preference",
        True,
    ),
    "sentences": ({"idx": 1, "sentence": "A fine film."}, "text in column 'sentence'", True),
    "one column": ({"poem": "Roses are red"}, "text in column 'poem'", True),
    "tokenised": ({"input_ids": [1, 2], "labels": [-100, 2]}, "tokenised", False),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_formats_and_their_mapping(name: str) -> None:
    """The line of code in the report, run as it stands, must give what SFTTrainer takes."""
    row, form, needs_mapping = PUBLIC[name]
    dataset = Dataset.from_list([row])
    report = dataset_check.check(dataset)
    assert report.format == form
    assert bool(report.mapping) == needs_mapping
    assert codes(report) == ({"mapping_needed"} if needs_mapping else set())
    if not needs_mapping:
        return
    scope = {"dataset": dataset}
    exec(report.mapping, scope)
    mapped = scope["dataset"]
    again = dataset_check.check(mapped)
    assert again.ok and again.mapping == "" and codes(again) == set()
    extracted = recognise(dataset.column_names, [row]).extract(row)
    target = {name: mapped[0][name] for name in extracted}
    if "messages" in target:  # a kept key such as "from" does no harm, and is not compared
        extracted = {
            "messages": [{k: m[k] for k in ("role", "content")} for m in extracted["messages"]]
        }
    assert target == extracted, "the check looked at something else than what is trained on"


def test_prompts_keep_their_parts() -> None:
    """Context and system prompt are part of what the model must see."""
    row = {"system_prompt": "Be brief.", "question": "Who?", "context": "Ann.", "response": "Ann"}
    report = dataset_check.check([row])
    scope = {"dataset": Dataset.from_list([row])}
    exec(report.mapping, scope)
    assert scope["dataset"][0] == {
        "prompt": "Be brief.\n\nWho?\n\nAnn.\n\nAnswer:",
        "completion": " Ann",
    }


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"prompt": "Hi"}, "missing_column", "completion"),
        ({"completion": "Hi"}, "missing_column", "prompt"),
        ({"instruction": "Hi", "topic": "x"}, "missing_column", "output"),
        ({"a": 1, "b": [2.0]}, "unknown_format", "'b'"),
        ({"text": "Hi", "role": "x", "parent_id": None}, "unknown_format", "parent_id"),
        ({}, "unknown_format", "without a column"),
    ],
)
def test_columns_that_do_not_make_a_dataset(row: dict, code: str, words: str) -> None:
    """Today's `KeyError: 'completion'` does not say which columns there are."""
    report = dataset_check.check([row])
    found = next(finding for finding in report.findings if finding.code == code)
    assert not report.ok and words in found.example


def test_splits_of_another_form() -> None:
    """Training on one form and evaluating on another gives a loss that means nothing."""
    report = dataset_check.check(
        {"train": [{"text": "a"}], "test": [{"prompt": "a", "completion": " b"}]}
    )
    found = next(finding for finding in report.findings if finding.code == "format_differs")
    assert found.split == "test" and "prompt-completion" in found.example


# --- single rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, REPLY], set()),
        ([{"role": "system", "content": ""}, USER, REPLY, USER, REPLY], set()),
        ([{"role": "developer", "content": "x"}, USER, REPLY], set()),
        ([USER, {**REPLY, "content": [{"type": "text", "text": "x"}]}], set()),
        (
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [{"name": "find"}]},
                {"role": "tool", "content": "a"},
                {"role": "tool", "content": "b"},
                REPLY,
            ],
            set(),
        ),
        ([REPLY, USER, REPLY], {"assistant_first"}),
        ([USER, USER, REPLY], {"repeated_role"}),
        ([USER, REPLY, REPLY], {"repeated_role"}),
        ([USER, {"role": "system", "content": "x"}, REPLY], {"system_not_first"}),
        ([USER, REPLY, USER], {"ends_with_user"}),
        ([USER], {"no_assistant"}),
        ([USER, {"role": "gpt", "content": "x"}], {"unknown_role"}),
        ([USER, {"role": "assistant", "content": " "}], {"empty_value"}),
        ([USER, {"role": "assistant", "content": None}], {"none_value"}),
        ([USER, {"role": "assistant", "content": 5}], {"wrong_type"}),
        ([USER, {"role": None, "content": "x"}], {"wrong_type"}),
        ([USER, {"role": 1, "content": "x"}], {"wrong_type"}),
        ([USER, {}], {"wrong_type"}),
        ([USER, None], {"wrong_type"}),
        ([1, 2], {"wrong_type"}),
        ([None], {"wrong_type"}),
        ([], {"empty_value"}),
        (None, {"none_value"}),
        ("[]", {"mixed_forms"}),
        ({"role": "user"}, {"wrong_type"}),
    ],
)
def test_messages(messages: Any, expected: set[str], tokenizer: Any) -> None:
    """Each wrong order has its own name, and a tool's turns or parts of content are no fault."""
    others = [{"messages": [{**USER, "content": f"Row {i}?"}, REPLY]} for i in range(3)]
    report = dataset_check.check([*others, {"messages": messages}], tokenizer)
    assert {c: r for c, r in faults(report).items() if c != "template_fails"} == {
        code: [3] for code in expected
    }


def test_template_that_refuses_a_row(tokenizer: Any) -> None:
    """SFTTrainer would stop in the middle of the data with a Jinja error and no row number."""
    rows = [{"messages": [USER, REPLY]}, {"messages": [{"role": "clerk", "content": "x"}, REPLY]}]
    report = dataset_check.check(rows, tokenizer)
    assert faults(report) == {"unknown_role": [1], "template_fails": [1]}
    assert "who?" in next(f for f in report.findings if f.code == "template_fails").example


def test_tokenizer_without_a_template() -> None:
    """Messages need a chat template; a base model's tokenizer often has none."""
    bare = make_tokenizer()
    bare.chat_template = None
    assert codes(dataset_check.check([{"messages": [USER, REPLY]}], bare)) == {"no_chat_template"}
    assert codes(dataset_check.check([{"text": "a"}], bare)) == set(), "text needs none"


def test_tokenizer_without_eos() -> None:
    """SFTTrainer appends eos; without one it stops with a TypeError."""
    bare = make_tokenizer()
    bare.eos_token = None
    assert "no_eos" in codes(dataset_check.check([{"text": "a"}], bare))


@pytest.mark.parametrize("pad", ["<|end|>", None])
def test_pad_that_is_eos(pad: str | None) -> None:
    """A model fine-tuned with pad = eos and the wrong collator never stops."""
    report = dataset_check.check([{"text": "Hello"}], make_tokenizer(pad))
    assert codes(report) == {"pad_is_eos"} and report.ok


def test_lengths_of_chats(tokenizer: Any) -> None:
    """In messages the first answer may begin after max_length; then nothing of it is trained on."""
    long = " ".join(["lamp"] * 200)
    rows = [
        {"messages": [USER, REPLY]},
        {"messages": [{**USER, "content": long}, REPLY]},
        {"messages": [{**USER, "content": "Why?"}, {**REPLY, "content": long}]},
    ]
    assert faults(dataset_check.check(rows, tokenizer, max_length=100)) == {
        "too_long": [1, 2],
        "completion_cut_away": [1],
        "completion_cut_partly": [2],
    }
    assert faults(dataset_check.check(rows, tokenizer, max_length=None)) == {}


def test_completion_without_tokens_of_its_own(tokenizer: Any) -> None:
    """A conversational completion that renders to nothing leaves a row fully masked."""
    silent = make_tokenizer()
    silent.chat_template = (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    )
    rows = [{"prompt": [USER], "completion": [REPLY]}]
    assert "fully_masked" in faults(dataset_check.check(rows, silent))
    assert faults(dataset_check.check(rows, tokenizer)) == {}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input_ids": [1, 2]}, set()),
        ({"input_ids": [1, 2], "labels": None}, set()),
        ({"input_ids": [1, 2], "completion_mask": [0, 1]}, set()),
        ({"input_ids": [1, 2], "completion_mask": [0, 0]}, {"fully_masked"}),
        (
            {"input_ids": [1, 2], "assistant_masks": [0, 1], "completion_mask": [1, 0]},
            {"fully_masked"},
        ),
        ({"input_ids": [1, 2], "labels": [1]}, {"wrong_type"}),
        ({"input_ids": [1, "2"]}, {"wrong_type"}),
        ({"input_ids": "12"}, {"wrong_type"}),
        ({"input_ids": None, "labels": [1]}, {"none_value"}),
        ({"labels": [1]}, {"missing_column"}),
        ({"input_ids": [1, -7], "labels": [1, 2]}, {"token_out_of_range"}),
    ],
)
def test_tokenised_rows(row: dict, expected: set[str]) -> None:
    """A script that tokenises by itself goes wrong in masks and lengths first."""
    assert set(faults(dataset_check.check([{"input_ids": [3, 4]}, row]))) == expected


def test_labels_against_the_classes_that_the_features_name() -> None:
    """Hub test splits hold -1 for "no label", which stops training deep inside the loss."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, -1, 1]}, features=features)
    assert faults(dataset_check.check(rows)) == {"label_out_of_range": [1]}
    plain = [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    assert faults(dataset_check.check(plain)) == {}, "without a number of classes, 2 may be right"
    assert faults(dataset_check.check(plain, num_labels=2)) == {"label_out_of_range": [1]}
    tags = [{"text": "a", "tags": [-100, 1]}, {"text": "b", "tags": [-100, 9]}]
    assert faults(dataset_check.check(tags, num_labels=2)) == {"label_out_of_range": [1]}


def test_counts_are_whole_and_row_numbers_the_first_few() -> None:
    """A report on a large file must not hold a million numbers, yet must count them."""
    report = dataset_check.check([{"text": None}] * 50, max_rows=3)
    found = report.findings[0]
    assert (found.count, found.rows) == (50, (0, 1, 2))
    assert found.where() == "train: 0, 1, 2, ... (50 rows)"


# --- sources --------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> list[dict]:
    """Two sound rows, and one that is None."""
    return [{"text": "one"}, {"text": "two"}, {"text": None}]


def test_every_source_gives_the_same_findings(rows: list[dict], tmp_path: Path) -> None:
    """The same rows must give the same report, whatever holds them."""
    made = Dataset.from_list(rows)
    made.to_parquet(tmp_path / "a.parquet")
    made.to_csv(tmp_path / "a.csv", index=False)
    made.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": rows}))
    (tmp_path / "array.jsonl").write_text(json.dumps(rows))
    write(tmp_path / "lines.json", *rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "crlf.jsonl").write_bytes(
        (tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n")
    )
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
        report = dataset_check.check(source)
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
    report = dataset_check.check(tmp_path)
    assert list(report.rows.items()) == [("train", 2), ("test", 1)]
    assert faults(report, "test") == {"split_overlap": [0]}


def test_csv_reads_missing_cells_as_pandas_does(tmp_path: Path) -> None:
    """load_dataset turns the word NA into None, which stops training; the check must see that."""
    (tmp_path / "a.csv").write_text('text,kind\n"a, b\nc",x\nNA,x\n,x\nnone,x\n')
    loaded = datasets.load_dataset(
        "csv", data_files=str(tmp_path / "a.csv"), split="train", cache_dir=str(tmp_path / "cache")
    )
    none = [number for number, text in enumerate(loaded["text"]) if text is None]
    assert (
        faults(dataset_check.check(tmp_path / "a.csv"))
        == {"none_value": none}
        == {"none_value": [1, 2]}
    )


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
    report = dataset_check.check(tmp_path / name)
    found = next(finding for finding in report.findings if finding.code == code)
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


def test_a_key_twice_in_a_list_of_rows_is_read_as_by_load_dataset(tmp_path: Path) -> None:
    """Only JSON lines stop at it; in a list the last value counts, here and there."""
    (tmp_path / "a.json").write_text('[{"text": "x", "text": null}, {"text": "y"}]')
    assert faults(dataset_check.check(tmp_path / "a.json")) == {"none_value": [0]}


def test_broken_lines_of_shards_name_their_file(tmp_path: Path) -> None:
    """Line 2 of which of a hundred files?"""
    names = [f"train-0000{shard}-of-00002.jsonl" for shard in range(2)]
    for name in names:
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\nbroken\n')
    found = [f for f in dataset_check.check(tmp_path).findings if f.code == "broken_line"]
    assert [f.where() for f in found] == ["train: 2 (1 line)"] * 2
    assert all(name in f.example for name, f in zip(names, found, strict=True))
    (tmp_path / names[1]).unlink()
    assert (
        names[0] not in dataset_check.check(tmp_path).findings[0].example
    )  # one file needs no name


def test_splits_of_one_name_are_kept_apart() -> None:
    """The split `eval` of a dict beside an eval_dataset, which is called so too."""
    both = {"train": [{"text": "a"}], "eval": [{"text": "b"}, {"text": "c"}]}
    report = dataset_check.check(both, eval_dataset=[{"text": None}])
    assert report.rows == {"train": 1, "eval": 2, "eval (2)": 1}
    assert faults(report, "eval (2)") == {"none_value": [0]}


def test_ragged_csv_names_the_line(tmp_path: Path) -> None:
    """A comma outside quotes shifts every cell of a row."""
    (tmp_path / "a.csv").write_text("text,kind\na,x\nb,c,x\nd,x\n")
    report = dataset_check.check(tmp_path / "a.csv")
    assert faults(report) == {"broken_line": [3]} and report.rows == {"train": 2}


def test_pictures_are_not_decoded() -> None:
    """Decoding a million pictures to look at their captions would take hours."""
    features = Features({"image": datasets.Image(), "text": Value("string")})
    broken = {"bytes": b"no picture", "path": None}
    made = Dataset.from_dict({"image": [broken], "text": ["a lamp"]}, features=features)
    assert dataset_check.check(made).ok


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_empty_file(name: str, tmp_path: Path) -> None:
    """An empty dataset makes SFTTrainer stop with a StopIteration that says nothing."""
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wb"):
        pass
    report = dataset_check.check(tmp_path / name)
    assert codes(report) == {"empty_dataset"} and report.rows == {"train": 0}


def test_no_rows_and_one_row(tokenizer: Any) -> None:
    """The two smallest datasets are the ones that index the first row blindly."""
    assert "empty_dataset" in codes(dataset_check.check([], tokenizer))
    assert "empty_dataset" in codes(dataset_check.check(Dataset.from_dict({"text": []}), tokenizer))
    assert dataset_check.check([{"text": "a"}], tokenizer).findings == ()
    nothing = dataset_check.check({"train": [{"text": "a"}], "test": []}, tokenizer)
    assert faults(nothing) == {} and codes(nothing) == {"empty_dataset"}


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("/nowhere/train.jsonl", FileNotFoundError, "/nowhere/train.jsonl"),
        ("train.parquet", FileNotFoundError, "hub id"),
        (5, ValueError, "int"),
        ({}, ValueError, "splits"),
        ("some-owner/no-such-dataset", RuntimeError, "some-owner/no-such-dataset"),
    ],
)
def test_sources_that_cannot_be_opened(
    source: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong path must not become a riddle about repository names."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=words):
        dataset_check.check(source)


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    """A Git LFS pointer instead of the data is the commonest broken download."""
    for name in ("a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ValueError, match="LFS"):
            dataset_check.check(tmp_path / name)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"\.jsonl"):
        dataset_check.check(tmp_path / "a.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no data file"):
        dataset_check.check(tmp_path / "empty")


@pytest.mark.parametrize("max_length", [0, -1, 1.5, "1024", True])
def test_bad_max_length(max_length: Any) -> None:
    """A max_length of 0 would report every row, and a string fail far from here."""
    with pytest.raises(ValueError, match="max_length"):
        dataset_check.check([{"text": "a"}], max_length=max_length)


def test_bad_tokenizer() -> None:
    """The name of a model instead of its tokenizer is an easy slip."""
    with pytest.raises(ValueError, match="AutoTokenizer"):
        dataset_check.check([{"text": "a"}], "gpt2")


# --- odd rows -------------------------------------------------------------------------------------

ODD = [None, 0, -1, 2.5, float("nan"), True, "", " ", "a\x00", "\ud800", b"a", (), [], {}, [None]]
ODD += [[[]], [{}], {"a": None}, [1, "a", None], [{"role": "user"}], [{"from": 1, "value": 2}]]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize(
    "columns",
    [
        ("text",),
        ("prompt", "completion"),
        ("messages",),
        ("conversations",),
        ("instruction", "input", "output"),
        ("question", "answers"),
        ("chosen", "rejected"),
        ("input_ids", "labels"),
        ("whatever", "label"),
    ],
)
def test_odd_values_never_crash(columns: tuple, with_tokenizer: bool, tokenizer: Any) -> None:
    """One odd row of a public dataset must be a finding, not the end of the check."""
    odd_rows = [{name: value for name in columns} for value in ODD]
    odd_rows += [{columns[0]: "fine", columns[-1]: value} for value in ODD]
    sound = {"messages": [USER, REPLY], "conversations": TURNS, "input_ids": [1]}
    rows = [{name: sound.get(name, "fine") for name in columns}, {}, None, 7, *odd_rows]
    for order in (rows, rows[::-1]):
        report = dataset_check.check(order, tokenizer if with_tokenizer else None)
        assert not report.ok and report.rows == {"train": len(rows)}
        json.dumps(report.to_dict()), report.to_text(), report._repr_html_()


def test_deeply_nested_and_huge_rows(tmp_path: Path, tokenizer: Any) -> None:
    """A row of 1.5 MB, or nested 900 deep, must neither crash the check nor fill the report."""
    deep = '{"text": ' + "[" * 900 + "]" * 900 + "}"
    huge = json.dumps({"text": "lamp " * 300_000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{deep}\n{huge}\n{"[" * 200_000}\n')
    report = dataset_check.check(tmp_path / "a.jsonl", tokenizer)
    assert faults(report) == {"wrong_type": [1], "too_long": [2], "broken_line": [4]}
    assert len(report.to_text()) < 3000


def test_large_file_in_seconds(tmp_path: Path) -> None:
    """A check that grows with the square of the rows is of no use on a public dataset."""
    path = tmp_path / "large.jsonl"
    body = "a sentence of a few words " * 20
    with path.open("w") as file:
        for number in range(50_000):
            file.write(
                json.dumps({"prompt": f"{number} {body}", "completion": f" {number}"}) + "\n"
            )
    start = time.perf_counter()
    report = dataset_check.check(path)
    assert report.rows == {"train": 50_000} and report.ok
    assert time.perf_counter() - start < 20


# --- the report -----------------------------------------------------------------------------------


def test_dataset_text_shows_as_text() -> None:
    """A row, a role or a column named <script> must not run in the reader's notebook."""
    script = "<script>alert(1)</script>"
    rows = [
        {"messages": [{"role": script, "content": f"\x1b[2J{script}"}], script: 1},
        {"messages": script},
    ]
    for report in (
        dataset_check.check(rows),
        dataset_check.check({script: rows}),
        dataset_check.check([{script: 1}]),
    ):
        html = report._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert "\x1b" not in html and "\x1b" not in report.to_text()


def test_report_in_its_four_shapes() -> None:
    """Text, dict, DataFrame and HTML must tell the same findings."""
    report = dataset_check.check([{"text": None}, {"text": "a"}, {"text": "A "}])
    frame = report.to_frame()
    assert frame["code"].tolist() == [f.code for f in report.findings]
    assert frame["code"].tolist() == ["none_value", "duplicate", "not_checked"]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is report.ok is False
    assert [f["rows"] for f in plain["findings"]] == [[0], [2], []]
    for shape in (report.to_text(), report._repr_html_(), str(report)):
        assert all(f.code in shape for f in report.findings)
    assert list(dataset_check.check([{"text": "a"}]).to_frame().columns) == list(frame.columns)


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
    rows = [{"id": n, "prompt": r["prompt"], "completion": r["completion"]}
            for n in range(12) if (r := make_bad.good(n))]  # fmt: skip
    rows[3]["prompt"] = "lamp " * 200 + rows[3]["prompt"]
    rows[5]["completion"] = " lamp" * 200
    expected = faults(dataset_check.check(rows, tokenizer, max_length=180))
    assert expected["completion_cut_away"] == [3] and expected["completion_cut_partly"] == [5]
    kept = train(rows, tokenizer, max_length=180).train_dataset
    assert sorted(set(range(12)) - set(kept["id"])) == expected["completion_cut_away"]
    no_eos = [row["id"] for row in kept if row["labels"][-1] != tokenizer.eos_token_id]
    assert no_eos == expected["completion_cut_partly"]


def test_foresees_a_boundary_that_moves(train: Any, tokenizer: Any) -> None:
    """The report says which token the trainer leaves out of the prompt."""
    rows = [{"prompt": "Record: ", "completion": '{"name": "Ann"}'}]
    assert {"prompt_ends_in_space", "boundary_moves"} == set(
        faults(dataset_check.check(rows, tokenizer))
    )
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
    beside = {"prompt": "Hi", "completion": " Hello", "text": "Hi Hello"}
    assert train([beside], tokenizer).train_dataset[0]["labels"][-1] != tokenizer.eos_token_id
    assert dataset_check.check([chat]).mapping and dataset_check.check([beside]).mapping


def test_what_pad_equal_to_eos_does(train: Any) -> None:
    """The finding's two claims: one collator still learns eos, the other masks it."""
    from transformers import DataCollatorForLanguageModeling

    tokenizer = make_tokenizer("<|end|>")
    eos = tokenizer.eos_token_id
    trainer = train([{"text": "Hello"}], tokenizer)
    row = {"input_ids": trainer.train_dataset[0]["input_ids"]}
    assert row["input_ids"][-1] == eos
    assert trainer.data_collator([row])["labels"][0, -1] == eos
    masked = DataCollatorForLanguageModeling(tokenizer, mlm=False)([row])["labels"]
    assert masked[0, -1] == -100


# --- the course's own datasets --------------------------------------------------------------------


@pytest.mark.parametrize("form", data.FORMS)
def test_tickets_are_sound(form: str, tokenizer: Any) -> None:
    """The course's own dataset must pass the course's own check, in each of its forms."""
    report = dataset_check.check(data.load("tickets", form=form), tokenizer, max_length=None)
    assert report.findings == ()
    assert report.format == form and report.mapping == ""
