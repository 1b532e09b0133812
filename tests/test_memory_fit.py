"""Planning: which GPUs a training fits on, by simulation; the shipped shapes; sharded training."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, MixtralConfig
from trl import SFTConfig

from course_utils import configs
from course_utils.paths import POCKET_MODEL
from preflight.memory_plan import (
    GPU,
    GPUS,
    GPUFit,
    Overhead,
    find_gpu,
    fit_gpus,
    gpu_table,
    largest,
    predict,
    sharded,
    units,
)
from preflight.memory_plan.simulate import layers_of

GIB = 2**30
# As their publishers give them: data/configs/README.md says where each is from.
PUBLISHED = {
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}
BARE = Overhead(0, 0)
# A step of the pocket model, small enough to be simulated often.
POCKET = {"model": str(POCKET_MODEL), "method": "lora", "batch_size": 2, "length": 128}


def first_row(method: str, gpu: object = 24, **options: object) -> GPUFit:
    """Return the first row of the table of what fits, for the pocket model."""
    return fit_gpus(POCKET["model"], gpu, method, **options).rows[0]


def gpu_with(size: float) -> GPU:
    """Return a GPU that can hold `size` bytes."""
    return GPU("test", size / GIB)


@pytest.mark.parametrize("name", configs.shipped())
def test_shipped_shapes_have_the_published_number_of_parameters(name: str) -> None:
    """One wrong dimension would make every plan for the model wrong."""
    model = configs.build_empty(configs.load_config(name))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_the_card_names_every_shape_and_its_parameters() -> None:
    """The card is where a reader checks the source."""
    card = (configs.CONFIGS / "README.md").read_text(encoding="utf-8")
    assert configs.shipped() == sorted(PUBLISHED)
    for name, count in PUBLISHED.items():
        assert f"| {name} |" in card
        assert f"{count:,}" in card


@pytest.mark.parametrize(
    "given, name",
    [
        ("T4", "T4"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("a100-80gb", "A100 80GB"),
        ("h100", "H100 80GB"),
        ("apple 32", "Apple 32GB"),
        ("4090", "RTX 4090"),
    ],
)
def test_gpus_are_found_as_people_write_them(given: str, name: str) -> None:
    """Nobody remembers whether there is a space in RTX 4090."""
    assert find_gpu(given).name == name


def test_a_gpu_can_be_a_size() -> None:
    """Cards that the table lacks are planned for by their memory."""
    assert find_gpu("24").bytes == find_gpu(24.0).bytes == 24 * GIB
    assert find_gpu(GPUS[0]) is GPUS[0]


@pytest.mark.parametrize(
    "given", ["A100", "apple", "GTX 9999", "", "-3", "nan", 0, "16GB", "16 GiB", "8192", 8192]
)
def test_an_unknown_gpu_is_refused_with_the_names(given: str | int) -> None:
    """Two A100s differ by 40 GiB, so neither is guessed."""
    with pytest.raises(ValueError, match=r"A100 40GB|Apple 16GB|above 0"):
        find_gpu(given)


def test_the_gpu_table_is_sound() -> None:
    """Less than what is on the box, a source for each, names that differ."""
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert 0.6 * gpu.sold_as < gpu.memory * GIB / 1e9 < 1.07 * gpu.sold_as, gpu.name
        assert "20" in gpu.source
    assert not find_gpu("T4").bf16
    assert find_gpu("L4").bf16
    text = gpu_table()
    assert all(gpu.name in text for gpu in GPUS)


@pytest.mark.parametrize("limit", [0, 99, 100, 149, 150, 3000, 10**9])
@pytest.mark.parametrize("start", [1, 7, 500])
def test_largest_finds_the_last_that_fits(limit: int, start: int) -> None:
    """On lines and on lines with a bend, with few questions, the neighbour above among them."""
    for curve in (
        lambda n: 50 + 50 * n,
        lambda n: max(1000, 40 + 60 * n),
        lambda n: 60 * min(n, 40) + 7 * n + 33,
    ):
        asked: dict[int, int] = {}
        answer = largest(curve, limit, start=start, end=1000, points=asked)
        assert answer == max((n for n in range(1, 1001) if curve(n) <= limit), default=0)
        assert len(asked) <= 18
        if answer < 1000:
            assert asked[answer + 1] > limit


def test_largest_stays_below_its_end_whatever_is_known() -> None:
    """A plan may be larger than the model's context, and its own point must not count."""
    assert largest(lambda n: n, 100, start=8, end=8, points={16: 16}) == 8
    assert largest(lambda n: n, 5, start=8, end=8, points={16: 16}) == 5


@pytest.mark.long
def test_a_plan_with_a_larger_batch_or_length_than_usual() -> None:
    """Its largest batch is the plan's at least where the plan fits; its length the context."""
    wide = first_row("lora", length=8, batch_size=2048, limits=True)
    assert wide.fits and wide.largest_batch >= 2048
    long = first_row("lora", length=1024, limits=True)
    assert long.largest_length == 512


def test_largest_learns_from_earlier_searches() -> None:
    """For a second GPU the line is known already: two questions are enough."""
    known: dict[int, int] = {}
    largest(lambda n: 50 + 50 * n, 5000, start=1, end=1000, points=known)
    before = len(known)
    assert largest(lambda n: 50 + 50 * n, 20_000, start=1, end=1000, points=known) == 399
    assert len(known) <= before + 2


def test_the_overhead_is_its_own_line() -> None:
    """What is not simulated is shown, and can be set."""
    roomy = first_row("lora", length=128)
    assert roomy.overhead == int(0.6 * GIB + 0.08 * roomy.memory.peak)
    assert roomy.needed == roomy.memory.peak + roomy.overhead
    bare = first_row("lora", length=128, overhead=BARE)
    assert bare.needed == bare.memory.peak == roomy.memory.peak


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_limits_are_what_predict_says(method: str) -> None:
    """At the answer it fits; one row, or 64 tokens, above it does not."""
    plan = {**POCKET, "method": method}
    gpu = gpu_with(3.5 * predict(**plan).peak)
    row = first_row(method, gpu, overhead=BARE, limits=True, batch_size=2, length=128)
    assert row.fits
    batch, length = row.largest_batch, row.largest_length
    assert batch > plan["batch_size"]
    assert predict(**{**plan, "batch_size": batch}).peak <= gpu.bytes
    assert predict(**{**plan, "batch_size": batch + 1}).peak > gpu.bytes
    assert length % 64 == 0
    assert predict(**{**plan, "length": length}).peak <= gpu.bytes
    context = configs.load_config(POCKET_MODEL).max_position_embeddings
    assert length == context or predict(**{**plan, "length": length + 64}).peak > gpu.bytes


def test_a_search_says_what_it_does_and_does_little() -> None:
    """Each plan is named before it is simulated; a line through those that are known leads on."""
    plans: list[str] = []
    table = fit_gpus("llama-3.2-1b", 12, "qlora", length=256, limits=True, progress=plans.append)
    (row,) = table.rows
    assert plans[0] == "qlora, batch 1, length 256"
    assert len(plans) == len(set(plans)) <= 8
    for batch in (row.largest_batch, row.largest_batch + 1):
        assert f"qlora, batch {batch}, length 256" in plans
    for length in (row.largest_length, row.largest_length + 64):
        assert f"qlora, batch 1, length {length}" in plans


def test_a_gpu_too_small_for_anything() -> None:
    """0, not an error: nothing fits."""
    row = first_row("full", 0.5, limits=True, advice=True)
    assert (row.fits, row.largest_batch, row.largest_length) == (False, 0, 0)
    assert row.changes == ()


def test_the_first_change_makes_it_fit() -> None:
    """Its saving is the difference of two predictions, and the plan with it is checked."""
    plan = {"batch_size": 1, "length": 512}
    with_it, without = (
        predict(POCKET_MODEL, "lora", **plan, gradient_checkpointing=one).peak
        for one in (True, False)
    )
    gpu = gpu_with((without + with_it) / 2)
    row = first_row("lora", gpu, overhead=BARE, advice=True, **plan, gradient_checkpointing=False)
    assert not row.fits
    (change,) = row.changes
    assert change.name == "gradient checkpointing"
    assert change.setting == "activation_checkpointing=True in SFTConfig"
    assert "activation_checkpointing" in SFTConfig.__dataclass_fields__  # not the name of old
    assert change.saving == without - with_it > 0
    assert change.fits
    assert row.tried == ()


def test_the_advice_for_8_bits_has_a_quantization_of_its_own() -> None:
    """An 8-bit config that goes on into QLoRA is refused there, and with it the whole answer."""
    eight = BitsAndBytesConfig(load_in_8bit=True)
    sizes = {"batch_size": 1, "length": 256}
    peaks = [predict(POCKET["model"], method, **sizes).peak for method in ("int8", "qlora")]
    gpu = GPU("test", sum(peaks) / 2 / GIB, cuda=False)
    options = sizes | {"quantization_config": eight}
    row = first_row("int8", gpu, overhead=BARE, advice=True, **options)
    assert not row.fits
    assert [change.name for change in row.changes] == ["QLoRA"]
    assert row.changes[0].saving == peaks[0] - peaks[1] > 0


def test_several_changes_where_one_is_not_enough() -> None:
    """Each is needed, their savings add up, and the last one makes it fit."""
    both = predict(POCKET_MODEL, "lora", batch_size=1, length=256).peak
    gpu = GPU("test", 1.02 * both / GIB, cuda=False)
    options = {"batch_size": 8, "length": 256, "gradient_checkpointing": False}
    row = first_row("lora", gpu, overhead=BARE, advice=True, **options)
    assert len(row.changes) > 1
    assert [c.fits for c in row.changes] == [False] * (len(row.changes) - 1) + [True]
    assert row.memory.peak - sum(c.saving for c in row.changes) <= gpu.bytes
    assert all(not c.fits for c in row.tried)


def test_eight_billion_parameters_on_the_table_of_gpus() -> None:
    """QLoRA fits a T4 and LoRA does not; a row that was not asked for is refused."""
    table = fit_gpus("llama-3.1-8b", ["T4", "RTX 4090", "A100 80GB", "B200"], ("lora", "qlora"))
    assert [r.fits for r in table.rows if r.method == "qlora"] == [True] * 4
    assert not table["T4", "lora"].fits
    assert table["RTX 4090", "lora"].fits
    frame = table.to_frame()
    assert list(frame["GPU"].unique()) == ["T4", "RTX 4090", "A100 80GB", "B200"]
    assert any("float16" in note for note in table.notes)
    assert "(median 8%)" in str(table)
    assert "<table" in table._repr_html_()
    with pytest.raises(ValueError, match="There is no row"):
        table["T4", "full"]


def test_experts_that_are_not_quantized_are_named() -> None:
    """Or 85 GiB of weights in 4 bits look like a fault. As bitsandbytes leaves them: 3-D."""
    config = MixtralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, num_local_experts=4,
    )  # fmt: skip
    table = fit_gpus(config, "T4", ("full", "qlora"), length=64)
    experts = 4 * 3 * 64 * 128
    attention, norms, router, embeddings = 64 * (64 + 32 + 32 + 64), 3 * 64, 4 * 64, 2 * 128 * 64
    assert table.unquantized == experts / (experts + attention + norms + router + embeddings)
    assert any("keep their dtype" in note for note in table.notes)
    by_hand = {"peft_config": LoraConfig(target_modules="all-linear")}
    by_hand["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True)
    assert fit_gpus(config, "T4", "peft", length=64, **by_hand).unquantized == table.unquantized
    assert fit_gpus(config, "T4", "full", length=64).unquantized == 0
    assert fit_gpus("qwen3-0.6b", "T4", "qlora", length=64).unquantized == 0


@pytest.mark.parametrize("gpus, methods", [([], "lora"), ("T4", [])])
def test_a_plan_without_a_gpu_or_a_method_is_refused(gpus: object, methods: object) -> None:
    """A wrong name of one is in book/bad_input.yaml."""
    with pytest.raises(ValueError, match="at least"):
        fit_gpus(POCKET["model"], gpus, methods)


def test_units_are_all_of_the_model() -> None:
    """Embeddings, head and norm outside; the rest in equal layers."""
    parts = units("llama-3.1-8b")
    assert parts.parameters == PUBLISHED["llama-3.1-8b"]
    assert parts.outside == (2 * 128256 * 4096 + 4096) / parts.parameters
    assert math.isclose(parts.outside + 32 * parts.layer, 1)


def test_the_layers_are_those_that_the_config_counts() -> None:
    """A list of another length can be larger (a picture's encoder, experts); a wrapper has none."""
    size = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = configs.build_empty(LlamaConfig(**size, **heads, num_hidden_layers=3))
    model.encoder = torch.nn.ModuleList([torch.nn.Linear(500, 500, device="meta")])
    assert layers_of(model) is model.model.layers
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert layers_of(wrapped) is model.model.layers
    model.config.num_hidden_layers = 5  # no list is as long
    assert layers_of(model) is model.encoder
    del model.encoder, model.model.layers
    assert layers_of(model) is None


@pytest.mark.parametrize("degree", [2, 8])
def test_sharded_against_the_formula(degree: int) -> None:
    """ZeRO stage 3: the states of the model over the degree; FSDP: and what is gathered."""
    whole = predict(configs.load_config("llama-3.2-1b"), "full", length=512)
    part = sharded(whole, "llama-3.2-1b", degree)
    count = PUBLISHED["llama-3.2-1b"]
    # After the step only the states are left: weights, gradients and two moments in 2 bytes each.
    end = part.phases["optimizer"]
    assert end["weights"] == pytest.approx(2 * count / degree, rel=1e-3)
    assert end["gradients"] == pytest.approx(2 * count / degree, rel=1e-3)
    assert end["optimizer state"] == pytest.approx(4 * count / degree, rel=1e-3)
    # Embedding (tied) and final norm whole, and two of sixteen layers.
    outside = 128256 * 2048 + 2048
    gathered = 2 * (outside + 2 * (count - outside) / 16) * (1 - 1 / degree)
    for phase in ("forward", "backward"):
        assert part.phases[phase]["activations"] in {
            whole.phases[phase]["activations"],
            *(s.bytes["activations"] for s in whole.timeline if s.phase == phase),
        }
        assert part.phases[phase]["temporaries"] >= int(gathered)
    assert part.settings["shards"] == degree


def test_sharded_knows_of_embeddings_in_float32() -> None:
    """prepare_model_for_kbit_training makes 4 bytes of the 2 that a weight outside layers has."""
    options = {"length": 256, "prepare_for_kbit": True}
    whole = predict("llama-3.2-1b", "qlora", **options)
    part = sharded(whole, "llama-3.2-1b", 2)
    outside = 4 * (128256 * 2048 + 2048)
    load = whole.phases["load"]
    gathered = outside + 2 / 16 * (load["weights"] - outside + load["adapters"])
    assert part.phases["forward"]["temporaries"] >= int(gathered / 2)


def test_sharded_on_one_gpu_changes_nothing() -> None:
    """And a degree that is not a number of GPUs is refused."""
    step = predict(**POCKET)
    assert sharded(step, POCKET["model"], 1) is step
    for degree in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="whole number"):
            sharded(step, POCKET["model"], degree)
