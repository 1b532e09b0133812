"""The page of errors says what is said today: each of its texts is provoked for real and compared.

The entries stand in book/troubleshooting.yaml. One that claims to be raised, or to pass in silence,
has a function of its name below; one of older versions has one that shows it gone.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from accelerate.logging import MultiProcessAdapter
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, import_utils
from test_bitsandbytes_fix import change_of_gradients
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Phi3Config,
    Phi3ForCausalLM,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TRLCollator

from course_utils import hardware
from course_utils.paths import COURSE_ROOT, POCKET_MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS = yaml.safe_load((COURSE_ROOT / "book" / "troubleshooting.yaml").read_text(encoding="utf-8"))
ENTRIES = {entry["id"]: entry for group in GROUPS for entry in group["entries"]}
PROVOKE: dict[str, Callable[[Path], list[str] | None]] = {}
TEXTS = Dataset.from_dict({"text": ["the cat sat on the mat"] * 4})
LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4}


def provokes(name: str) -> Callable[[Callable], Callable]:
    """Register a function that provokes an entry: it returns the texts that were said, if any."""

    def keep(function: Callable) -> Callable:
        PROVOKE[name] = function
        return function

    return keep


def said(call: Callable[[], Any]) -> str:
    """Return what a call raises, as Python prints it, else its warnings, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            text = "".join(traceback.format_exception_only(error)).strip()
            return re.sub(r" \(\S*[/\\]__init__\.py\)$", "", text)
    return "\n".join(f"{w.category.__name__}: {w.message}" for w in caught)


def pocket(**options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, **options)


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POCKET_MODEL)


def four_bit() -> Any:
    return pocket(quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def trainer(folder: Path, rows: Any = TEXTS, kind: Any = None, **options: Any) -> SFTTrainer:
    """Return a trainer of one step; what is no argument of SFTTrainer goes to SFTConfig."""
    own = {k: options.pop(k) for k in ("model", "peft_config", "formatting_func") if k in options}
    settings = {
        "use_cpu": True, "bf16": False, "max_steps": 1, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "per_device_train_batch_size": 2, **options,
    }  # fmt: skip
    own.setdefault("model", str(POCKET_MODEL))
    args = (kind or SFTConfig)(output_dir=str(folder), **settings)
    return SFTTrainer(args=args, train_dataset=rows, processing_class=tokenizer(), **own)


def seen(*kinds: str) -> list[str]:
    """Return the entries of some kinds."""
    return [name for name, entry in ENTRIES.items() if entry["seen"] in kinds]


def shown_text(entry: dict[str, Any]) -> list[str]:
    """Return the texts of an entry: they are parted by empty lines."""
    return entry["text"].strip().split("\n\n")


def test_every_claim_has_a_function() -> None:
    """An entry that nobody tries would stay when its text has changed."""
    assert set(seen("raised", "silent", "older")) == PROVOKE.keys()
    assert len(ENTRIES) == sum(len(group["entries"]) for group in GROUPS), "an id is used twice"


@pytest.mark.parametrize("name", seen("raised"))
def test_the_text_is_the_one_that_is_raised(name: str, tmp_path: Path) -> None:
    """A reader searches for the exact text; one that a release has changed would not be found."""
    found = PROVOKE[name](tmp_path)
    expected = shown_text(ENTRIES[name])
    assert len(found) == len(expected), found
    for text, real in zip(expected, found, strict=True):
        lines = real.splitlines()
        if text.endswith(" …"):
            assert " ".join(real.split()).startswith(" ".join(text[:-2].split())), real
        else:
            assert text == real or text in lines, real


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


# --- names that are gone ---------------------------------------------------------------------


@provokes("sfttrainer-arguments")
def _(folder: Path) -> list[str]:
    old = ("tokenizer", "max_seq_length", "dataset_text_field", "packing", "dataset_kwargs",
           "model_init_kwargs")  # fmt: skip
    return [said(lambda o=o: SFTTrainer(str(POCKET_MODEL), **{o: None})) for o in old]


@provokes("sftconfig-arguments")
def _(folder: Path) -> list[str]:
    old = ("max_seq_length", "dataset_batch_size", "num_of_sequences", "chars_per_token")
    return [said(lambda o=o: SFTConfig(str(folder), **{o: 1})) for o in old]


@provokes("training-arguments")
def _(folder: Path) -> list[str]:
    old = ("evaluation_strategy", "warmup_ratio", "group_by_length", "no_cuda", "logging_dir",
           "overwrite_output_dir", "save_safetensors")  # fmt: skip
    return [said(lambda o=o: TrainingArguments(str(folder), **{o: 1})) for o in old]


@provokes("trl-names")
def _(folder: Path) -> list[str]:
    old = ("DataCollatorForCompletionOnlyLM", "setup_chat_format")
    return [said(lambda o=o: exec(f"from trl import {o}", {})) for o in old]


@provokes("load-in-4bit")
def _(folder: Path) -> list[str]:
    return [said(lambda: pocket(load_in_4bit=True))]


@provokes("dataset-script")
def _(folder: Path) -> list[str]:
    script = folder / "my_dataset.py"
    script.write_text("import datasets\n")
    return [said(lambda: load_dataset(str(script)))]


@provokes("gradient-checkpointing-name")
def _(folder: Path) -> list[str]:
    return [said(lambda: TrainingArguments(str(folder), use_cpu=True, gradient_checkpointing=True))]


# --- adapters --------------------------------------------------------------------------------


@provokes("targets-not-found")
def _(folder: Path) -> list[str]:
    return [said(lambda: get_peft_model(pocket(), LoraConfig(target_modules=["c_attn"])))]


@provokes("targets-missing")
def _(folder: Path) -> list[str]:
    config = Phi3Config(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    return [said(lambda: get_peft_model(Phi3ForCausalLM(config), LoraConfig()))]


@provokes("lm-head")
def _(folder: Path) -> list[str]:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    return [said(lambda: trainer(folder, peft_config=config))]


@provokes("purely-quantized")
def _(folder: Path) -> list[str]:
    return [said(lambda: trainer(folder, model=four_bit()))]


@provokes("size-mismatch")
def _(folder: Path) -> list[str]:
    model = pocket()
    model.resize_token_embeddings(len(tokenizer()) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, LoraConfig(**LORA)).save_pretrained(folder)
    return [said(lambda: PeftModel.from_pretrained(pocket(), folder))]


@provokes("second-time")
def _(folder: Path) -> list[str]:
    model = pocket()
    get_peft_model(model, LoraConfig(**LORA))
    lines = said(lambda: get_peft_model(model, LoraConfig(**LORA))).splitlines()
    return [line for line in lines if line.startswith("UserWarning")]


@provokes("peft-model-and-config")
def _(folder: Path) -> list[str]:
    model = get_peft_model(pocket(), LoraConfig(**LORA))
    return [said(lambda: trainer(folder, model=model, peft_config=LoraConfig(**LORA)))]


@provokes("task-type")
def _(folder: Path) -> list[str]:
    return [said(lambda: LoraConfig(task_type="Causal LM"))]


@provokes("bias")
def _(folder: Path) -> list[str]:
    return [said(lambda: get_peft_model(pocket(), LoraConfig(**LORA, bias="true")))]


@provokes("merge-4-bit")
def _(folder: Path) -> list[str]:
    model = get_peft_model(four_bit(), LoraConfig(**LORA)).train()
    return sorted(set(said(model.merge_and_unload).splitlines()))


@provokes("prompt-merge")
def _(folder: Path) -> list[str]:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(pocket(), config)
    return [said(lambda: model.merge_and_unload())]


@provokes("index-out-of-range")
def _(folder: Path) -> list[str]:
    beyond = torch.tensor([[pocket().config.vocab_size]])
    return [said(lambda: pocket()(input_ids=beyond))]


@provokes("target-out-of-bounds")
def _(folder: Path) -> list[str]:
    model = AutoModelForSequenceClassification.from_pretrained(POCKET_MODEL, num_labels=3)
    return [said(lambda: model(torch.tensor([[5, 6]]), labels=torch.tensor([3])))]


@provokes("no-padding-token")
def _(folder: Path) -> list[str]:
    model = AutoModelForSequenceClassification.from_pretrained(POCKET_MODEL)
    model.config.pad_token_id = None
    return [said(lambda: model(torch.tensor([[5, 6], [7, 8]])))]


@provokes("repo-id")
def _(folder: Path) -> list[str]:
    return [said(lambda: AutoModelForCausalLM.from_pretrained("../models/my/model"))]


# --- precision and hardware ------------------------------------------------------------------


@provokes("bf16-on-cpu")
def _(folder: Path) -> list[str]:
    if torch.cuda.is_available():
        pytest.skip("a GPU that has bfloat16 is here: nothing to refuse")
    return [said(lambda: SFTConfig(str(folder)))]


@provokes("paged-on-cpu")
def _(folder: Path) -> list[str]:
    run = trainer(folder, optim="paged_adamw_32bit", peft_config=LoraConfig(**LORA))
    return [line for line in set(said(run.train).splitlines()) if "aged" in line]


@provokes("unscale-fp16")
def _(folder: Path) -> list[str]:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight.float() * 2).sum()).backward()
    return [said(lambda: scaler.unscale_(torch.optim.SGD([weight])))]


@provokes("torchao")
def _(folder: Path) -> list[str]:
    """Colab came with torchao 0.10.0: put one there, and ask as get_peft_model does."""
    (folder / "torchao").mkdir()
    (folder / "torchao" / "__init__.py").touch()
    (folder / "torchao-0.10.0.dist-info").mkdir()
    (folder / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0")
    import_utils.is_torchao_available.cache_clear()
    sys.path.insert(0, str(folder))
    try:
        return [said(lambda: get_peft_model(pocket(), LoraConfig(**LORA)))]
    finally:
        sys.path.remove(str(folder))
        import_utils.is_torchao_available.cache_clear()


@provokes("flash-attention")
def _(folder: Path) -> list[str]:
    return [said(lambda: pocket(attn_implementation="flash_attention_2"))]


# --- data ------------------------------------------------------------------------------------


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


@provokes("missing-column")
def _(folder: Path) -> list[str]:
    wrong = (rows(instruction=["a"], output=["b"]), rows(prompt=["a"]))
    return [said(lambda r=r: trainer(folder, r)) for r in wrong]


@provokes("empty-dataset")
def _(folder: Path) -> list[str]:
    return [said(lambda: trainer(folder, TEXTS.select([])))]


@provokes("none-row")
def _(folder: Path) -> list[str]:
    return [said(lambda: trainer(folder, rows(text=["a", None])))]


@provokes("num-samples")
def _(folder: Path) -> list[str]:
    long = rows(prompt=["the cat sat on the mat"], completion=[" and slept"])
    return [said(lambda: trainer(folder, long, max_length=3).train())]


@provokes("eos-token")
def _(folder: Path) -> list[str]:
    return [said(lambda: trainer(folder, eos_token="<EOS_TOKEN>"))]


CHAT = rows(messages=[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])


def with_template(folder: Path, template: str | None, **options: Any) -> SFTTrainer:
    template_tokenizer = tokenizer()
    template_tokenizer.chat_template = template
    args = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **options)
    return SFTTrainer(str(POCKET_MODEL), args, train_dataset=CHAT,
                      processing_class=template_tokenizer)  # fmt: skip


@provokes("no-chat-template")
def _(folder: Path) -> list[str]:
    return [said(lambda: with_template(folder, None))]


@provokes("assistant-only")
def _(folder: Path) -> list[str]:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    return [said(lambda: with_template(folder, template, assistant_only_loss=True))]


@provokes("collator-with-labels")
def _(folder: Path) -> list[str]:
    collate = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    features = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    return [said(lambda: collate(features))]


@provokes("packing-length")
def _(folder: Path) -> list[str]:
    return [said(lambda: trainer(folder, packing=True, max_length=None))]


@provokes("formatting-func")
def _(folder: Path) -> list[str]:
    pairs = rows(prompt=["a"], completion=["b"])
    return [said(lambda: trainer(folder, pairs, formatting_func=lambda row: row["prompt"]))]


@provokes("boundary")
def _(folder: Path) -> list[str]:
    """TRL logs it, once in a process."""
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("trl.trainer.sft_trainer")
    MultiProcessAdapter.warning_once.cache_clear()  # another test may have had it said
    logger.addHandler(handler)
    try:
        trainer(folder, rows(prompt=["the cat sat "], completion=["on the mat"]))
    finally:
        logger.removeHandler(handler)
    return kept


@provokes("yaml-number")
def _(folder: Path) -> list[str]:
    rate = yaml.safe_load("learning_rate: 2e-4")["learning_rate"]
    return [said(lambda: trainer(folder, learning_rate=rate).train())]


# --- checkpoints -----------------------------------------------------------------------------


@provokes("broken-file")
def _(folder: Path) -> list[str]:
    get_peft_model(pocket(), LoraConfig(**LORA)).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    return [said(lambda: PeftModel.from_pretrained(pocket(), folder))]


@provokes("no-checkpoint")
def _(folder: Path) -> list[str]:
    with chdir(folder):
        run = trainer(Path("runs"))
        Path("runs").mkdir(exist_ok=True)
        return [said(lambda: run.train(resume_from_checkpoint=True))]


# --- nothing is said -------------------------------------------------------------------------


@provokes("silent-truncation")
def _(folder: Path) -> None:
    long = rows(text=["the cat sat on the mat " * 400])
    prepared = trainer(folder, long).train_dataset[0]
    assert len(prepared["input_ids"]) == 1024 < len(tokenizer()(long[0]["text"])["input_ids"])


@provokes("silent-target")
def _(folder: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_porj"])
    models = []
    assert "porj" not in said(lambda: models.append(get_peft_model(pocket(), config)))
    assert {name.rpartition(".")[2] for name in models[0].targeted_module_names} == {"q_proj"}


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
    assert said(lambda: configs.append(BitsAndBytesConfig(**typo))) == ""
    assert configs[0].bnb_4bit_quant_type == BitsAndBytesConfig(True).bnb_4bit_quant_type == "fp4"


@provokes("silent-end")
def _(folder: Path) -> None:
    end = tokenizer()
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
    tokenizer().save_pretrained(half)
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
    begins = tokenizer()
    start, number = begins.eos_token, begins.eos_token_id  # any special token serves
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, number)]
    )
    rendered = f"{start}the cat sat"
    assert begins(rendered)["input_ids"][:2] == [number, number]
    assert begins(rendered, add_special_tokens=False)["input_ids"].count(number) == 1


@provokes("silent-4-bit")
def _(folder: Path) -> None:
    if "avx512_bf16" not in hardware._cpu_flags():
        pytest.skip("this CPU has no avx512_bf16: no fault here")
    assert change_of_gradients() > 0.5


# --- said by older versions ------------------------------------------------------------------


@provokes("older-no-grad")
def _(folder: Path) -> None:
    """Checkpointing over a frozen base, with nothing of what it once needed."""
    run = trainer(folder, activation_checkpointing=True, peft_config=LoraConfig(**LORA))
    run.train()
    trained = [p for name, p in run.model.named_parameters() if "lora_B" in name]
    assert all(bool(p.any()) for p in trained)


@provokes("older-response-key")
def _(folder: Path) -> None:
    assert said(lambda: exec("from trl import DataCollatorForCompletionOnlyLM", {}))
