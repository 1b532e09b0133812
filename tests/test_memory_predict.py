"""The prediction alone: formulas, extrapolation, options, errors."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from types import FunctionType
from unittest.mock import patch

import bitsandbytes as bnb
import planners
import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from course_utils.memory import CATEGORIES, PHASES
from course_utils.paths import COURSE_ROOT, POCKET_MODEL
from preflight.memory_plan import OPTIMIZERS, library_patches, predict
from preflight.memory_plan.library_patches import LibraryChanged
from preflight.memory_plan.predict import Shared, _warn_once

SMALL = {"batch_size": 2, "length": 64}
GIB = 2**30


def llama(layers: int = 4, hidden: int = 128, **options: object) -> LlamaConfig:
    """Return a small config; its widths are no multiples of each other, so a mix-up shows."""
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden - 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**sizes | options)


def linears(config: LlamaConfig) -> list[tuple[int, int]]:
    """Return the shapes (in, out) of a layer's linear modules."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shared = hidden * config.num_key_value_heads // config.num_attention_heads
    attention = [(hidden, hidden), (hidden, shared), (hidden, shared), (hidden, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def sizes(config: LlamaConfig) -> tuple[list[int], list[int], int]:
    """Return the elements of linear weights and of other parameters, and the buffers' bytes."""
    linear = [i * o for i, o in linears(config)] * config.num_hidden_layers
    norms = [config.hidden_size] * (2 * config.num_hidden_layers + 1)
    table = config.vocab_size * config.hidden_size
    rope = config.hidden_size // config.num_attention_heads // 2 * 4
    return linear, [*norms, table, table], 2 * rope  # the frequencies, and their original


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_full_fine_tuning_by_formula(dtype: str, width: int) -> None:
    """Breaks if a parameter is missed or counted twice: weights, gradients and Adam's two states
    are the parameters' bytes, once each, to the byte."""
    config = llama()
    memory = predict(config, "full", dtype=dtype, loss="full", device="cpu", **SMALL)
    linear, rest, rope = sizes(config)
    parameters = width * sum(linear + rest)
    counters = 4 * len(linear + rest)  # the fused optimizer counts steps with each parameter
    assert memory.phases["load"]["weights"] == parameters + rope
    assert memory.phases["optimizer"]["gradients"] == parameters
    assert memory.phases["optimizer"]["optimizer state"] == 2 * parameters + counters
    assert all(memory.phases[phase]["adapters"] == 0 for phase in PHASES)


def test_lora_by_formula() -> None:
    """Breaks if frozen weights are given gradients, or adapters another dtype than peft's float32:
    a module's adapter has r (in + out) elements."""
    config = llama()
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    memory = predict(config, "lora", peft_config=adapter, loss="full", device="cpu", **SMALL)
    elements = config.num_hidden_layers * sum(8 * (i + o) for i, o in linears(config))
    count = 2 * len(linears(config)) * config.num_hidden_layers
    assert memory.phases["load"]["adapters"] == 4 * elements
    assert memory.phases["clip"]["gradients"] == 4 * elements
    assert memory.phases["clip"]["optimizer state"] == 8 * elements + 4 * count


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bit_weights_by_formula(kind: str, double: bool) -> None:
    """Breaks if scales are left out (get_memory_footprint leaves them out): half a byte an element;
    a scale a block of 64, in a byte with double quantization, else in four; code books."""
    config = llama(hidden=256)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
    )
    memory = predict(config, "qlora", quantization_config=quantization, device="cpu", **SMALL)
    linear, rest, rope = sizes(config)
    expected = 2 * sum(rest) + rope
    for elements in linear:
        blocks = -(-elements // 64)
        scales = blocks + 4 * -(-blocks // 256) + 4 * 256 + 4 if double else 4 * blocks
        expected += elements // 2 + scales + 4 * 16
    assert memory.phases["load"]["weights"] == expected


def test_optimizers_keep_what_they_should() -> None:
    """Breaks if an optimizer's state is of another width than its name says, or if paged state is
    counted on the GPU."""
    config = llama(2, hidden=512)
    names = {name for name in OPTIMIZERS if "rmsprop" not in name and "ademamix" not in name}
    state, host = {}, {}
    for name in names:
        memory = predict(config, "full", optimizer=name, **SMALL)
        state[name] = memory.phases["optimizer"]["optimizer state"]
        host[name] = memory.host
    weights = predict(config, "full", **SMALL).phases["load"]["weights"]
    assert state["sgd"] == 0
    assert state["adafactor"] < 0.05 * weights
    assert 0.95 < state["adamw_torch_fused"] / (2 * weights) < 1.05
    assert state["adamw_8bit"] < 0.75 * state["adamw_torch"]  # embeddings stay in 32 bits
    assert state["lion_8bit"] < 0.6 * state["adamw_8bit"]
    assert state["paged_adamw_32bit"] < 0.02 * host["paged_adamw_32bit"]  # norms are not paged
    assert state["paged_adamw_8bit"] + host["paged_adamw_8bit"] == pytest.approx(
        state["adamw_8bit"], rel=0.001
    )
    assert all(host[name] == 0 for name in names if "paged" not in name)


def test_foreach_on_a_gpu_needs_copies() -> None:
    """Breaks if the plain AdamW is simulated as on a CPU: on a GPU torch updates all parameters at
    once, with copies of all of them."""
    plain = predict(llama(), "full", optimizer="adamw_torch", **SMALL)
    fused = predict(llama(), "full", optimizer="adamw_torch_fused", **SMALL)
    weights = plain.phases["load"]["weights"]
    assert plain.phases["optimizer"]["temporaries"] > 0.9 * weights
    assert fused.phases["optimizer"]["temporaries"] < 0.01 * weights


CASES = [
    ("full", {"gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"}),
    ("full", {"gradient_checkpointing": False, "loss": "full", "device": "cpu"}),
    ("lora", {"gradient_checkpointing": True, "length": 512}),
    ("qlora", {"gradient_checkpointing": True, "padding": True}),
    ("int8", {"gradient_checkpointing": False, "gradient_accumulation_steps": 2}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_extrapolation_equals_all_layers(method: str, options: dict[str, object]) -> None:
    """Breaks if layers are extrapolated where that is not exact: every phase and category must be
    what the simulation of all layers gives, to the byte."""
    config = llama(layers=7, hidden=256, vocab_size=8000)
    options = {"batch_size": 1, "length": 256, **options}
    quick = predict(config, method, **options)
    whole = predict(config, method, layers="all", **options)
    # Two do not tell what five do where an 8-bit product keeps what only the last layer frees.
    assert quick.settings["simulated_layers"] == ([4, 5] if method == "int8" else [2, 5])
    assert whole.settings["simulated_layers"] == [7]
    assert quick.phases == whole.phases
    assert quick.host == whole.host


@pytest.mark.parametrize(
    ("method", "options", "again"),
    [
        ("full", {}, [2]),
        ("qlora", {}, [2]),
        ("qlora", {"loss": "full", "padding": True}, [2]),
        ("lora", {"gradient_checkpointing": False, "loss": "full"}, [5]),
        ("lora", {}, [2, 5]),  # autocast keeps copies of the adapters until the loss is there
        ("int8", {}, [4, 5]),
        ("lora", {"gradient_accumulation_steps": 2, "optimizer": "adamw_torch"}, [2, 5]),
    ],
)
def test_a_second_size_takes_less_and_says_the_same(
    method: str, options: dict[str, object], again: list[int]
) -> None:
    """Breaks if what one size has shown is taken for another where it does not hold: every phase
    and category must be what a prediction of its own gives. (4,200 tokens are two tiles of the
    fused loss, where the first size has one.)"""
    config = llama(layers=9, hidden=256, vocab_size=8000)
    shared = Shared()
    predict(config, method, batch_size=1, length=256, shared=shared, **options)
    for size in ({"batch_size": 3, "length": 320}, {"batch_size": 1, "length": 4200}):
        alone = predict(config, method, **size, **options)
        for timeline in (False, True):
            found = predict(config, method, **size, shared=shared, timeline=timeline, **options)
            assert found.phases == alone.phases
            assert found.host == alone.host
            assert found.timeline == (alone.timeline if timeline else ())
            if not timeline:
                assert found.settings["simulated_layers"] == again


def test_unlike_layers_are_all_simulated(caplog: pytest.LogCaptureFixture) -> None:
    """Breaks if a stack whose layers differ is extrapolated: then some layer's kind is guessed. Or
    if all of them are simulated silently, which takes long for a large model."""
    mixed = Qwen3Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=7,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=500,
        layer_types=["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
        use_sliding_window=True,
        sliding_window=32,
    )
    _warn_once.cache_clear()
    for length in (64, 32):  # a search asks often, and once is enough
        memory = predict(mixed, "lora", length=length)
        assert memory.settings["simulated_layers"] == [7]
    assert caplog.messages == ["The layers differ; all 7 are simulated, which may take minutes."]
    some = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    memory = predict(llama(7), "peft", peft_config=some, **SMALL)
    assert memory.settings["simulated_layers"] == [7]
    assert caplog.records[-1].levelno == logging.WARNING
    assert "adapter may treat layers differently; all 7" in caplog.messages[-1]
    predict(llama(7), "lora", **SMALL)
    predict(mixed, "lora", layers="all", **SMALL)
    assert len(caplog.messages) == 2


def test_a_70b_model_is_simulated_in_few_layers_and_little_memory() -> None:
    """Breaks if a prediction allocates what it predicts, or simulates 80 layers for nothing."""
    config = llama(80, 8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8)
    config.vocab_size = 128256
    resource = pytest.importorskip("resource", reason="Windows does not count a process's peak")
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = predict(config, "qlora", length=2048)
    assert memory.settings["simulated_layers"] == [2, 5]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 2**20 / unit
    assert 35 * GIB < memory.peak < 45 * GIB


def test_what_saves_saves() -> None:
    """Breaks if an option is not passed on: each must change the peak as it is known to."""
    config = llama(3, vocab_size=8000)
    base = {"batch_size": 4, "length": 256, "loss": "full"}
    half = base | {"adapter_dtype": "bfloat16"}
    plain = predict(config, "full", gradient_checkpointing=False, **base)
    assert predict(config, "full", **base).peak < plain.peak
    lora = predict(config, "lora", gradient_checkpointing=False, **half)
    assert lora.peak < plain.peak
    eager = predict(config, "lora", gradient_checkpointing=False, attention="eager", **half)
    padded = predict(config, "lora", gradient_checkpointing=False, padding=True, **half)
    assert lora.peak < padded.peak < eager.peak
    assert (
        predict(config, "lora", dtype="float32", **half).peak > lora.phases["load"]["weights"] * 2
    )
    more = predict(config, "full", gradient_accumulation_steps=2, **base)
    assert more.phases["forward"]["gradients"] == more.phases["clip"]["gradients"] > 0


def test_the_fused_loss_spares_the_logits() -> None:
    """Breaks if SFTTrainer's loss is simulated as on a CPU, where it needs more than all logits."""
    config = llama(vocab_size=64000)
    options = {"batch_size": 8, "length": 512, "mixed_precision": "no"}
    fused = predict(config, "lora", loss="fused", **options)
    full = predict(config, "lora", loss="full", **options)
    assert fused.peak < 0.5 * full.peak
    assert full.at_peak["logits and loss"] > 0.5 * full.peak


def test_kbit_preparation_costs() -> None:
    """Breaks if `prepare_model_for_kbit_training` is ignored: it turns embeddings to float32."""
    plain = predict(llama(), "qlora", **SMALL)
    prepared = predict(llama(), "qlora", prepare_for_kbit=True, **SMALL)
    table = 1000 * 128
    assert prepared.phases["load"]["weights"] - plain.phases["load"]["weights"] >= 2 * 2 * table
    by_hand = {
        "peft_config": LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True),
        "prepare_for_kbit": True,
    }
    few, more = (predict(llama(n), "peft", **by_hand, **SMALL) for n in (6, 7))
    assert more.settings["simulated_layers"] == [2, 5]
    assert more.peak > few.peak


def test_sources_of_a_config(tmp_path: Path) -> None:
    """Breaks if a folder, its config.json and the config itself give different answers, or if the
    config that was passed is changed."""
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=500, n_positions=128)
    config.save_pretrained(tmp_path)
    before = config.to_dict()
    answers = [
        predict(source, "lora", **SMALL).phases
        for source in (config, tmp_path, str(tmp_path / "config.json"))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert config.to_dict() == before
    assert predict(POCKET_MODEL, "lora", **SMALL).peak > 0


# Method, optimizer, dtype and batch size are in book/bad_input.yaml.
BAD = [
    ({"loss": "dpo"}, "fused, full"),
    ({"attention": "flash"}, "sdpa, eager"),
    ({"device": "tpu"}, "cuda, cpu"),
    ({"layers": "few"}, "auto, all"),
    ({"mixed_precision": "fp8"}, "no, bf16, fp16"),
    ({"length": 1}, "2 or more"),
    ({"gradient_accumulation_steps": 1.5}, "from 1 on"),
    ({"method": "peft"}, "without a peft_config"),
    ({"method": "full", "peft_config": LoraConfig()}, "no adapter"),
    ({"peft_config": {"r": 8}}, "config of peft"),
    ({"method": "full", "adapter_dtype": "bfloat16"}, "no adapter"),
    ({"method": "lora", "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "qlora"),
    ({"method": "qlora", "quantization_config": BitsAndBytesConfig()}, "quantizes nothing"),
    ({"method": "int8", "quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "qlora"),
    ({"prepare_for_kbit": True}, "quantizes nothing"),
    ({"peft_config": LoraConfig(target_modules=["nope"], task_type="CAUSAL_LM")}, "nope"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(options: dict[str, object], message: str) -> None:
    """Breaks if a wrong option is taken for another, or fails deep inside a library."""
    with pytest.raises(ValueError, match=message):
        predict(llama(), **SMALL | options)


def test_bad_models(tmp_path: Path) -> None:
    """Breaks if a wrong path is asked of the hub, or a broken file gives a traceback of its own."""
    with pytest.raises(FileNotFoundError):
        predict(tmp_path / "no")
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(ValueError):
        predict(tmp_path)


# One of each kind: a function that is replaced, a private one, a class, an operator, one that is
# only called; and one of each library.
RELIED_ON = [
    "torch.nn.functional.grouped_mm",
    "transformers.masking_utils.find_packed_sequence_indices",
    "trl.kernels.chunked_logprob._addmm_fp32",
    "bitsandbytes.functional.quantize_4bit",
    "torch.ops.bitsandbytes.gemm_4bit",
    "transformers.trainer_pt_utils.get_parameter_names",
]


def with_another_parameter(original: object) -> object:
    """Return a function that works as the original, but names its parameters otherwise."""

    def changed(*args: object, **options: object) -> object:
        return original(*args, **options)

    one = inspect.Parameter("another", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    changed.__signature__ = inspect.Signature([one])
    return changed


def without(path: str) -> Callable[[str], object]:
    """Return `resolve_name` as it is where there is no such path."""

    def resolve(asked: str) -> object:
        if asked == path:
            raise AttributeError(path)
        return resolve_name(asked)

    return resolve


@pytest.mark.parametrize("path", RELIED_ON)
@pytest.mark.parametrize("change", ["removed", "another parameter"])
def test_a_changed_library_is_named(
    monkeypatch: pytest.MonkeyPatch, path: str, change: str
) -> None:
    """Breaks if a new version drops a name, or changes its parameters, and the prediction goes
    quietly wrong: it must stop, and say which library it is and which versions work."""
    module, _, name = path.rpartition(".")
    owner, original = resolve_name(module), resolve_name(path)
    monkeypatch.setattr(owner, name, with_another_parameter(original))
    expected = f"has changed {path}: its parameters are (another)"
    if change == "removed":
        expected = f"has no {path}."
        monkeypatch.delattr(owner, name)
        if "torch.ops" in path:  # it makes the name anew from its registry
            monkeypatch.setattr(library_patches, "resolve_name", without(path))
    library = "bitsandbytes" if "bitsandbytes" in path else path.split(".")[0]
    with pytest.raises(LibraryChanged, match=r"constraints\.txt") as caught:
        predict(llama(), "lora", **SMALL)
    message = str(caught.value)
    assert message.startswith(f"{library} {metadata.version(library)} {expected}")
    assert f"as it is in {library} {library_patches.SEEN[library]}." in message


@pytest.mark.parametrize("name", ["name2qmap", "mng"])
def test_a_changed_optimizer_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Breaks if the optimizer's step meets another bitsandbytes with a traceback."""
    make = bnb.optim.AdamW.__init__

    def incomplete(self: object, *args: object, **options: object) -> None:
        make(self, *args, **options)
        vars(self).pop(name)

    monkeypatch.setattr(bnb.optim.AdamW, "__init__", incomplete)
    with pytest.raises(LibraryChanged, match=rf"^bitsandbytes .*AdamW.*{name}"):
        predict(llama(), "full", optimizer="adamw_8bit", **SMALL)


def another_version(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Let a library say that it is of another version than the one that was seen."""
    version = metadata.version
    monkeypatch.setattr(
        library_patches.metadata, "version", lambda n: "99.0" if n == library else version(n)
    )


def test_a_failure_inside_a_changed_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if what a check of names cannot see, such as a new attribute that the optimizer's
    manager needs, ends as "cannot be simulated" without the library and its versions."""

    def step(self: object, *args: object) -> None:
        self.mng.new_attribute  # noqa: B018

    step = FunctionType(step.__code__, vars(bnb.optim.optimizer))  # a line of the library
    monkeypatch.setattr(bnb.optim.optimizer.Optimizer2State, "update_step", step)
    options = SMALL | {"optimizer": "adamw_8bit"}
    with pytest.raises(RuntimeError, match="cannot be simulated") as caught:
        predict(llama(), "full", **options)
    assert not isinstance(caught.value, LibraryChanged), "the version is the one that was seen"
    another_version(monkeypatch, "bitsandbytes")
    with pytest.raises(LibraryChanged, match=r"^bitsandbytes 99\.0 fails.*new_attribute.*0\.50"):
        predict(llama(), "full", **options)


def test_the_versions_seen_are_those_of_the_constraints() -> None:
    """Breaks if the versions are moved, and the replaced functions not looked at again."""
    lines = (COURSE_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: pinned[name] for name in library_patches.SEEN} == library_patches.SEEN


def test_what_cannot_be_simulated_is_said() -> None:
    """Breaks if code that asks for values ends in PyTorch's internals instead of a sentence."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forward(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean().item()

    with (
        patch.object(LlamaMLP, "forward", forward),
        pytest.raises(RuntimeError, match="cannot be simulated"),
    ):
        predict(llama(), "lora", **SMALL)


def test_nothing_stays_behind() -> None:
    """Breaks if a replaced function, the random state or bitsandbytes' settings stay changed."""
    state, dropout = torch.get_rng_state(), torch.nn.functional.dropout
    settings = dict(bnb.optim.GlobalOptimManager.get_instance().pid2config)
    predict(llama(), "full", optimizer="adamw_8bit", **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.nn.functional.dropout is dropout
    assert bnb.optim.GlobalOptimManager.get_instance().pid2config == settings
    linear = bnb.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu")  # works on real tensors
    assert torch.isfinite(linear(torch.ones(1, 64))).all()


def test_the_table() -> None:
    """Breaks if text, HTML, data and frame disagree, or if a timeline misses the peak."""
    memory = predict(llama(), "qlora", optimizer="paged_adamw_8bit", **SMALL)
    assert tuple(memory.phases) == PHASES
    assert all(tuple(row) == CATEGORIES for row in memory.phases.values())
    assert memory.to_dict()["phases"] == memory.phases
    frame = memory.to_frame("B")
    assert frame["sum"].max() == memory.peak == memory.total(memory.peak_phase)
    assert memory.to_frame("MiB")["sum"].max() == pytest.approx(memory.peak / 2**20)
    assert memory.peak_phase in str(memory)
    assert "<table>" in memory._repr_html_()
    line = [sum(sample.bytes.values()) for sample in memory.timeline]
    assert max(line) == memory.peak
    assert [p for p in PHASES if p in {sample.phase for sample in memory.timeline}] == [*PHASES[1:]]
    with pytest.raises(ValueError, match=r"'MB' is unknown\. Allowed are B, KiB"):
        memory.to_frame("MB")
    with pytest.raises(ValueError, match="Allowed are"):
        memory.total("warmup")


def test_a_causal_model_of_any_family() -> None:
    """Breaks if the prediction knows Llama's names alone; these differ in every name."""
    from transformers import GPTNeoXConfig, MambaConfig

    plain = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500}
    heads = {"num_attention_heads": 2}
    families: list[PretrainedConfig] = [
        GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=500, n_positions=128),
        GPTNeoXConfig(**plain, **heads, intermediate_size=128),
        MambaConfig(**plain, state_size=4),
    ]
    for config in families:
        memory = predict(config, "full", **SMALL)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        gradients = sum(-(-p.nbytes // 512) * 512 for p in model.parameters())
        assert memory.phases["optimizer"]["gradients"] == gradients, config.model_type


@pytest.mark.parametrize("number", [0, 7, 14, 25])
def test_the_record_of_planners_is_what_is_predicted(number: int) -> None:
    """Full, LoRA, QLoRA, and other targets, next to what others measured on their GPUs."""
    record = json.loads(planners.RESULTS.read_text(encoding="utf-8"))
    case = planners.cases()[number]
    ratios = record["planners"]["this course"]["ratios"]
    assert len(ratios) == len(planners.cases())
    assert round(planners.course(case) / case["peak"], 4) == ratios[number]
    assert abs(ratios[number] - 1) < 0.05
