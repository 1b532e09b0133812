"""The explorers: what they show is what the functions give, once for each change."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch
from helpers import shown_text as text
from IPython.display import HTML
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config
from trl import SFTConfig

from course_utils import quantization, widgets
from course_utils.configs import build_empty, load_config
from course_utils.display import call_text
from course_utils.memory.step_memory import size_text
from course_utils.paths import POCKET_MODEL
from course_utils.widgets import Explorer, control
from preflight import explorers
from preflight.explorers import lora as lora_module
from preflight.explorers import planner as planner_module
from preflight.memory_plan import GPUS, predict

WEIGHTS = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
BIASED = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=300, n_positions=64)
SMALL = {"batch_size": 1, "length": 64, "device": "cpu"}  # a step that is simulated quickly


@pytest.fixture(scope="module")
def predicted() -> Iterator[Mock]:
    with patch.object(lora_module, "predict", wraps=predict) as calls:
        yield calls


@pytest.fixture(scope="module")
def planned() -> Iterator[Mock]:
    with patch.object(planner_module, "plan_fits", wraps=explorers.plan_fits) as calls:
        yield calls


@pytest.fixture(scope="module")
def lora(predicted: Mock) -> Explorer:
    return explorers.lora_explorer(POCKET_MODEL, steps=2, **SMALL)


@pytest.fixture(scope="module")
def planner(planned: Mock) -> Explorer:
    return explorers.memory_planner(str(POCKET_MODEL))


# The adapter's size, by peft's own count.


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("targets", ["all-linear", "attention", ["c_fc"]])
def test_the_count_is_that_of_peft_with_biases(bias, targets):
    summary = explorers.lora_summary(BIASED, r=8, bias=bias, targets=targets)
    wrapped = get_peft_model(build_empty(BIASED), summary.config)
    trainable, total = wrapped.get_nb_trainable_parameters()
    adapters = sum(p.numel() for n, p in wrapped.named_parameters() if "lora_" in n)
    assert (summary.trainable, summary.parameters) == (trainable, total - adapters)


def test_the_bytes_are_those_of_the_saved_adapter(tmp_path: Path):
    summary = explorers.lora_summary(POCKET_MODEL, r=4)
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    get_peft_model(model, summary.config).save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 0 < size - summary.adapter_bytes < 20_000, "only the file's header should be more"


def test_a_summary_shows_alpha_over_r_and_code_that_makes_the_same_config():
    summary = explorers.lora_summary(POCKET_MODEL, r=4, lora_alpha=2, targets=["q_proj", "v_proj"])
    assert summary.scaling == 0.5 and summary.layers == 8
    assert "0.5" in text(summary._repr_html_()) and "alpha / r" in str(summary)
    made = eval(summary.code, {"LoraConfig": LoraConfig})
    assert made.to_dict() == summary.config.to_dict()


def test_code_is_right_for_values_with_quotes_in_them():
    given = {"a": "it's", "b": 'a "b"', "c": "plain"}
    assert eval(call_text("dict", given)) == given


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"r": 0}, "rank"),
        ({"lora_alpha": 0}, "lora_alpha is 0. Allowed is a number above 0"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"bias": "some"}, "lora_only"),
        ({"targets": []}, "No target name"),
        ({"targets": ["q_proj", "v_porj"]}, "v_proj"),
        ({"targets": "attentoin"}, "attention"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(arguments, words):
    with pytest.raises(ValueError, match=words):
        explorers.lora_summary(POCKET_MODEL, **arguments)


# The LoRA explorer.


@pytest.mark.parametrize(
    ("name", "value", "arguments"),
    [
        ("r", 32, {"r": 32}),
        ("lora_alpha", 64, {"lora_alpha": 64}),
        ("lora_dropout", 0.1, {"lora_dropout": 0.1}),
        ("bias", "all", {"bias": "all"}),
        ("targets", "attention", {"targets": "attention"}),
        ("targets", "by name", {"targets": ["q_proj"]}),
    ],
)
def test_the_lora_explorer_shows_what_the_functions_give(lora, predicted, name, value, arguments):
    default, before = lora.kwargs[name], predicted.call_count
    lora.controls[name].value = value
    assert predicted.call_count - before == (name != "lora_alpha"), "alpha changes no size"
    summary = explorers.lora_summary(POCKET_MODEL, **arguments)
    memory = predict(POCKET_MODEL, "peft", peft_config=summary.config, **SMALL)
    assert summary.table() in lora.result.data
    assert f"Peak: now {memory.peak / 2**20:.2f} MiB" in text(lora.result.data)
    assert text(summary.code) in text(lora.result.data)
    lora.controls[name].value = default
    assert predicted.call_count - before <= 1, "a setting is simulated once"


def test_a_quantized_model_is_simulated_as_it_is():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, quantization_config=config)
    explorer = explorers.lora_explorer(model, **SMALL)
    summary = explorers.lora_summary(POCKET_MODEL)
    expected = predict(
        POCKET_MODEL, "qlora", peft_config=summary.config, quantization_config=config, **SMALL
    )
    assert summary.table() in explorer.result.data
    assert f"Peak: now {expected.peak / 2**20:.2f} MiB" in text(explorer.result.data)


def test_an_error_is_shown_and_goes_with_its_cause(lora):
    assert lora.controls["names"].disabled
    lora.controls["targets"].value = "by name"
    assert not lora.controls["names"].disabled
    lora.controls["names"].value = ()
    assert "ValueError : No target name was given" in text(lora.result.data)
    assert "<img" not in lora.result.data, "the picture is not that of the setting"
    assert lora.status.value == "", "nothing is computed any more"
    lora.controls["names"].value = ("q_proj",)
    assert "Error" not in lora.result.data and "<img" in lora.result.data
    lora.controls["targets"].value = "all-linear"


def test_the_button_trains_and_draws_all_curves_together(lora, capfd, monkeypatch):
    curves = []

    def training(*arguments: Any) -> Any:
        curves.append(explorers.lora_training(*arguments))
        return curves[-1]

    monkeypatch.setattr(lora_module, "lora_training", training)
    lora.training.manual_button.click()
    lora.controls["r"].value = 1
    lora.training.manual_button.click()
    first, second = curves
    assert list(first.index) == [1, 2] and (first > 0).all()
    assert first[1] == second[1], "an adapter changes nothing at the start"
    assert first[2] != second[2]
    shown = text(lora.training.result.data)
    assert "r=8, alpha=16, all-linear: Loss" in shown and "r=1, alpha=16, all-linear: Loss" in shown
    assert not lora.training.manual_button.disabled
    assert "%|" not in "".join(capfd.readouterr()), "a progress bar lands under another cell"
    lora.controls["r"].value = 8


def test_training_repeats_itself_and_leaves_the_random_state():
    def config() -> LoraConfig:
        return explorers.lora_summary(POCKET_MODEL, r=2, lora_dropout=0.1).config

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = explorers.lora_training(config(), 2)
    assert torch.equal(torch.rand(3), expected)
    assert explorers.lora_training(config(), 2).equals(first)


def test_a_training_that_fails_says_why_and_frees_the_button():
    explorer = explorers.lora_explorer(BIASED, steps=2, **SMALL)
    explorer.controls["targets"].value = "by name"  # c_attn, which the pocket model has not
    explorer.training.manual_button.click()
    assert "ValueError" in explorer.training.result.data
    assert "c_attn" in explorer.training.result.data
    assert not explorer.training.manual_button.disabled


# The quantization explorer.


@pytest.mark.parametrize(
    ("name", "value", "how"),
    [
        ("kind", "fp4", {"kind": "fp4"}),
        ("kind", "int8", {"kind": "int8"}),
        ("block_size", 256, {"block_size": 256}),
        ("double_quant", True, {"double_quant": True}),
    ],
)
def test_the_quantization_explorer_shows_what_explore_gives(name, value, how):
    explorer = widgets.quantization_explorer({"a": WEIGHTS[:3], "b": WEIGHTS})
    explorer.controls["sample"].value = "b"
    explorer.controls[name].value = value
    report = quantization.explore(WEIGHTS, **how)
    assert report._repr_html_() in explorer.result.data
    shown = text(explorer.result.data)
    for one in (report, quantization.explore(WEIGHTS)):  # now and before
        assert f"{one.name} {one.relative:.2%} at {one.bits_per_parameter:.3g} bits" in shown


@pytest.mark.parametrize("weights", [{}, [1.0, 2.0], {"a": 1}, torch.zeros(3, dtype=torch.int8)])
def test_what_is_no_weight_is_refused(weights):
    with pytest.raises(ValueError, match="floating-point tensor"):
        widgets.quantization_explorer(weights)


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("fp4", False), ("int8", False)])
def test_the_quantization_code_makes_the_config(kind, double):
    code = widgets.quantization_code(kind, 64, double)
    made = eval(code, {"BitsAndBytesConfig": BitsAndBytesConfig})
    assert made.load_in_8bit == (kind == "int8")
    if kind != "int8":
        assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == (kind, double)


def test_the_quantization_code_says_what_bitsandbytes_cannot_do():
    assert "always of 64" in widgets.quantization_code("nf4", 128)
    assert widgets.quantization_code("int4").startswith("# bitsandbytes has no int4")
    with pytest.raises(ValueError, match="nf4, fp4, int4, int8"):
        widgets.quantization_code("nf5")


# The memory planner.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "full"),
        ("method", "int8"),
        ("batch_size", 4),
        ("length", 256),
        ("gradient_checkpointing", False),
        ("optimizer", "sgd"),
        ("gpu", "L4"),
    ],
)
def test_the_planner_shows_what_the_functions_give(planner, planned, name, value):
    default, before = planner.kwargs[name], planned.call_count
    planner.controls[name].value = value
    assert planned.call_count - before == (name != "gpu"), "a plan is held against all GPUs"
    settings = dict(planner.kwargs)
    model, method, gpu = (settings.pop(one) for one in ("model", "method", "gpu"))
    plan = explorers.plan_fits(model, method, gpus=gpu, **settings)
    shown = text(planner.result.data)
    assert f"Fits {gpu}: it needs {size_text(plan.rows[0].needed)} of" in shown
    assert text(explorers.plan_code(method, **settings)) in shown
    assert f"now {plan.rows[0].memory.peak / 2**20:.2f} MiB" in shown
    planner.controls[name].value = default
    assert planned.call_count - before <= 1, "a setting is simulated once"


def test_the_planner_says_what_does_not_fit():
    shown = text(explorers.memory_planner("llama-3.1-70b", "T4").result.data)
    plan = explorers.plan_fits("llama-3.1-70b", "qlora", gpus=GPUS)
    row = plan["T4", "qlora"]
    assert f"Does not fit T4: it needs {size_text(row.needed)} of" in shown
    assert f"{size_text(row.needed - row.gpu.bytes)} too much" in shown
    assert f"Fits: {', '.join(one.gpu.name for one in plan.rows if one.fits)}." in shown


@pytest.mark.parametrize("size", ["24", 24])
def test_the_planner_takes_a_size_in_gib(size):
    planner = explorers.memory_planner(str(POCKET_MODEL), size)
    assert "Fits 24 GiB: it needs" in text(planner.result.data)
    planner.controls["gpu"].value = "T4"
    assert "Fits T4: it needs" in text(planner.result.data)


@pytest.mark.parametrize("method", planner_module.PLANNED)
def test_the_plan_code_makes_what_was_simulated(method, tmp_path):
    settings = {"batch_size": 2, "length": 128, "gradient_checkpointing": False}
    made = {}

    def keep(kind):
        return lambda **arguments: made.setdefault(kind.__name__, kind(**arguments))

    def training(**arguments):
        made["SFTConfig"] = SFTConfig(output_dir=str(tmp_path), use_cpu=True, **arguments)

    names = {"LoraConfig": keep(LoraConfig), "BitsAndBytesConfig": keep(BitsAndBytesConfig)}
    names |= {"SFTConfig": training, "torch": torch}
    exec(explorers.plan_code(method, **settings), names)
    options = {
        "peft_config": made.get("LoraConfig"),
        "quantization_config": made.get("BitsAndBytesConfig"),
        "batch_size": made["SFTConfig"].per_device_train_batch_size,
        "length": made["SFTConfig"].max_length,
        "gradient_checkpointing": made["SFTConfig"].activation_checkpointing,
        "optimizer": made["SFTConfig"].optim,
    }
    (row,) = explorers.plan_fits(str(POCKET_MODEL), method, gpus="T4", **settings).rows
    assert predict(load_config(POCKET_MODEL), method, **options).phases == row.memory.phases


def test_a_plan_needs_a_method_a_gpu_and_a_model_that_there_are():
    with pytest.raises(ValueError, match="full, lora, qlora, int8"):
        explorers.plan_code("lorra")
    with pytest.raises(ValueError, match="RTX 4090"):
        explorers.memory_planner(gpu="Voodoo 2")
    with pytest.raises(FileNotFoundError):
        explorers.memory_planner("./nowhere")


# What all share.


def test_a_change_is_drawn_once_and_in_the_explorers_own_thread():
    """Newer kernels handle a widget's messages in a thread of their own."""
    drawn = []

    def show(x: int) -> HTML:
        drawn.append((x, threading.current_thread().name))
        return HTML(f"{2 * x}")

    async def slide() -> Explorer:
        explorer = Explorer("Doubler", show, {"x": control(ipywidgets.IntSlider, "x")})
        await asyncio.to_thread(setattr, explorer.controls["x"], "value", 5)
        return explorer

    explorer = asyncio.run(slide())
    here = threading.current_thread().name
    assert drawn == [(0, here), (5, here)] and explorer.result.data == "10"


def parts(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(part for one in getattr(widget, "children", ()) for part in parts(one))]


@pytest.mark.parametrize("kind", ["lora", "planner", "quantization", "schedule"])
def test_every_host_can_show_an_explorer(kind, lora, planner):
    """By core widgets alone; sliders wait for their release, and all has words."""
    if kind == "quantization":
        explorer = widgets.quantization_explorer(WEIGHTS)
    else:
        explorer = {"lora": lora, "planner": planner}.get(kind) or widgets.schedule_explorer()
    modules = {part._model_module for part in parts(explorer)}
    assert modules == {"@jupyter-widgets/controls", "@jupyter-widgets/output"}
    assert all(one.description for one in explorer.controls.values())
    assert not any(getattr(one, "continuous_update", False) for one in explorer.controls.values())
    assert re.search(r'<img alt="[^"]+"', explorer.result.data)
    # What a saved notebook shows where no kernel runs.
    assert re.fullmatch(r"[\w ]+: run its cell to move the controls", repr(explorer))
    assert not plt.get_fignums(), "figures are left open"
