"""The command line: exit codes, JSON, and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import python
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from course_utils import compare, configs
from course_utils.__main__ import main
from course_utils.paths import COURSE_ROOT, DATA, POCKET_MODEL
from preflight.__main__ import main as preflight_main
from preflight.memory_plan import predict


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python without any library: -S leaves site-packages out."""
    code = f"import sys; sys.path.insert(0, {str(COURSE_ROOT)!r})\n"
    code += f"from course_utils.__main__ import main; sys.exit(main({list(arguments)!r}))"
    return python("-I", "-S", "-c", code)


def test_a_python_without_the_libraries_is_told_to_install_them() -> None:
    """The first thing that goes wrong: the system's Python instead of the course's."""
    done = bare("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAIL  packaging: not installed")
    assert "fix: pip install -r requirements.txt" in done.stdout
    data = json.loads(bare("doctor", "--json").stdout)
    assert data["ok"] is False
    assert data["checks"][0]["status"] == "FAIL"
    done = bare("check", "some.jsonl")
    assert done.returncode == 2
    assert "pip install -r requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_prints_lines_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The bug form asks for the text; scripts ask for JSON."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("OK    torch: ") for line in lines)
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    assert {"checks", "machine", "recommendation"} <= set(data)


def test_check_finds_and_says_so_by_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """1 where the data should not be trained on, 0 where it can be."""
    good = str(DATA / "tickets" / "prompt_completion" / "train.jsonl")
    assert main(["check", good, "--tokenizer", str(POCKET_MODEL), "--max-length", "320"]) == 0
    assert main(["check", str(DATA / "bad" / "bad.jsonl"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out.split("\n{", 1)[1].join(["{", ""]))
    assert report["findings"]


def test_a_call_without_a_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse's own message stands."""
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage: python -m course_utils" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_fault(unbuffered: str) -> None:
    """`memory --list | head -1` closes the pipe while there is more to print."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "course_utils", "memory", "--list"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", configs.shipped())
def test_memory_answers_for_every_shipped_shape(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network: the categories, their sum, the overhead, and where it fits."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["memory", "--model", name, "--method", "qlora", "--length", "256"]) == 0
    printed = capsys.readouterr().out
    for words in ("weights", "adapters", "sum", "overhead (0.6 GiB + 8%)", "fits: "):
        assert words in printed


def test_memory_for_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """How far it goes where it fits; what to change where it does not, and exit code 1."""
    given = ["memory", "--model", str(POCKET_MODEL), "--length", "128", "--overhead", "0"]
    assert main([*given, "--gpu", "T4"]) == 0
    assert "largest batch" in capsys.readouterr().out
    assert main([*given, "--gpu", "0.02", "--no-gradient-checkpointing", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    (row,) = data["rows"]
    assert row["fits"] is False
    assert row["needed"] == data["memory"]["lora"]["peak"] + row["overhead"]
    assert data["memory"]["lora"]["settings"]["gradient_checkpointing"] is False


def test_memory_options_reach_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that is accepted and ignored would be a wrong plan."""
    given = ["memory", "--model", str(POCKET_MODEL), "--length", "128", "--json"]
    peaks = {}
    for options in (
        (), ("--method", "full"), ("--batch-size", "4"), ("--no-gradient-checkpointing",),
        ("--optimizer", "sgd"), ("--dtype", "float32"), ("--loss", "full"), ("--shards", "2"),
        ("--rank", "8"),
    ):  # fmt: skip
        assert main([*given, *options]) == 0
        peaks[options] = json.loads(capsys.readouterr().out)["memory"]
    plain = peaks.pop(())
    assert all(found != plain for found in peaks.values())


ON_Q_AND_V = {"r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
SAVED = ON_Q_AND_V | {"peft_type": "LORA", "inference_mode": True, "base_model_name_or_path": "x"}


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (["--targets", "q_proj,v_proj", "--rank", "8"], {"peft_config": LoraConfig(**ON_Q_AND_V)}),
        (
            ["--targets", r".*\.(q|v)_proj", "--rank", "8"],
            {"peft_config": LoraConfig(**ON_Q_AND_V)},
        ),
        (["--targets", "all-linear"], {}),
        (["--peft-config", "adapter_config.json"], {"peft_config": LoraConfig(**ON_Q_AND_V)}),
        (["--peft-config", "."], {"peft_config": LoraConfig(**ON_Q_AND_V)}),
        (["--peft-config", "lora.yaml"], {"peft_config": LoraConfig(**ON_Q_AND_V)}),
        (
            ["--peft-config", "ia3.yaml"],
            {"peft_config": IA3Config(target_modules=["v_proj"], feedforward_modules=[])},
        ),
        (["--trainer", "sft"], {}),
        (["--trainer", "trainer"], {"loss": "full"}),
        (
            ["--trainer", "trainer", "--mixed-precision", "bf16"],
            {"loss": "full", "mixed_precision": "bf16"},
        ),
        (["--mixed-precision", "no"], {"mixed_precision": "no"}),
        (
            ["--padding", "--no-gradient-checkpointing"],
            {"padding": True, "gradient_checkpointing": False},
        ),
        (["--attention", "eager"], {"attention": "eager"}),
        (["--gradient-accumulation-steps", "2"], {"gradient_accumulation_steps": 2}),
    ],
)
def test_memory_options_say_what_the_function_says(
    given: list[str],
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each as `predict` takes it: a name that means something else here would be a wrong plan."""
    monkeypatch.chdir(tmp_path)
    Path("adapter_config.json").write_text(json.dumps(SAVED), encoding="utf-8")
    Path("lora.yaml").write_text("r: 8\ntarget_modules: [q_proj, v_proj]\n", encoding="utf-8")
    Path("ia3.yaml").write_text(
        "peft_type: IA3\ntarget_modules: [v_proj]\nfeedforward_modules: []\n", encoding="utf-8"
    )
    plan = ["memory", "--model", str(POCKET_MODEL), "--length", "128", "--json"]
    assert main([*plan, *given]) == 0
    found = json.loads(capsys.readouterr().out)["memory"]["lora"]
    expected = predict(POCKET_MODEL, "lora", length=128, **settings).to_dict()
    assert found["phases"] == expected["phases"]


def test_the_progress_of_a_search_is_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    """It is for a terminal; a log or a pipe gets the answer alone."""
    given = ["memory", "--model", str(POCKET_MODEL), "--length", "128", "--gpu", "T4", "--json"]
    assert main(given) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert printed.err == ""


def test_memory_lists_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    """Names to copy."""
    assert main(["memory", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "llama-3.1-8b" in printed
    assert "RTX 4090" in printed
    assert main(["memory", "--list", "--json"]) == 0
    assert "qwen3-8b" in json.loads(capsys.readouterr().out)["models"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--length", "-5"], "-5"),
        (["--loss", "half"], "half"),
        (["--rank", "0"], "positive integer"),
        (["--rank", "8", "--method", "full"], "no adapter"),
        (["--targets", "q_proj", "--method", "full"], "no adapter"),
        (["--targets", "q_proj,k_porj"], "'k_porj' (meant: k_proj?). Allowed are embed_tokens, q_"),
        (["--peft-config", "none.json"], "where no file is"),
        (["--peft-config", "new.yaml"], "'LORA9' in 'new.yaml', which this version of peft"),
        (["--peft-config", "name.yaml"], "has rang, which LoraConfig does not take"),
        (["--peft-config", "list.yaml"], "holds a list"),
        (["--peft-config", "broken.json"], "cannot be read"),
        (["--peft-config", "lora.yaml", "--rank", "8"], "--rank is given with --peft-config"),
        (["--trainer", "sft", "--loss", "full"], "whose loss is fused"),
    ],
)
def test_memory_says_what_was_wrong(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and a message with what was given. (book/bad_input.yaml has the rest.)"""
    monkeypatch.chdir(tmp_path)
    files = {
        "lora.yaml": "r: 8",
        "new.yaml": "peft_type: LORA9",
        "name.yaml": "rang: 8",
        "list.yaml": "- r",
        "broken.json": "{",
    }
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    assert main(["memory", "--model", "llama-3.1-8b", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_modules_prints_the_table_a_check_or_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, by a shipped name; 1 for a wrong name, as text and as JSON."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["modules", "llama-3.2-1b", "--rank", "4"]) == 0
    printed = capsys.readouterr().out
    assert "adapters of rank 4" in printed
    assert "down_proj" in printed
    assert main(["modules", "llama-3.2-1b", "--check", "q_proj,k_porj", "--json"]) == 1
    names = json.loads(capsys.readouterr().out)["check"]["names"]
    assert [(n["name"], n["count"], n["nearest"]) for n in names] == [
        ("q_proj", 16, ""),
        ("k_porj", 0, "k_proj"),
    ]
    assert main(["modules", str(POCKET_MODEL), "--check", r".*\.(q|v)_proj"]) == 0
    assert main(["modules", str(POCKET_MODEL), "--suggest", "attention", "--check", "q_proj"]) == 0
    printed = capsys.readouterr().out
    assert "LoraConfig(r=8, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'])" in printed
    assert "every name matches" in printed


def test_compare_lists_and_writes_its_experiments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What to choose from, and a file to begin with; neither trains anything."""
    assert main(["compare", "--list"]) == 0
    assert "methods: full, lora," in capsys.readouterr().out
    assert main(["compare", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"name", "training", "seeds"} <= set(listed[0])
    file = tmp_path / "mine.yaml"
    assert main(["compare", "--methods", "lora, ia3", "--seeds", "2", "--write", str(file)]) == 0
    assert [(e.name, e.seeds) for e in compare.read(file)] == [("lora", (0, 1)), ("ia3", (0, 1))]
    assert not list(tmp_path.glob("*/"))


def test_adapter_says_what_a_folder_will_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where it fits its base, 1 where not, as text and as JSON."""
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL)
    get_peft_model(model, LoraConfig(**ON_Q_AND_V)).save_pretrained(tmp_path)
    assert main(["adapter", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "LORA rank 8 alpha 8 on q_proj, v_proj" in printed
    assert "vLLM 0.33.0: takes it" in printed
    assert main(["adapter", str(tmp_path), "--base", "llama-3.2-1b", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert {"shapes", "names"} <= {one["code"] for one in data["findings"]}
    assert {one["effect"] for one in data["served"]} >= {"takes"}


RECIPE = """
model_name_or_path: llama-3.2-1b
use_peft: true
lora_target_modules: [q_proj, {target}]
learning_rate: {rate}
bf16: true
datasets:
- path: json
  data_files: train.jsonl
"""


@pytest.mark.parametrize(
    ("target", "rate", "status", "words"),
    [
        ("v_proj", "2.0e-4", 0, "Nothing found"),
        ("v_porj", "2.0e-4", 1, "Write v_proj"),
        ("v_proj", "0", 1, "learning_rate is 0"),
    ],
)
def test_the_settings_of_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target, rate, status, words
) -> None:
    """A recipe for a GPU is checked where there is none, and without the model's weights."""
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(target=target, rate=rate), encoding="utf-8")
    assert preflight_main(["training", str(file)]) == status
    assert words in capsys.readouterr().out
    assert preflight_main(["training", str(file), "--json"]) == status
    assert json.loads(capsys.readouterr().out)["ok"] is (status == 0)


def test_a_recipe_that_cannot_be_read_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight_main(["training", str(tmp_path / "none.yaml")]) == 2
    assert "is not a file" in capsys.readouterr().err
    file = tmp_path / "recipe.yaml"
    file.write_text("model_name_or_path: llama-3.2-1b\nlearning_rat: 1\n", encoding="utf-8")
    assert preflight_main(["training", str(file)]) == 2
    assert "learning_rat" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["modules", "llama-3.2-1b", "--suggest", "attention"], ["memory", "--list"]]
)
def test_both_packages_answer_the_same(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == preflight_main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
