"""Bad input, and what is said of it: each case of book/bad_input.yaml is given for real.

What a case gives is executed as it stands in the table. The words of the table must appear in what
the course or a library says, before any training (or during it, where it diverges). No file may be
written or changed, and a command ends without a traceback.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import traceback
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset, load_dataset
from datasets.distributed import split_dataset_by_node
from helpers import CALM, python, served
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from test_models import Hub, ask
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from course_utils import data, gguf_files, hardware, models, quantization
from course_utils.__main__ import main
from course_utils.divergence import StopOnDivergence
from course_utils.paths import COURSE_ROOT, POCKET_MODEL
from course_utils.serving import serve_gguf
from preflight import dataset_check, lora_targets
from preflight.adapter_check import as_plain_lora
from preflight.dataset_check.rules import RULES
from preflight.training_check import check_resume, check_settings, check_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = yaml.safe_load((COURSE_ROOT / "book" / "bad_input.yaml").read_text(encoding="utf-8"))
CASES = [case for group in TABLE for case in group["cases"]]
LIBRARIES = {"accelerate", "argparse", "datasets", "peft", "torch", "transformers", "trl"}
HUB = ("gated/model", "absent/model", "nobody/no-such-model")  # the last one without a network
MESSAGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {}


def given_by(how: str) -> Callable[[Callable], Callable]:
    """Register how the cases of a group are given; the function returns what is said."""

    def keep(function: Callable) -> Callable:
        MESSAGES[how] = function
        return function

    return keep


def sft_config(**arguments: Any) -> SFTConfig:
    """Return the arguments with what a test needs: no GPU, two steps, no file."""
    return SFTConfig(
        **{
            **CALM, "output_dir": "out", "max_steps": 2, "activation_checkpointing": False,
            **arguments,
        }
    )  # fmt: skip


def names() -> dict[str, Any]:
    """Return what the code of a case may use; what its setup sets takes the place of these."""
    return {
        "data": data, "dataset_check": dataset_check, "lora_targets": lora_targets,
        "gguf_files": gguf_files, "serve_gguf": serve_gguf, "as_plain_lora": as_plain_lora,
        "quantization": quantization, "torch": torch, "json": json, "Path": Path,
        "Dataset": Dataset, "load_dataset": load_dataset,
        "LoraConfig": LoraConfig, "AdaLoraConfig": AdaLoraConfig, "SFTConfig": sft_config,
        "BitsAndBytesConfig": BitsAndBytesConfig,
        "LlamaConfig": LlamaConfig, "LlamaForCausalLM": LlamaForCausalLM,
        "BertConfig": BertConfig, "T5Config": T5Config,
        "checked_arguments": quantization.checked_arguments, "check_resume": check_resume,
        "SFTTrainer": SFTTrainer, "IterableDatasetShard": IterableDatasetShard,
        "split_dataset_by_node": split_dataset_by_node, "recipe": recipe,
        "USER": {"role": "user", "content": "Where is my lamp?"},
        "REPLY": {"role": "assistant", "content": "On its way."},
        "tokenizer": AutoTokenizer.from_pretrained(POCKET_MODEL),
        "base": str(POCKET_MODEL),
        "rows": Dataset.from_dict(
            {"prompt": ["the cat sat"] * 4, "completion": [" on the mat"] * 4}
        ),
        "peft_config": LoraConfig(target_modules=["q_proj", "v_proj"]),
        "pairs": Dataset.from_dict(
            {"prompt": ["the cat"] * 4, "chosen": [" sat"] * 4, "rejected": [" ran"] * 4}
        ),
        "prompts": Dataset.from_dict({"prompt": ["the cat sat"] * 4}),
    }  # fmt: skip


def recipe(arguments: str) -> str:
    """Return what lesson 10's script says that is started as one process."""
    here = COURSE_ROOT / "notebooks"
    script = here / "recipes" / "train.py"
    variables = {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1"}
    done = python(script, *arguments.split(), cwd=here, **variables)
    assert done.returncode != 0
    return done.stderr


def value(code: str, known: dict[str, Any]) -> Any:
    """Run code and return the value of its last line."""
    tree = ast.parse(code)
    last = tree.body.pop()
    exec(compile(tree, "<given>", "exec"), known)
    return eval(compile(ast.Expression(last.value), "<given>", "eval"), known)


@given_by("code")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    return str(value(case["given"], known))


@given_by("adapter")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    given = value(case["given"], known)
    if case["by"] == "lora_targets.check_targets":
        return str(given)
    return from_training(case, sft_config(), known | {"peft_config": given})


@given_by("arguments")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    return from_training(case, value(case["given"], known), known)


@given_by("quantization")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    hardware.fix_bitsandbytes()
    if case.get("silent"):
        value(case["given"].replace("checked_arguments", "BitsAndBytesConfig"), known)
    config = value(case["given"], known)
    return from_training(case, sft_config(), known, quantization_config=config)


def from_training(
    case: dict[str, Any], args: SFTConfig, known: dict[str, Any], **options: Any
) -> str:
    """Go the way of a reader to a training, up to where something is said."""
    if case["by"] == "check_settings":
        return str(check_settings(args, known["peft_config"], known["base"]))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(known["base"], device_map="cpu", **options),
        args=args,
        train_dataset=known["rows"],
        processing_class=known["tokenizer"],
        peft_config=known["peft_config"],
        callbacks=[StopOnDivergence()],
    )
    report = str(check_trainer(trainer)) if case["by"] == "check_trainer" else ""
    if case.get("silent") or not report:
        trainer.train()
    return report


@given_by("preference")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    calm = CALM | {"max_steps": 1, "per_device_train_batch_size": 4}
    known |= {"merged": merged(known["base"])}

    def built(kind: type, config: type, rows: Dataset, arguments: dict[str, Any]) -> Any:
        own = {name: arguments.pop(name) for name in OWN if name in arguments}
        return kind(
            **{"model": known["base"], **own}, args=config("out", **calm | arguments),
            train_dataset=rows, processing_class=known["tokenizer"],
        )  # fmt: skip

    def dpo(**arguments: Any) -> DPOTrainer:
        return built(DPOTrainer, DPOConfig, known["pairs"], arguments)

    def grpo(reward: Any, **arguments: Any) -> GRPOTrainer:
        few = {"num_generations": 2, "max_completion_length": 8, "reward_funcs": reward}
        return built(GRPOTrainer, GRPOConfig, known["prompts"], few | arguments)

    trainer = value(case["given"], known | {"dpo": dpo, "grpo": grpo})
    report = str(check_trainer(trainer)) if case["by"] == "check_trainer" else ""
    if case.get("silent") or not report:
        trainer.train()
    return report


OWN = ("model", "ref_model", "reward_funcs")


def merged(base: str) -> Any:
    """Return the model with an adapter that does something, merged in memory."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return model.merge_and_unload().requires_grad_(True)


@given_by("model")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    name = case["given"].partition("=")[2].strip('"')
    if name in HUB:
        return asked()[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(models.VARIABLE, name)
        return str(models.base_model())


@cache
def asked() -> dict[str, str]:
    """Return what is said of models that the hub refuses, or that cannot be asked for."""
    with TemporaryDirectory() as folder, served(Hub) as (address, _):
        refused = ask(list(HUB[:2]), Path(folder), HF_ENDPOINT=address)
        return refused | ask(list(HUB[2:]), Path(folder), HF_HUB_OFFLINE="1")


@given_by("command")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    code, printed = run(shlex.split(case["given"])[3:], case.get("process", False))
    assert code == case.get("exit", 2), printed
    assert "Traceback" not in printed
    return printed


@given_by("experiments")
def _(case: dict[str, Any], known: dict[str, Any]) -> str:
    code, printed = run(["compare", "mine.yaml", "--output", "results"])
    assert code == 2, printed
    assert "Traceback" not in printed
    return printed


def run(arguments: list[str], process: bool = False) -> tuple[int, str]:
    """Return the exit code of a command and what it printed."""
    if process:
        here = {"PYTHONPATH": str(COURSE_ROOT), "HF_HUB_OFFLINE": "1"}
        done = python("-m", "course_utils", *arguments, cwd=Path.cwd(), **here)
        return done.returncode, done.stdout + done.stderr
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse's
            code = stop.code
        except Exception:  # what Python prints then
            code = 1
            traceback.print_exc()
    return code, printed.getvalue()


def raised_by(error: Exception) -> str:
    """Return the library that raised an error, or "course_utils"."""
    text = str(error)
    if "unexpected keyword argument" in text:  # Python says it, of a class of a library
        return {"SFTConfig": "trl", "LoraConfig": "peft"}[text.partition(".")[0]]
    parts = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
    return parts[parts.index("site-packages") + 1] if "site-packages" in parts else "course_utils"


def files() -> dict[str, bytes]:
    """Return the files here with what is in them."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("how", "case"),
    [pytest.param(group["how"], case, id=case["id"]) for group in TABLE for case in group["cases"]],
)
def test_what_is_said_of_it(how: str, case: dict[str, Any], tmp_path: Path) -> None:
    """The words of the table, by whom it says; and no file comes, goes or changes."""
    with chdir(tmp_path):
        known = names()
        exec(case.get("setup", ""), known)
        if how == "experiments":
            Path("mine.yaml").write_text(case["given"], encoding="utf-8")
        before = files()
        try:
            message, by = MESSAGES[how](case, known), case["by"]
        except AssertionError:
            raise
        except Exception as error:
            message, by = str(error), raised_by(error)
        assert files() == before
    assert by == case["by"] or (by == "course_utils" and case["by"] not in LIBRARIES), message
    plain = " ".join(message.split())
    for part in ("wrong", "allowed", "do"):
        for words in case.get(part, "").split("…"):
            assert " ".join(words.split()) in plain, part
    if "finding" in case:
        assert re.search(rf"(ERROR|WARNING|INFO) +{case['finding']} ", message)


def test_the_table_is_whole() -> None:
    """60 cases or more, every fault that dataset_check.check knows, and what each has to say."""
    assert len({case["id"] for case in CASES}) == len(CASES) >= 60
    assert {case["finding"] for case in CASES if "finding" in case} == set(RULES)
    for case in CASES:
        there = {part for part in ("wrong", "allowed", "do") if case.get(part)}
        assert "wrong" in there
        if "note" not in case:  # a finding says what a fault does to training
            needed = {"do"} if "finding" in case else {"allowed", "do"}
            assert there & needed if case["by"] in LIBRARIES else needed <= there, case["id"]
