"""The page of errors says what is said today: each of its texts is provoked for real and compared.

The entries stand in book/troubleshooting.yaml. One that claims to be raised, or to pass in silence,
has a function of its name below; one of older versions has one that shows it gone.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import re
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import chdir
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import adapter_types
import pytest
import torch
import transformers
import yaml
from accelerate.data_loader import prepare_data_loader
from accelerate.logging import MultiProcessAdapter
from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError
from helpers import CALM
from peft import (
    LoraConfig,
    MissConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    import_utils,
)
from peft.utils.hotswap import hotswap_adapter
from test_bitsandbytes_fix import change_of_gradients
from tokenizers.processors import TemplateProcessing
from torch import distributed as dist
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Phi3Config,
    Phi3ForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TRLCollator

from course_utils import hardware
from course_utils.paths import COURSE_ROOT, POCKET_MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = yaml.safe_load((COURSE_ROOT / "book" / "troubleshooting.yaml").read_text(encoding="utf-8"))
ENTRIES = {entry["id"]: entry for group in GROUPS for entry in group["entries"]}
# What provokes an entry, given a folder: it raises, it warns, or it returns a list of texts.
PROVOKE: dict[str, Callable[[Path], Any]] = {}
TEXTS = Dataset.from_dict({"text": ["the cat sat on the mat"] * 4})
LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4}


def provokes(name: str) -> Callable[[Callable], Callable]:
    """Register a function that provokes an entry."""

    def keep(function: Callable) -> Callable:
        PROVOKE[name] = function
        return function

    return keep


def message(call: Callable[[], Any]) -> str:
    """Return what a call raises, as Python prints it, else its warnings, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            return re.sub(r" \(\S*[/\\]__init__\.py\)$", "", text)
    return "\n".join(f"{w.category.__name__}: {w.message}" for w in caught)


def each(call: Callable[[Path, Any], Any], *given: Any) -> Callable[[Path], list[str]]:
    """Provoke one text with each value that is given."""
    return lambda folder: [message(lambda value=value: call(folder, value)) for value in given]


def messages(name: str, folder: Path) -> list[str]:
    """Return the texts that an entry's function provokes."""
    returned: list[Any] = []
    text = message(lambda: returned.append(PROVOKE[name](folder)))
    return returned[0] if returned and isinstance(returned[0], list) else [text]


def pocket(**options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, **options)


def classifier(**options: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(POCKET_MODEL, **options)


def new_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POCKET_MODEL)


def four_bit() -> Any:
    return pocket(quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def adapted(model: Any = None) -> Any:
    return get_peft_model(model or pocket(), LoraConfig(**LORA))


def prefix_tuning() -> PrefixTuningConfig:
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def trainer(folder: Path, rows: Any = TEXTS, **options: Any) -> SFTTrainer:
    """Return a trainer of one step; what is no argument of SFTTrainer goes to SFTConfig."""
    names = ("model", "peft_config", "formatting_func", "processing_class")
    own = {"model": str(POCKET_MODEL), "processing_class": new_tokenizer()}
    own |= {name: options.pop(name) for name in names if name in options}
    settings = CALM | {"max_steps": 1, "per_device_train_batch_size": 2} | options
    return SFTTrainer(args=SFTConfig(output_dir=str(folder), **settings), train_dataset=rows, **own)


def preferences(folder: Path, model: Any, **options: Any) -> DPOTrainer:
    """Return a DPO trainer on one pair."""
    pair = rows(prompt=["the cat"], chosen=[" sat on the mat"], rejected=[" sat on me"])
    return DPOTrainer(
        model, args=DPOConfig(output_dir=str(folder), gradient_checkpointing=False, **CALM),
        train_dataset=pair, eval_dataset=pair, processing_class=new_tokenizer(), **options,
    )  # fmt: skip


def seen(*kinds: str) -> list[str]:
    """Return the entries of some kinds."""
    return [name for name, entry in ENTRIES.items() if entry["seen"] in kinds]


def test_every_claim_has_a_function() -> None:
    """An entry that nobody tries would stay when its text has changed."""
    assert set(seen("raised", "silent", "older")) == PROVOKE.keys()
    assert len(ENTRIES) == sum(len(group["entries"]) for group in GROUPS), "an id is used twice"


@pytest.mark.parametrize("name", seen("raised"))
def test_the_text_is_the_one_that_is_raised(name: str, tmp_path: Path) -> None:
    """A reader searches for the exact text; one that a release has changed would not be found."""
    found = messages(name, tmp_path)
    expected = ENTRIES[name]["text"].strip().split("\n\n")
    assert len(found) == len(expected), found
    for text, real in zip(expected, found, strict=True):
        if text.endswith(" …"):
            assert " ".join(real.split()).startswith(" ".join(text[:-2].split())), real
        else:
            assert text == real or text in real.splitlines(), real


@pytest.mark.parametrize("name", seen("silent", "older"))
def test_silence_and_what_is_over(name: str, tmp_path: Path) -> None:
    """What no error tells, and what today's versions no longer do; each asserts it itself."""
    PROVOKE[name](tmp_path)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if "found" in e])
def test_what_cannot_be_provoked_stands_in_the_library(name: str) -> None:
    """An error of several GPUs, or of the hub, is at least still written in the source."""
    site = Path(transformers.__file__).parent.parent
    found, text = ENTRIES[name]["found"], ENTRIES[name]["text"]
    assert found["words"] in (site / found["file"]).read_text(encoding="utf-8")
    assert found["words"].strip() in text


# --- what one call raises --------------------------------------------------------------------

CHAT = rows(messages=[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
PAIRS = rows(prompt=["a"], completion=["b"])
PHI3 = Phi3Config(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                  num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)  # fmt: skip


def with_template(folder: Path, template: str | None, **options: Any) -> SFTTrainer:
    changed = new_tokenizer()
    changed.chat_template = template
    return trainer(folder, CHAT, processing_class=changed, **options)


def loaded(folder: Path, first: Any, later: Any, *, many: bool = True) -> Dataset:
    """Load a file of more than one part, in which a row after the first part is another one."""
    lines = [first | {"fill": "x" * 100}] * 200 + [later | {"fill": "x"}, first | {"fill": "x"}]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    size = 10_000 if many else file.stat().st_size
    options = {"split": "train", "cache_dir": str(folder / "cache"), "chunksize": size}
    return load_dataset("json", data_files=str(file), **options)


def cause_of_stop(folder: Path, found: list[Any]) -> None:
    """Raise what stands above the DatasetGenerationError; that the fix helps is asserted."""
    assert len(loaded(folder, *found, many=False)) == 202
    try:
        loaded(folder, *found)
    except DatasetGenerationError as error:
        raise error.__cause__ from None


PROVOKE |= {
    # Names that are gone.
    "sfttrainer-arguments": each(
        lambda _, old: SFTTrainer(str(POCKET_MODEL), **{old: None}),
        *"tokenizer max_seq_length dataset_text_field packing dataset_kwargs".split(),
        "model_init_kwargs",
    ),
    "sftconfig-arguments": each(
        lambda folder, old: SFTConfig(str(folder), **{old: 1}),
        *"max_seq_length dataset_batch_size num_of_sequences chars_per_token".split(),
    ),
    "training-arguments": each(
        lambda folder, old: TrainingArguments(str(folder), **{old: 1}),
        *"evaluation_strategy warmup_ratio group_by_length no_cuda logging_dir".split(),
        *"overwrite_output_dir save_safetensors".split(),
    ),
    "trl-names": each(
        lambda _, old: exec(f"from trl import {old}", {}),
        "DataCollatorForCompletionOnlyLM",
        "setup_chat_format",
    ),
    "load-in-4bit": lambda _: pocket(load_in_4bit=True),
    "gradient-checkpointing-name": lambda folder: TrainingArguments(
        str(folder), use_cpu=True, gradient_checkpointing=True
    ),
    # Adapters.
    "targets-not-found": lambda _: get_peft_model(pocket(), LoraConfig(target_modules=["c_attn"])),
    "targets-missing": lambda _: get_peft_model(Phi3ForCausalLM(PHI3), LoraConfig()),
    "lm-head": lambda folder: trainer(
        folder, peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    ),
    "tokens-tied": lambda folder: trainer(
        folder, peft_config=LoraConfig(**LORA, trainable_token_indices=[5])
    ).train(),
    "purely-quantized": lambda folder: trainer(folder, model=four_bit()),
    "peft-model-and-config": lambda folder: trainer(
        folder, model=adapted(), peft_config=LoraConfig(**LORA)
    ),
    "task-type": lambda _: LoraConfig(task_type="Causal LM"),
    "bias": lambda _: get_peft_model(pocket(), LoraConfig(**LORA, bias="true")),
    "merge-4-bit": lambda _: sorted(
        set(message(adapted(four_bit()).train().merge_and_unload).splitlines())
    ),
    "prompt-merge": lambda _: get_peft_model(
        pocket(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).merge_and_unload(),
    "prefix-checkpointing": lambda folder: trainer(folder, peft_config=prefix_tuning()).train(),
    "index-out-of-range": lambda _: pocket()(
        input_ids=torch.tensor([[pocket().config.vocab_size]])
    ),
    "target-out-of-bounds": lambda _: classifier(num_labels=3)(
        torch.tensor([[5, 6]]), labels=torch.tensor([3])
    ),
    "repo-id": lambda _: AutoModelForCausalLM.from_pretrained("../models/my/model"),
    # Precision and hardware.
    "flash-attention": lambda _: pocket(attn_implementation="flash_attention_2"),
    # Data.
    "generation-error": lambda folder: loaded(folder, {"a": None}, {"a": "b"}),
    "cast-array": each(
        cause_of_stop,
        [{"a": None}, {"a": "b"}],
        [{"a": None}, {"a": 5}],
        [{"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}],
    ),
    "parse-string": each(
        cause_of_stop, [{"a": 5}, {"a": "unknown"}], [{"a": "2024-02-07"}, {"a": "unknown"}]
    ),
    "column-names": lambda folder: cause_of_stop(folder, [{"a": 5}, {"a": 5, "b": 6}]),
    "features-aligned": lambda _: concatenate_datasets([rows(label=[7]), rows(label=["007"])]),
    "missing-column": each(trainer, rows(instruction=["a"], output=["b"]), rows(prompt=["a"])),
    "empty-dataset": lambda folder: trainer(folder, TEXTS.select([])),
    "none-row": lambda folder: trainer(folder, rows(text=["a", None])),
    "num-samples": lambda folder: trainer(
        folder, rows(prompt=["the cat sat on the mat"], completion=[" and slept"]), max_length=3
    ).train(),
    "eos-token": lambda folder: trainer(folder, eos_token="<EOS_TOKEN>"),
    "no-chat-template": lambda folder: with_template(folder, None),
    "assistant-only": lambda folder: with_template(
        folder,
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
        assistant_only_loss=True,
    ),
    "collator-with-labels": lambda _: DataCollatorForLanguageModeling(new_tokenizer(), mlm=False)(
        [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    ),
    "packing-length": lambda folder: trainer(folder, packing=True, max_length=None),
    "formatting-func": lambda folder: trainer(
        folder, PAIRS, formatting_func=lambda row: row["prompt"]
    ),
    "yaml-number": lambda folder: trainer(folder, **yaml.safe_load("learning_rate: 2e-4")).train(),
}


# --- what takes more ---------------------------------------------------------------------------


@provokes("dpo-adapter-name")
def _(folder: Path) -> None:
    preferences(folder, get_peft_model(pocket(), LoraConfig(**LORA), adapter_name="tuned"))


@provokes("image-processor")
def _(folder: Path) -> Any:
    shutil.copytree(POCKET_MODEL, folder / "model")
    file = folder / "model" / "tokenizer_config.json"
    named = json.loads(file.read_text("utf-8")) | {"processor_class": "Gemma3Processor"}
    file.write_text(json.dumps(named), "utf-8")
    return trainer(folder, model=str(folder / "model"), processing_class=None)


@provokes("dataset-script")
def _(folder: Path) -> None:
    (folder / "my_dataset.py").write_text("import datasets\n")
    load_dataset(str(folder / "my_dataset.py"))


@provokes("size-mismatch")
def _(folder: Path) -> None:
    model = pocket()
    model.resize_token_embeddings(len(new_tokenizer()) + 1)
    adapted(model).save_pretrained(folder)
    PeftModel.from_pretrained(pocket(), folder)


@provokes("frozen-adapter")
def _(folder: Path) -> None:
    adapted().save_pretrained(folder)
    for checkpointing in (True, False):  # the first trains on
        frozen = PeftModel.from_pretrained(pocket(), folder)
        trainer(folder, model=frozen, activation_checkpointing=checkpointing).train()


@provokes("quantized-head")
def _(folder: Path) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["q_proj"])
    pocket(quantization_config=config)(torch.tensor([[5, 6]]))


def resumed(folder: Path, targets: list[str], **options: Any) -> SFTTrainer:
    """Go on from a checkpoint that holds an adapter on q_proj."""
    saving = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    saving["lr_scheduler_type"] = "constant"
    config = LoraConfig(**LORA | {"target_modules": ["q_proj"]})
    trainer(folder, peft_config=config, learning_rate=1e-3, **saving).train()
    new = LoraConfig(**LORA | {"target_modules": targets})
    run = trainer(folder, peft_config=new, max_steps=2, **saving, **options)
    run.train(resume_from_checkpoint=True)
    return run


@provokes("other-parameters")
def _(folder: Path) -> None:
    resumed(folder, ["q_proj", "o_proj"])


@provokes("silent-resume")
def _(folder: Path) -> None:
    run = resumed(folder, ["q_proj"], learning_rate=1e-5)
    assert [row["learning_rate"] for row in run.state.log_history[:2]] == [1e-3] * 2


@provokes("second-time")
def _(folder: Path) -> list[str]:
    model = pocket()
    adapted(model)
    lines = message(lambda: adapted(model)).splitlines()
    return [line for line in lines if line.startswith("UserWarning")]


@provokes("no-padding-token")
def _(folder: Path) -> None:
    model = classifier()
    model.config.pad_token_id = None
    model(torch.tensor([[5, 6], [7, 8]]))


@provokes("bf16-on-cpu")
def _(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU that has bfloat16 is here: nothing to refuse")
    SFTConfig(str(folder))


@provokes("paged-on-cpu")
def _(folder: Path) -> list[str]:
    run = trainer(folder, optim="paged_adamw_32bit", peft_config=LoraConfig(**LORA))
    return [line for line in set(message(run.train).splitlines()) if "aged" in line]


@provokes("unscale-fp16")
def _(folder: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight.float() * 2).sum()).backward()
    scaler.unscale_(torch.optim.SGD([weight]))


@provokes("torchao")
def _(folder: Path) -> None:
    """Colab came with torchao 0.10.0: put one there, and ask as get_peft_model does."""
    (folder / "torchao").mkdir()
    (folder / "torchao" / "__init__.py").touch()
    (folder / "torchao-0.10.0.dist-info").mkdir()
    (folder / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0")
    import_utils.is_torchao_available.cache_clear()
    sys.path.insert(0, str(folder))
    try:
        adapted()
    finally:
        sys.path.remove(str(folder))
        import_utils.is_torchao_available.cache_clear()


@provokes("boundary")
def _(folder: Path) -> list[str]:
    """TRL logs it, once in a process."""
    MultiProcessAdapter.warning_once.cache_clear()  # another test may have had it logged
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("trl.trainer.sft_trainer")
    logger.addHandler(handler)
    try:
        trainer(folder, rows(prompt=["the cat sat "], completion=["on the mat"]))
    finally:
        logger.removeHandler(handler)
    return kept


@provokes("broken-file")
def _(folder: Path) -> None:
    adapted().save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    PeftModel.from_pretrained(pocket(), folder)


@provokes("no-checkpoint")
def _(folder: Path) -> None:
    with chdir(folder):
        run = trainer(Path("runs"))
        Path("runs").mkdir(exist_ok=True)
        run.train(resume_from_checkpoint=True)


# --- pairs and rewards -------------------------------------------------------------------------

CHOICES = rows(prompt=["the cat"] * 4, chosen=[" sat"] * 4, rejected=[" ran"] * 4)
QUESTIONS = rows(prompt=["the cat sat"] * 4)
MERELY = {"use_cpu": True, "bf16": False}


def dpo(folder: Path, rows: Any = CHOICES, model: Any = None, **own: Any) -> DPOTrainer:
    settings = CALM | {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 2}
    return DPOTrainer(
        model=model or pocket(), args=DPOConfig(str(folder), **settings), train_dataset=rows,
        processing_class=new_tokenizer(), **own,
    )  # fmt: skip


def grpo(folder: Path, reward: Callable, rows: Any = QUESTIONS, **options: Any) -> GRPOTrainer:
    """Train for a step with a reward function."""
    settings = CALM | {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4}
    settings |= {"num_generations": 2, "max_completion_length": 8} | options
    made = GRPOTrainer(
        model=pocket(), reward_funcs=reward, args=GRPOConfig(str(folder), **settings),
        train_dataset=rows, processing_class=new_tokenizer(),
    )  # fmt: skip
    made.train()
    return made


def logged(trainer: Any) -> dict[str, Any]:
    return {name: value for row in trainer.state.log_history for name, value in row.items()}


def reward_of_two(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0] * len(completions)


def reward_by_answer(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def reward_of_one(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0]


def reward_of_all(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


def reward_of_json(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(bool(json.loads(one))) for one in completions]


@provokes("preference-arguments")
def _(folder: Path) -> list[str]:
    calls = [
        *((DPOTrainer, {"model": "a", name: 1}) for name in ("beta", "tokenizer")),
        *((DPOConfig, {"output_dir": "a", name: 1}) for name in (
            "max_prompt_length", "max_completion_length", "rpo_alpha", "reference_free",
            "ref_adapter_name")),
        (GRPOConfig, {"output_dir": "a", "max_prompt_length": 1}),
    ]  # fmt: skip
    return [message(lambda made=made, given=given: made(**given)) for made, given in calls]


PROVOKE["preference-trainers"] = each(
    lambda folder, name: exec(f"from trl import {name}", {}),
    "PPOTrainer", "ORPOTrainer", "CPOTrainer", "OnlineDPOTrainer",
)  # fmt: skip
PROVOKE["grpo-groups"] = each(
    lambda folder, count: GRPOConfig(
        str(folder), **MERELY, per_device_train_batch_size=4, num_generations=count
    ),
    3, 1,
)  # fmt: skip


@provokes("preference-columns")
def _(folder: Path) -> None:
    dpo(folder, rows(prompt=["the cat"], completion=[" sat"]))


@provokes("reference-same")
def _(folder: Path) -> None:
    model = pocket()
    dpo(folder, model=model, ref_model=model)


@provokes("grpo-prompt")
def _(folder: Path) -> None:
    grpo(folder, reward_of_all, QUESTIONS.rename_column("prompt", "question"))


@provokes("grpo-temperature")
def _(folder: Path) -> None:
    grpo(folder, reward_of_all, temperature=0.0)


@provokes("reward-arguments")
def _(folder: Path) -> None:
    grpo(folder, reward_of_two)


@provokes("reward-column")
def _(folder: Path) -> None:
    grpo(folder, reward_by_answer)


PROVOKE["reward-length"] = each(grpo, reward_of_one, lambda completions, **kwargs: 1.0)


@provokes("reward-messages")
def _(folder: Path) -> None:
    grpo(folder, reward_of_json, rows(prompt=[[{"role": "user", "content": "a"}]] * 4))


@provokes("reward-json")
def _(folder: Path) -> None:
    grpo(folder, reward_of_json)


@provokes("silent-merged-reference")
def _(folder: Path) -> None:
    merged = changed(folder).merge_and_unload()
    run = dpo(folder, model=merged)
    run.train()
    assert abs(logged(run)["loss"] - 0.693) > 0.01
    kept = dpo(folder, model=merged, peft_config=LoraConfig(**LORA))
    kept.train()
    assert abs(logged(kept)["loss"] - 0.693) < 0.001


@provokes("silent-reference-copy")
def _(folder: Path) -> None:
    ids, changes = torch.arange(4, 12)[None], {}
    for start in ("pissa", True):
        config = LoraConfig(**LORA, init_lora_weights=start)
        model = get_peft_model(pocket(dtype=torch.float32), config).eval()
        with torch.no_grad():
            before = model(ids).logits
            dpo(folder, model=model)
            changes[start] = float((model.eval()(ids).logits - before).abs().max())
    assert changes[True] < 0.001 < 0.1 < changes["pissa"]


@provokes("silent-dpo-dropout")
def _(folder: Path) -> None:
    run = dpo(folder, peft_config=LoraConfig(**LORA, lora_dropout=0.1))
    drops = [m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert {*drops} == {0}


@provokes("silent-equal-rewards")
def _(folder: Path) -> None:
    said = logged(grpo(folder, reward_of_all))
    assert (said["loss"], said["grad_norm"], said["frac_reward_zero_std"]) == (0.0, 0.0, 1.0)
    assert logged(grpo(folder, lambda completions, **_: map(len, completions)))["grad_norm"] > 0


@provokes("silent-few-prompts")
def _(folder: Path) -> None:
    run = grpo(folder, reward_of_all, QUESTIONS.select([0]))
    assert run.state.global_step == 0 and logged(run)["train_loss"] == 0.0


# --- no message at all -----------------------------------------------------------------------


@provokes("silent-truncation")
def _(folder: Path) -> None:
    long = rows(text=["the cat sat on the mat " * 400])
    prepared = trainer(folder, long).train_dataset[0]
    assert len(prepared["input_ids"]) == 1024 < len(new_tokenizer()(long[0]["text"])["input_ids"])


@provokes("silent-target")
def _(folder: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_porj"])
    models = []
    assert "porj" not in message(lambda: models.append(get_peft_model(pocket(), config)))
    assert {name.rpartition(".")[2] for name in models[0].targeted_module_names} == {"q_proj"}


@provokes("silent-layers")
def _(folder: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], layers_to_transform=[])
    models = []
    assert "transform" not in message(lambda: models.append(get_peft_model(pocket(), config)))
    assert len(models[0].targeted_module_names) == pocket().config.num_hidden_layers


@provokes("silent-pattern-order")
def _(folder: Path) -> None:
    pattern = {"q_proj": 4, "layers.0.self_attn.q_proj": 32}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alpha_pattern=pattern)
    model = get_peft_model(pocket(), config)
    model.save_pretrained(folder)
    models = [model]
    loading = message(lambda: models.append(PeftModel.from_pretrained(pocket(), folder)))
    assert "alpha" not in loading and "pattern" not in loading
    layers = [one.get_base_model().model.layers[0].self_attn.q_proj for one in models]
    assert layers[1].scaling["default"] == 8 * layers[0].scaling["default"]


@provokes("silent-prefix")
def _(folder: Path) -> None:
    model = get_peft_model(pocket(dtype=torch.float32), prefix_tuning()).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        right = model(input_ids=ids).logits[:, -1]
        with model.disable_adapter():
            base = model(input_ids=ids).logits[:, -1]
    said = model.generate(
        input_ids=ids, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    ).logits[0]
    assert (said - base).abs().max() < 0.01 < (said - right).abs().max()


def changed(folder: Path, **options: Any) -> Any:
    """Save an adapter of the pocket model whose weights are not those of the start; return it."""
    model = get_peft_model(pocket(), LoraConfig(**LORA | options))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model.eval()


def differ(one: Any, other: Any) -> bool:
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        return float((one.eval()(ids).logits - other.eval()(ids).logits).abs().max()) > 0.1


@provokes("silent-dora")
def _(folder: Path) -> None:
    trained = changed(folder, use_dora=True)
    loaded = []
    said = message(lambda: loaded.append(AutoModelForCausalLM.from_pretrained(folder)))
    assert "magnitude" not in said
    assert differ(loaded[0], trained)
    assert not differ(PeftModel.from_pretrained(pocket(), folder), trained)


@provokes("silent-hotswap")
def _(folder: Path) -> None:
    model, other = changed(folder / "first"), changed(folder / "other", lora_alpha=64)
    hotswap_adapter(model, str(folder / "other"), "default", torch_device="cpu")
    assert not differ(model, other)
    model.save_pretrained(folder / "saved")
    assert differ(PeftModel.from_pretrained(pocket(), folder / "saved"), other)


@provokes("bone")
def _(folder: Path) -> None:
    model = get_peft_model(pocket(), MissConfig(task_type="CAUSAL_LM", r=4))
    model.save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text("utf-8").replace('"MISS"', '"BONE"'), "utf-8")
    PeftModel.from_pretrained(pocket(), folder)


@provokes("new-adapter-old-peft")
def _(folder: Path) -> None:
    changed(folder)
    config = folder / "adapter_config.json"
    more = json.loads(config.read_text("utf-8")) | {"a_setting_of_tomorrow": 1}
    config.write_text(json.dumps(more), "utf-8")
    assert "a_setting_of_tomorrow" in message(lambda: PeftModel.from_pretrained(pocket(), folder))


@provokes("load-adapter-save")
def _(folder: Path) -> None:
    changed(folder / "adapter")
    model = pocket()
    model.load_adapter(str(folder / "adapter"))
    model.save_pretrained(folder / "again")


@provokes("silent-warmup")
def _(folder: Path) -> None:
    rates = {}
    for name in ("constant", "constant_with_warmup"):
        run = trainer(folder, lr_scheduler_type=name, warmup_steps=2, learning_rate=0.01)
        run.create_optimizer_and_scheduler(num_training_steps=4)
        rates[name] = run.lr_scheduler.get_last_lr()[0]
    assert rates == {"constant": 0.01, "constant_with_warmup": 0.0}


@provokes("silent-quant-type")
def _(folder: Path) -> None:
    configs = []
    typo = {"load_in_4bit": True, "bnb_4bit_quanttype": "nf4"}
    assert message(lambda: configs.append(BitsAndBytesConfig(**typo))) == ""
    assert configs[0].bnb_4bit_quant_type == BitsAndBytesConfig(True).bnb_4bit_quant_type == "fp4"


@provokes("silent-end")
def _(folder: Path) -> None:
    end = new_tokenizer()
    end.pad_token = end.eos_token
    ids, last = [5, 6, 7, end.eos_token_id], end.eos_token_id
    theirs = DataCollatorForLanguageModeling(end, mlm=False)([{"input_ids": ids}])["labels"]
    trls = TRLCollator(pad_token_id=last)([{"input_ids": ids, "labels": ids}])["labels"]
    assert (theirs[0, -1], trls[0, -1]) == (-100, last)


@provokes("silent-divergence")
def _(folder: Path) -> None:
    run = trainer(folder, learning_rate=1e10, max_steps=4, logging_steps=1,
                  lr_scheduler_type="constant")  # fmt: skip
    run.train()
    last = [row for row in run.state.log_history if "loss" in row][-1]
    assert last["loss"] == 0
    assert last["grad_norm"] != last["grad_norm"], "it is not a number"


@provokes("silent-float32")
def _(folder: Path) -> None:
    half = folder / "half"
    pocket(dtype=torch.bfloat16).save_pretrained(half)
    new_tokenizer().save_pretrained(half)
    assert AutoModelForCausalLM.from_pretrained(half).dtype == torch.bfloat16
    assert trainer(folder, model=str(half)).model.dtype == torch.float32
    kept = trainer(folder, model=str(half), model_init_kwargs={"dtype": "bfloat16"})
    assert kept.model.dtype == torch.bfloat16


@provokes("silent-autocast")
def _(folder: Path) -> None:
    run = trainer(folder, bf16=True, peft_config=LoraConfig(**LORA))
    run.train()
    run.save_model(folder / "adapter")
    loaded = PeftModel.from_pretrained(pocket(dtype=torch.float32), folder / "adapter")

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(5, 37)[None]).logits

    assert not torch.equal(logits(run.model), logits(loaded))
    plain = run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
    assert torch.equal(logits(plain), logits(loaded))


@provokes("silent-completion-only")
def _(folder: Path) -> None:
    run = trainer(folder, completion_only_loss=True)
    assert -100 not in next(iter(run.get_train_dataloader()))["labels"][0].tolist()


@provokes("silent-stale-map")
def _(folder: Path) -> None:
    file, source = folder / "my_module.py", folder / "rows.txt"
    code = "def clean(row):\n    return {'a': row['a'] + '%s'}\n"
    again = {"load_from_cache_file": False}
    lines = loaded(folder, {"a": "b"}, {"a": "c"})

    def read(changed: float = 0) -> Any:
        yield from ({"a": line} for line in source.read_text("utf-8").split())

    def texts(**options: Any) -> Any:
        return Dataset.from_generator(read, cache_dir=str(folder / "cache"), **options)["a"][:]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for word in ("one", "three"):
            file.write_text(code % word, "utf-8")
            source.write_text(word, "utf-8")
            clean = importlib.reload(importlib.import_module("my_module")).clean
            kept, said = lines.map(clean)["a"][0], texts()
            assert lines.map(clean, **again)["a"][0] == f"b{word}"
            assert texts(gen_kwargs={"changed": len(word)}) == [word]
    del sys.modules["my_module"]
    assert (kept, said) == ("bone", ["one"])


@provokes("silent-dates")
def _(folder: Path) -> None:
    read = loaded(folder, {"a": "2024-02-07"}, {"a": "2024-02-08"})
    assert read[0]["a"] == datetime(2024, 2, 7)
    lines = (folder / "rows.jsonl").read_text("utf-8").splitlines()
    assert Dataset.from_list([json.loads(line) for line in lines])[0]["a"] == "2024-02-07"


@provokes("silent-quotes")
def _(folder: Path) -> None:
    read = loaded(folder, {"completion": "so"}, {"completion": 5})
    assert (read[0]["completion"], read[-1]["completion"]) == ("so", '"so"')


@provokes("silent-dropped")
def _(folder: Path) -> None:
    pairs = rows(prompt=["the cat sat on the mat " * 9, "a"], completion=[" slept", " b"])
    assert len(trainer(folder, pairs, max_length=16).train_dataset) == 1


@provokes("silent-wrapped")
def _(folder: Path) -> None:
    columns = {
        how: trainer(folder, packing=True, packing_strategy=how, max_length=16).train_dataset
        for how in ("bfd", "wrapped")
    }
    assert "seq_lengths" in columns["bfd"].column_names
    assert "seq_lengths" not in columns["wrapped"].column_names


@provokes("silent-two-starts")
def _(folder: Path) -> None:
    begins = new_tokenizer()
    start, number = begins.eos_token, begins.eos_token_id  # any special token serves
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, number)]
    )
    rendered = f"{start}the cat sat"
    assert begins(rendered)["input_ids"][:2] == [number, number]
    assert begins(rendered, add_special_tokens=False)["input_ids"].count(number) == 1


@provokes("silent-soft-prompt")
def _(folder: Path) -> None:
    for kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        found = adapter_types.measure(kind)
        assert not found["batched"]["holds"] and not found["cached"]["holds"]
        assert found["course"] == "in batches"


@provokes("silent-dpo-reference")
def _(folder: Path) -> None:
    config = LoraConfig(**LORA, init_lora_weights="pissa")
    first = preferences(folder, pocket(), peft_config=config).evaluate()
    assert abs(first["eval_loss"] - math.log(2)) > 1e-2 < abs(first["eval_rewards/margins"])
    plain = preferences(folder, pocket(), peft_config=LoraConfig(**LORA)).evaluate()
    assert abs(plain["eval_loss"] - math.log(2)) < 1e-4


@provokes("silent-4-bit")
def _(folder: Path) -> None:
    if "avx512_bf16" not in hardware._cpu_flags():
        pytest.skip("this CPU has no avx512_bf16: no fault here")
    assert change_of_gradients() > 0.5


# --- messages of older versions ----------------------------------------------------------------


@provokes("older-no-grad")
def _(folder: Path) -> None:
    """Checkpointing over a frozen base, with nothing of what it once needed."""
    run = trainer(folder, activation_checkpointing=True, peft_config=LoraConfig(**LORA))
    run.train()
    trained = [p for name, p in run.model.named_parameters() if "lora_B" in name]
    assert all(bool(p.any()) for p in trained)


@provokes("older-tokenizer")
def _(folder: Path) -> None:
    new_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    saved = json.loads(file.read_text("utf-8"))
    again = AutoTokenizer.from_pretrained(folder)
    assert saved["tokenizer_class"] == type(again).__name__ == "TokenizersBackend"
    # With the way round for version 4 it stays the same.
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"
    del saved["extra_special_tokens"]
    file.write_text(json.dumps(saved), "utf-8")
    text = "<|user|>\nthe cat sat"
    assert AutoTokenizer.from_pretrained(folder)(text) == again(text)


@provokes("older-response-key")
def _(folder: Path) -> None:
    assert message(lambda: exec("from trl import DataCollatorForCompletionOnlyLM", {}))


# --- several processes -------------------------------------------------------------------------

OTHER = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=1, world_size=2)
dist.new_group(timeout=timedelta(seconds=1))
"""


def first_of_two(folder: Path, other: str) -> str:
    """Return what the first of two processes says when the other does not do its part."""
    store = str(folder / f"store-{len(other)}")
    process = subprocess.Popen([sys.executable, "-c", OTHER + other, store])
    try:
        one = dist.FileStore(store, 2)
        dist.init_process_group("gloo", store=one, rank=0, world_size=2)
        group = dist.new_group(timeout=timedelta(seconds=1))
        if "exit" in other:
            process.wait()
        return message(lambda: dist.all_reduce(torch.ones(1), group=group))
    finally:
        process.kill()
        process.wait()
        dist.destroy_process_group()


@provokes("closed-by-peer")
def _(folder: Path) -> list[str]:
    return [first_of_two(folder, "os._exit(0)")]


@provokes("others-timed-out")
def _(folder: Path) -> list[str]:
    return [first_of_two(folder, "time.sleep(60)")]


@provokes("unused-parameters")
def _(folder: Path) -> None:
    """A token visits one of eight experts, each with an adapter of its own."""
    shape = {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 2}
    mixture = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(
        vocab_size=64, num_heads=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        num_experts=8, decoder_start_token_id=0, **shape,
    ))  # fmt: skip
    model = get_peft_model(mixture, LoraConfig(r=2, target_modules=["wi", "wo"]))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            ids = torch.tensor([[5, 6]])
            parallel(input_ids=ids, labels=ids).loss.backward()
    finally:
        dist.destroy_process_group()


@provokes("no-such-checkpoint")
def _(folder: Path) -> None:
    trainer(folder).train(resume_from_checkpoint="true")


@provokes("silent-divided-twice")
def _(folder: Path) -> None:
    paths = [folder / f"{i}.jsonl" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_text("".join(json.dumps({"row": 6 * i + j}) + "\n" for j in range(6)), "utf-8")
    stream = load_dataset("json", data_files=list(map(str, paths)), split="train", streaming=True)
    seen: dict[bool, list[int]] = {}
    for by_hand in (True, False):
        loaders = [
            prepare_data_loader(
                DataLoader(split_dataset_by_node(stream, rank, 2) if by_hand else stream),
                num_processes=2, process_index=rank, dispatch_batches=False,
            )
            for rank in range(2)
        ]  # fmt: skip
        seen[by_hand] = sorted(int(row["row"]) for loader in loaders for row in loader)
    assert seen[False] == list(range(24))
    assert len(set(seen[True])) == len(seen[True]) == 12


@provokes("silent-own-loss")
def _(folder: Path) -> None:
    """The same four rows at once, and in two batches of two."""

    def mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return torch.nn.functional.cross_entropy(
            outputs["logits"][:, :-1].transpose(1, 2), labels[:, 1:]
        )

    ids = new_tokenizer()(TEXTS["text"][0])["input_ids"]
    data = rows(input_ids=[ids] * 4, labels=[ids] * 4)
    lengths = []
    for batches in (1, 2):
        args = TrainingArguments(
            str(folder), max_steps=1, logging_steps=1, gradient_accumulation_steps=batches,
            per_device_train_batch_size=4 // batches, **CALM,
        )  # fmt: skip
        run = transformers.Trainer(pocket(), args, train_dataset=data, compute_loss_func=mean)
        run.train()
        lengths.append(run.state.log_history[0]["grad_norm"])
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=1e-3)
