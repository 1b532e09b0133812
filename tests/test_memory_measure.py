"""The meter on real steps: against the prediction, and witnesses that know nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_types import LINEAR, SETTINGS
from datasets import Dataset
from helpers import CALM
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    Mamba2Config,
    MixtralConfig,
    PretrainedConfig,
    Qwen3VLConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from course_utils import hardware
from course_utils.configs import auto_class
from course_utils.memory import PHASES, MeterCallback, StepMemory, measure
from course_utils.paths import POCKET_MODEL
from preflight.memory_plan import default_adapter, predict

BATCH, LENGTH = 2, 96


pytestmark = pytest.mark.usefixtures("one_thread")


def pocket() -> PretrainedConfig:
    return AutoConfig.from_pretrained(POCKET_MODEL)


def gpt2() -> PretrainedConfig:
    """Tied weights, Conv1D layers, learned positions; without dropout, whose masks vary."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(n_embd=128, n_layer=3, n_head=4, vocab_size=3072, n_positions=256, **off)


def mixtral() -> PretrainedConfig:
    """A mixture of experts, whose weights are three-dimensional parameters."""
    return MixtralConfig(
        hidden_size=128, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, vocab_size=3072, max_position_embeddings=256,
    )  # fmt: skip


def qwen3_vl() -> PretrainedConfig:
    """A model that sees, trained on rows of text: its vision tower is loaded and does nothing."""
    text = {
        "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 3072,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 128, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def mamba2() -> PretrainedConfig:
    """State spaces, of which peft refuses the output layer."""
    return Mamba2Config(
        hidden_size=128, num_hidden_layers=3, vocab_size=3072, num_heads=8, head_dim=32, n_groups=1,
        state_size=16, chunk_size=32,
    )  # fmt: skip


MODELS = {
    "pocket": pocket, "gpt2": gpt2, "mixtral": mixtral, "qwen3_vl": qwen3_vl, "mamba2": mamba2,
}  # fmt: skip
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
INT8 = BitsAndBytesConfig(load_in_8bit=True)


def adapter(config: PretrainedConfig) -> LoraConfig:
    return default_adapter(config, rank=8)


def real_model(
    config: PretrainedConfig, dtype: str, quantization: BitsAndBytesConfig | None, folder: Path
) -> torch.nn.Module:
    """Return a model of random weights; quantized as `from_pretrained` does it."""
    model = auto_class(config, writes=True).from_config(config, dtype=getattr(torch, dtype))
    if quantization is None:
        return model
    hardware.fix_bitsandbytes()
    model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        quantization_config=quantization,
        device_map="cpu",  # where there is a GPU, it would go there
    )
    for parameter in model.parameters():  # out of the mapped file, for the profiler to see
        parameter.data = parameter.data.clone()
    return model


def train(
    folder: Path,
    config: PretrainedConfig,
    method: str,
    *,
    dtype: str = "float32",
    loss: str = "full",
    quantization: BitsAndBytesConfig | None = None,
    length: int = LENGTH,
    peft_config: PeftConfig | None = None,
    meter: MeterCallback | None = None,
    **options: object,
) -> Trainer:
    """Train two steps with Trainer, or with SFTTrainer where the loss is "fused".

    `options` are of `predict`, whose names some arguments of the trainers have otherwise.
    """
    set_seed(0)
    model = real_model(config, dtype, quantization, folder)
    arguments = CALM | {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH, "max_steps": 2,
        "logging_steps": 1, "bf16": options.pop("mixed_precision", "no") == "bf16",
        "optim": options.pop("optimizer", "adamw_torch_fused"),
        "activation_checkpointing": options.pop("gradient_checkpointing", False), **options,
    }  # fmt: skip
    rows = 2 * BATCH * options.get("gradient_accumulation_steps", 1)
    ids = torch.randint(5, config.get_text_config().vocab_size, (rows, length)).tolist()
    callbacks = [] if meter is None else [meter]
    adapters = None if method == "full" else peft_config or adapter(config)
    if loss == "fused":
        skip = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        trainer = SFTTrainer(
            model,
            args=SFTConfig(**arguments, **skip),
            train_dataset=Dataset.from_dict({"input_ids": ids}),
            processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
            peft_config=adapters,
            callbacks=callbacks,
        )
    else:
        trainer = Trainer(
            get_peft_model(model, adapters) if adapters else model,
            args=TrainingArguments(**arguments),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            data_collator=default_data_collator,
            callbacks=callbacks,
        )
    trainer.train()
    return trainer


def measured(folder: Path, config: PretrainedConfig, method: str, **options: object) -> StepMemory:
    meter = MeterCallback(step=2)
    train(folder, config, method, meter=meter, **options)
    return meter.memory


def guessed(
    config: PretrainedConfig, method: str, peft_config: PeftConfig | None, **options: object
) -> StepMemory:
    """Return what is predicted for a step of `train`, whose defaults these are."""
    defaults = {"dtype": "float32", "gradient_checkpointing": False, "loss": "full"}
    plan = {"batch_size": BATCH, "length": LENGTH, "device": "cpu", "mixed_precision": "no"}
    return predict(config, method, peft_config=peft_config, **plan | defaults | options)


def assert_equal(guess: StepMemory, real: StepMemory) -> None:
    """Hold the peak to 0.1%, and each category at it to 1% of it."""
    assert guess.peak == pytest.approx(real.peak, rel=0.001)
    assert guess.peak_phase == real.peak_phase
    for category, size in real.at_peak.items():
        assert guess.at_peak[category] == pytest.approx(size, abs=0.01 * real.peak), category


BF16 = {"dtype": "bfloat16"}
CHECKPOINTING = {"gradient_checkpointing": True}
FUSED = {"loss": "fused"}
CASES = [
    ("pocket", "full", {}),
    ("pocket", "full", FUSED | BF16),
    ("pocket", "full", CHECKPOINTING | BF16 | {"gradient_accumulation_steps": 2}),
    ("pocket", "full", CHECKPOINTING | FUSED | {"mixed_precision": "bf16"}),
    ("pocket", "lora", BF16),
    ("pocket", "lora", FUSED | {"optimizer": "adamw_8bit"}),
    ("pocket", "lora", CHECKPOINTING | {"optimizer": "adamw_torch"}),
    ("pocket", "lora", CHECKPOINTING | FUSED | BF16 | {"mixed_precision": "bf16"}),
    ("pocket", "qlora", BF16),
    ("pocket", "qlora", CHECKPOINTING | FUSED | BF16),
    ("pocket", "int8", BF16),
    ("gpt2", "full", CHECKPOINTING | {"optimizer": "adafactor"}),
    ("gpt2", "lora", FUSED | BF16),
    ("gpt2", "qlora", BF16),
    ("mixtral", "full", FUSED),
    ("mixtral", "lora", CHECKPOINTING | FUSED | BF16),
    ("qwen3_vl", "full", FUSED),
    ("qwen3_vl", "lora", CHECKPOINTING | FUSED | BF16),
    ("mamba2", "full", {}),
    ("mamba2", "lora", FUSED | BF16),
]


@pytest.mark.parametrize(("name", "method", "options"), CASES)
def test_predicted_equals_measured(
    name: str, method: str, options: dict[str, object], tmp_path: Path
) -> None:
    """Breaks if the simulation and a real step of Trainer or SFTTrainer part: at the peak by more
    than 0.1%, in any phase by more than 1%."""
    config = MODELS[name]()
    quantization = {"qlora": NF4, "int8": INT8}.get(method)
    real = measured(tmp_path, config, method, quantization=quantization, **options)
    peft_config = None if method == "full" else adapter(config)
    guess = guessed(config, method, peft_config, quantization_config=quantization, **options)
    assert_equal(guess, real)
    for phase in PHASES:
        assert guess.total(phase) == pytest.approx(real.total(phase), rel=0.01), phase


# SFTTrainer cannot train these: two do without a head that it could fuse, one changes the head.
FULL_LOSS = ("ADAPTION_PROMPT", "CPT", "TRAINABLE_TOKENS")
# Their code reads the values of tensors, which a simulation does not have.
NOT_SIMULATED = ("CPT", "FROD", "SHIRA", "UNILORA")
# These need more than a config: scikit-learn, the number of a task in each row, trained adapters.
NOT_ALONE = ("ADAMSS", "MULTITASK_PROMPT_TUNING", "POLY", "XLORA")


def of_type(kind: str) -> PeftConfig:
    kinds = PEFT_TYPE_TO_CONFIG_MAPPING
    return kinds[PeftType(kind)](task_type="CAUSAL_LM", **SETTINGS.get(kind, LINEAR))


@pytest.mark.parametrize(
    "kind", [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in NOT_ALONE]
)
def test_every_type_of_peft_is_predicted_or_refused(kind: str, tmp_path: Path) -> None:
    """Breaks if a method's own layers are simulated otherwise than they run."""
    config = pocket()
    config.num_hidden_layers = 2
    loss = "full" if kind in FULL_LOSS else "fused"
    if kind in NOT_SIMULATED:
        with pytest.raises(RuntimeError, match="cannot be simulated"):
            guessed(config, "peft", of_type(kind), loss=loss)
        return
    real = measured(tmp_path, config, "peft", peft_config=of_type(kind), loss=loss)
    assert_equal(guessed(config, "peft", of_type(kind), loss=loss), real)


def witnessed(step: Callable[[], object], folder: Path) -> int:
    """Return the most bytes that PyTorch's profiler saw allocated at any moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as witness:
        step()
    path = folder / "trace.json"
    witness.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {}),
        ("lora", CHECKPOINTING | FUSED | BF16),
        ("qlora", CHECKPOINTING | BF16 | {"quantization": NF4}),
    ],
)
def test_the_profiler_agrees(method: str, options: dict[str, object], tmp_path: Path) -> None:
    """Breaks if the meter misses allocations: the profiler is fed by the allocator itself, and sees
    what kernels allocate inside. It also sees what is no part of the step (random states, rows).
    Rows are long enough for the step to take more than loading and quantizing the model."""
    found: list[StepMemory] = []
    seen = witnessed(
        lambda: found.append(measured(tmp_path, pocket(), method, length=256, **options)), tmp_path
    )
    assert 0.99 * seen < found[0].peak <= seen


@pytest.mark.parametrize("options", [{}, CHECKPOINTING | FUSED])
def test_metering_changes_no_result(options: dict[str, object], tmp_path: Path) -> None:
    """Breaks if the meter touches training: losses and weights must be the same bits without it."""
    plain = train(tmp_path, pocket(), "lora", **options)
    metered = train(tmp_path, pocket(), "lora", meter=MeterCallback(step=1), **options)
    losses = [
        [row["loss"] for row in t.state.log_history if "loss" in row] for t in (plain, metered)
    ]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    other = metered.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in plain.model.state_dict().items())


def test_the_callback_leaves_nothing_behind(tmp_path: Path) -> None:
    """Breaks if later steps are slowed down: after its step no hook and no mode may be left."""
    meter = MeterCallback(step=1)
    trainer = train(tmp_path, pocket(), "full", meter=meter)
    assert meter.memory is not None
    assert not _get_current_dispatch_mode_stack()
    for module in trainer.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for parameter in trainer.model.parameters():
        assert not parameter._post_accumulate_grad_hooks
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_step_by_hand() -> None:
    """Breaks if phases are not told apart, or categories mixed up, in a loop without a trainer."""
    model = AutoModelForCausalLM.from_config(pocket(), dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    ids = torch.arange(5, 5 + LENGTH).repeat(BATCH, 1)
    tables = []
    for _ in range(2):
        with measure(model, optimizer) as measurement:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        tables.append(measurement.memory)
    size = 4 * sum(p.numel() for p in model.parameters())
    first, second = tables
    assert tuple(second.phases) == PHASES
    assert first.phases["forward"]["optimizer state"] == 0
    assert second.phases["load"]["optimizer state"] == 0
    assert second.phases["forward"]["optimizer state"] == size
    assert all(sample.bytes["optimizer state"] == size for sample in second.timeline)
    assert first.timeline[0].bytes["optimizer state"] == 0
    assert first.timeline[-1].bytes["optimizer state"] == size
    assert second.phases["clip"]["gradients"] == size
    assert second.phases["forward"]["activations"] > 0
    assert second.phases["backward"]["logits and loss"] >= BATCH * LENGTH * 3072 * 4
    assert second.phases["optimizer"]["activations"] < 1e5
    assert {sample.phase for sample in second.timeline} == set(PHASES[1:])


def test_a_failing_step_leaves_nothing_behind() -> None:
    """Breaks if an error inside the block, which learners will make, leaves the meter running."""
    model = AutoModelForCausalLM.from_config(gpt2()).train()
    with pytest.raises(ZeroDivisionError), measure(model):
        raise ZeroDivisionError
    assert not _get_current_dispatch_mode_stack()
    assert not model._forward_pre_hooks


def test_wrong_use_is_said() -> None:
    """Breaks if a wrong step is taken in silence, and the table is missing at the end."""
    with pytest.raises(ValueError, match="from 1 on"):
        MeterCallback(step=0)
