"""The explorers: what they show is what the functions give, and nothing queues up."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path

import ipywidgets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, MixtralConfig
from trl import SFTConfig

from course_utils import plots, quantization, widgets
from course_utils.configs import build_empty, load_config
from course_utils.memory.step_memory import size_text
from course_utils.paths import POCKET_MODEL
from course_utils.widgets.explorer import Explorer, call, control
from preflight import explorers
from preflight.explorers.planner import CONFIGS
from preflight.memory_plan import GPUS, predict

WEIGHTS = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
BIASED = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=300, n_positions=64)
EXPERTS = MixtralConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, vocab_size=300,
)  # fmt: skip
SMALL = {"batch_size": 1, "length": 64, "device": "cpu"}  # a step that is simulated quickly


def text(html: str) -> str:
    """Return HTML as the reader sees it."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)))


def picture(explorer: Explorer) -> str:
    return explorer.picture.value


# The adapter's size, by peft's own count.


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("targets", ["all-linear", "attention", ["c_fc"]])
@pytest.mark.parametrize("r", [1, 8])
def test_the_count_is_that_of_peft_with_biases(bias, targets, r):
    summary = explorers.lora_summary(BIASED, r=r, bias=bias, targets=targets)
    wrapped = get_peft_model(build_empty(BIASED), summary.config)
    trainable, total = wrapped.get_nb_trainable_parameters()
    adapters = sum(p.numel() for n, p in wrapped.named_parameters() if "lora_" in n)
    assert (summary.trainable, summary.parameters) == (trainable, total - adapters)


@pytest.mark.parametrize("targets", ["all-linear", "attention", "expert", "attention+expert"])
def test_the_count_is_that_of_peft_with_experts(targets):
    summary = explorers.lora_summary(EXPERTS, r=4, targets=targets)
    wrapped = get_peft_model(build_empty(EXPERTS), summary.config)
    assert summary.trainable == wrapped.get_nb_trainable_parameters()[0]


def test_the_bytes_are_those_of_the_saved_adapter(tmp_path: Path):
    summary = explorers.lora_summary(POCKET_MODEL, r=4)
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    get_peft_model(model, summary.config).save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert 0 < size - summary.adapter_bytes < 20_000, "only the file's header should be more"


def test_a_summary_shows_alpha_over_r_and_code_that_makes_the_same_config():
    summary = explorers.lora_summary(POCKET_MODEL, r=4, lora_alpha=2, targets=["q_proj", "v_proj"])
    assert summary.scaling == 0.5
    assert "0.5" in text(summary._repr_html_()) and "alpha / r" in str(summary)
    made = eval(summary.code, {"LoraConfig": LoraConfig})
    assert made.to_dict() == summary.config.to_dict()


def test_code_is_right_for_values_with_quotes_in_them():
    assert eval(call("dict", {"a": "it's", "b": 'a "b"', "c": "plain"})) == {
        "a": "it's", "b": 'a "b"', "c": "plain",
    }  # fmt: skip


def test_a_loaded_model_is_counted_and_left_as_it_is():
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL)
    names = [name for name, _ in model.named_parameters()]
    found = explorers.lora_summary(model, r=4, targets="MLP")
    assert found.trainable == explorers.lora_summary(POCKET_MODEL, r=4, targets="MLP").trainable
    assert names == [name for name, _ in model.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"r": 0}, "rank"),
        ({"lora_alpha": 0}, "alpha above 0"),
        ({"lora_dropout": 1.0}, "below 1"),
        ({"bias": "some"}, "lora_only"),
        ({"targets": []}, "No target name"),
        ({"targets": ["q_proj", "v_porj"]}, "v_proj"),
        ({"targets": "attentoin"}, "attention"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        explorers.lora_summary(POCKET_MODEL, **arguments)


# The LoRA explorer.


@pytest.fixture(scope="module")
def lora():
    return explorers.lora_explorer(POCKET_MODEL, steps=2, **SMALL)


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
def test_the_lora_explorer_shows_what_the_functions_give(lora, name, value, arguments):
    default = lora.settings[name]
    lora.controls[name].value = value
    summary = explorers.lora_summary(POCKET_MODEL, **arguments)
    memory = predict(POCKET_MODEL, "peft", peft_config=summary.config, **SMALL)
    assert summary.table() in lora.numbers.value
    assert text(summary.code) in text(lora.source.value)
    assert f"Peak: now {memory.peak / 2**20:.2f} MiB" in text(picture(lora))
    assert lora.status.value == ""
    lora.controls[name].value = default


def test_a_quantized_model_is_simulated_as_it_is():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, quantization_config=config)
    explorer = explorers.lora_explorer(model, **SMALL)
    summary = explorers.lora_summary(POCKET_MODEL)
    expected = predict(
        POCKET_MODEL, "qlora", peft_config=summary.config, quantization_config=config, **SMALL
    )
    assert summary.table() in explorer.numbers.value
    assert explorer.now.phases == expected.phases


def test_alpha_changes_the_numbers_and_simulates_nothing(lora):
    simulated, shown = len(lora.memories), picture(lora)
    lora.controls["lora_alpha"].value = 128
    assert f"alpha / r {128 / lora.settings['r']:g}" in text(lora.numbers.value)
    assert (len(lora.memories), picture(lora)) == (simulated, shown)
    lora.controls["lora_alpha"].value = 16


def test_a_setting_is_simulated_once(lora):
    lora.controls["r"].value = 2
    simulated = len(lora.memories)
    lora.controls["r"].value = 8
    lora.controls["r"].value = 2
    assert len(lora.memories) == simulated
    lora.controls["r"].value = 8


def test_an_error_is_shown_and_goes_with_its_cause(lora):
    lora.controls["targets"].value = "by name"
    lora.controls["names"].value = ()
    assert "ValueError : No target name was given" in text(lora.status.value)
    assert "opacity" in picture(lora), "the picture is not that of the setting"
    lora.controls["names"].value = ("q_proj",)
    assert lora.status.value == "" and "opacity" not in picture(lora)
    lora.controls["targets"].value = "all-linear"


def test_the_button_trains_and_draws_the_curves_beside_each_other(lora, capfd):
    lora.button.click()
    lora.controls["r"].value = 1
    lora.button.click()
    first, second = lora.curves.values()
    assert list(first.index) == [1, 2] and (first > 0).all()
    assert first[1] == second[1], "an adapter changes nothing at the start"
    assert first[2] != second[2]
    shown = text(lora.losses.value)
    assert "r=8, alpha=16, all-linear: Loss" in shown and "r=1, alpha=16, all-linear: Loss" in shown
    assert not lora.button.disabled and lora.progress.value == 0 and lora.status.value == ""
    assert "%|" not in "".join(capfd.readouterr()), "a progress bar lands under another cell"
    lora.controls["r"].value = 8


def test_training_repeats_itself_and_leaves_the_random_state():
    config = explorers.lora_summary(POCKET_MODEL, r=2, lora_dropout=0.1).config
    steps: list[int] = []
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = explorers.lora_training(config, 2, on_step=steps.append)
    assert torch.equal(torch.rand(3), expected)
    config = explorers.lora_summary(POCKET_MODEL, r=2, lora_dropout=0.1).config
    assert explorers.lora_training(config, 2).equals(first)
    assert steps == [1, 2]


def test_a_training_that_fails_says_why_and_frees_the_button():
    explorer = explorers.lora_explorer(BIASED, steps=2, **SMALL)
    explorer.controls["targets"].value = "by name"  # c_attn, which the pocket model has not
    explorer.button.click()
    assert "ValueError" in explorer.status.value and "c_attn" in explorer.status.value
    assert not explorer.button.disabled and not explorer.curves


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
    explorer = widgets.quantization_explorer(WEIGHTS)
    shown = picture(explorer)
    explorer.controls[name].value = value
    report = quantization.explore(WEIGHTS, **how)
    assert report._repr_html_() in explorer.numbers.value
    assert picture(explorer) != shown
    said = text(picture(explorer))
    for one in (report, quantization.explore(WEIGHTS)):  # now and before
        assert f"{one.name} {one.relative:.2%} at {one.bits_per_parameter:.3g} bits" in said


def test_the_quantization_explorer_takes_several_tensors():
    explorer = widgets.quantization_explorer({"a": WEIGHTS, "b": WEIGHTS[:3]})
    explorer.controls["sample"].value = "b"
    assert f"{3 * 128:,}" in text(explorer.numbers.value)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the least computing time of three runs, which a busy machine hardly changes."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def test_a_redraw_costs_little_more_than_its_figure():
    weights = torch.randn(256, 768)
    explorer = widgets.quantization_explorer(weights)
    sizes = iter((128, 256, 512))

    def change() -> None:
        explorer.controls["block_size"].value = next(sizes)

    def draw() -> None:
        reports = [quantization.explore(weights, block_size=size) for size in (64, 128)]
        plots.quantization_errors(reports).savefig(io.BytesIO())

    assert cpu_seconds(change) < 3 * cpu_seconds(draw)


@pytest.mark.parametrize("weights", [{}, [1.0, 2.0], {"a": 1}, torch.zeros(3, dtype=torch.int8)])
def test_what_is_no_weight_is_refused(weights):
    with pytest.raises(ValueError, match="floating-point tensor"):
        widgets.quantization_explorer(weights)


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("fp4", False), ("int8", False)])
def test_the_quantization_code_makes_the_config(kind, double):
    made = eval(
        widgets.quantization_code(kind, 64, double), {"BitsAndBytesConfig": BitsAndBytesConfig}
    )
    assert made.load_in_8bit == (kind == "int8")
    if kind != "int8":
        assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == (kind, double)


def test_the_quantization_code_says_what_bitsandbytes_cannot_do():
    assert "always of 64" in widgets.quantization_code("nf4", 128)
    assert widgets.quantization_code("int4").startswith("# bitsandbytes has no int4")
    with pytest.raises(ValueError, match="nf4, fp4, int4, int8"):
        widgets.quantization_code("nf5")


# The memory planner.


@pytest.fixture(scope="module")
def planner():
    return explorers.memory_planner(str(POCKET_MODEL))


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
def test_the_planner_shows_what_the_functions_give(planner, name, value):
    default = planner.settings[name]
    planner.controls[name].value = value
    settings = planner.settings
    gpu = settings.pop("gpu")
    method = settings.pop("method")
    settings.pop("model")
    plan = explorers.plan_fits(str(POCKET_MODEL), method, gpus=gpu, **settings)
    shown = text(planner.numbers.value)
    assert f"Fits {gpu}: it needs {size_text(plan.rows[0].needed)} of" in shown
    assert text(explorers.plan_code(method, **settings)) in text(planner.source.value)
    assert f"now {plan.rows[0].memory.peak / 2**20:.2f} MiB" in text(picture(planner))
    planner.controls[name].value = default


def test_another_gpu_simulates_nothing(planner):
    simulated, shown = len(planner.plans), picture(planner)
    for gpu in GPUS:
        planner.controls["gpu"].value = gpu.name
        assert f"Fits {gpu.name}:" in text(planner.numbers.value)
    assert (len(planner.plans), picture(planner)) == (simulated, shown)


def test_the_planner_says_what_does_not_fit():
    planner = explorers.memory_planner("llama-3.1-70b", "T4")
    row = planner.now["T4", "qlora"]
    missing = size_text(row.needed - row.gpu.bytes)
    assert f"Does not fit T4: it needs {size_text(row.needed)} of" in text(planner.numbers.value)
    assert f"{missing} too much" in text(planner.numbers.value)
    enough = [one.gpu.name for one in planner.now.rows if one.fits]
    assert f"Fits: {', '.join(enough)}." in text(planner.numbers.value)


@pytest.mark.parametrize("size", ["24", 24])
def test_the_planner_takes_a_size_in_gib(size):
    planner = explorers.memory_planner(str(POCKET_MODEL), size)
    assert "Fits 24 GiB: it needs" in text(planner.numbers.value)
    planner.controls["gpu"].value = "T4"
    assert "Fits T4: it needs" in text(planner.numbers.value) and planner.status.value == ""


@pytest.mark.parametrize("method", list(CONFIGS))
def test_the_plan_code_makes_what_was_simulated(method, tmp_path):
    code = explorers.plan_code(method, batch_size=2, length=128, gradient_checkpointing=False)
    made = {}

    def keep(kind):
        return lambda **arguments: made.setdefault(kind.__name__, kind(**arguments))

    def training(**arguments):
        made["SFTConfig"] = SFTConfig(output_dir=str(tmp_path), use_cpu=True, **arguments)

    names = {"LoraConfig": keep(LoraConfig), "BitsAndBytesConfig": keep(BitsAndBytesConfig)}
    exec(code, names | {"SFTConfig": training, "torch": torch})
    options = {
        "peft_config": made.get("LoraConfig"),
        "quantization_config": made.get("BitsAndBytesConfig"),
        "batch_size": made["SFTConfig"].per_device_train_batch_size,
        "length": made["SFTConfig"].max_length,
        "gradient_checkpointing": made["SFTConfig"].activation_checkpointing,
        "optimizer": made["SFTConfig"].optim,
    }
    plan = explorers.plan_fits(
        str(POCKET_MODEL), method, gpus="T4", batch_size=2, length=128, gradient_checkpointing=False
    )
    assert (
        predict(load_config(POCKET_MODEL), method, **options).phases == plan.rows[0].memory.phases
    )


def test_a_plan_needs_a_method_a_gpu_and_a_model_that_there_are():
    with pytest.raises(ValueError, match="full, lora, qlora, int8"):
        explorers.plan_code("lorra")
    with pytest.raises(ValueError, match="RTX 4090"):
        explorers.memory_planner(gpu="Voodoo 2")
    with pytest.raises(FileNotFoundError):
        explorers.memory_planner("./nowhere")


# The shell.


class Counter(Explorer):
    """Doubles a number, slowly, and remembers what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[int] = []
        self.seconds = seconds
        super().__init__({"x": control(ipywidgets.IntSlider, "x", 0, max=100)})

    def show(self, settings):
        self.asked.append(settings["x"])
        time.sleep(self.seconds)
        if settings["x"] == 13:
            raise KeyError("unlucky")
        self.tell(f"{2 * settings['x']}")


def test_changes_that_follow_each_other_are_drawn_once():
    async def slide() -> Counter:
        counter = Counter()
        for x in range(1, 10):
            counter.controls["x"].value = x
        await asyncio.sleep(0.2)
        return counter

    counter = asyncio.run(slide())
    assert counter.asked == [0, 9] and "18" in counter.numbers.value


def test_of_the_changes_that_come_while_one_computes_the_last_is_drawn():
    async def slide() -> Counter:
        counter = Counter(0.3)
        loop = asyncio.get_running_loop()
        counter.controls["x"].value = 1
        for x in range(2, 8):  # due while the first is drawn, as a kernel's messages would be
            loop.call_later(0.1 + 0.02 * x, setattr, counter.controls["x"], "value", x)
        await asyncio.sleep(1.0)
        return counter

    counter = asyncio.run(slide())
    assert counter.asked == [0, 1, 7] and "14" in counter.numbers.value


def test_a_change_from_another_thread_is_drawn_in_the_explorers_own():
    """Newer kernels handle a widget's messages in a thread of their own."""

    async def slide() -> list[str]:
        names = []
        counter = Counter()
        counter.tell = lambda html: names.append(threading.current_thread().name)
        setter = threading.Thread(target=setattr, args=(counter.controls["x"], "value", 5))
        setter.start()
        await asyncio.sleep(0.2)
        setter.join()
        return names

    assert asyncio.run(slide()) == [threading.main_thread().name]


def test_a_change_does_not_push_out_other_work():
    async def act() -> tuple[list[int], list[str]]:
        counter, done = Counter(), []
        counter.later(work := lambda: done.append("work"))
        counter.controls["x"].value = 4
        counter.later(work)
        await asyncio.sleep(0.2)
        return counter.asked, done

    assert asyncio.run(act()) == ([0, 4], ["work"])


def test_an_unexpected_error_is_shown_with_its_traceback():
    counter = Counter()
    counter.controls["x"].value = 13
    assert "KeyError" in counter.status.value and "Traceback" in counter.status.value
    counter.controls["x"].value = 14
    assert counter.status.value == "" and "28" in counter.numbers.value


def test_every_control_has_a_label_and_pictures_a_text(lora, planner):
    for explorer in (lora, planner, widgets.quantization_explorer(WEIGHTS)):
        assert all(one.description for one in explorer.controls.values())
        assert re.search(r'<img alt="[^"]+"', picture(explorer))


def test_only_core_widgets_are_used(lora, planner):
    def inside(widget: ipywidgets.Widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    for explorer in (lora, planner, widgets.quantization_explorer(WEIGHTS)):
        kinds = {w._model_module for w in inside(explorer)}
        assert kinds == {"@jupyter-widgets/controls"}
