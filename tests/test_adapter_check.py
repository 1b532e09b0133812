"""What check_adapter says of a folder, and that it is so: adapters that peft makes and loads.

What it says was measured with peft 0.21.2 and transformers 5.24.0; where a test fails with newer
ones, a row of preflight/adapter_check has to go or to change. Adapters of older versions of peft
(0.12.0, 0.13.2, 0.14.0, 0.15.2, 0.18.1) were made with these and loaded here: LoKr as another model
(0.19 of 0.45), exact with alpha = r; OFT of 0.15.2 as the base (0.16 of 0.16); BONE exact as MISS.
The tests make such folders of new ones. What engines take is quoted from their source, not run.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from helpers import CALM, python
from peft import (
    IA3Config,
    LNTuningConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    OSFConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    ShiraConfig,
    VeraConfig,
    get_peft_model,
    save_as_lora,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from course_utils.paths import POCKET_MODEL
from preflight.adapter_check import check_adapter
from preflight.adapter_check.engines import FACTS, LLAMA, NOT_INJECTED, OLD_PEFT, VLLM
from preflight.adapter_check.uses import USES
from preflight.findings import Finding

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(1, 13)[None]
TARGETS = ["q_proj", "v_proj"]
SHIPPING = {"local_paths", "pickles", "card"}  # no fault of the model
SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "attention_bias": True,
}  # fmt: skip


class Saved(NamedTuple):
    """An adapter in its folder, and the logits of the model that was saved."""

    folder: Path
    logits: torch.Tensor


class Shop:
    """A base on the disk, and adapters for it that are as if trained."""

    def __init__(self, place: Path) -> None:
        self.place, self.path = place, str(place / "base")
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
        for weight in model.parameters():
            weight.data *= 3 if weight.dim() > 1 else 1
        model.save_pretrained(self.path)
        self.logits = logits(model)

    def base(self) -> Any:
        return LlamaForCausalLM.from_pretrained(self.path).eval()

    def save(
        self, name: str, config: PeftConfig | None = None, seed: int = 1, **lora: Any
    ) -> Saved:
        settings = {"target_modules": TARGETS, "r": 4, "task_type": "CAUSAL_LM"}
        torch.manual_seed(seed)
        model = get_peft_model(self.base(), config or LoraConfig(**settings | lora))
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += 0.15 * torch.randn(weight.shape)
        folder = self.place / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        return Saved(folder, logits(model))

    def load(self, saved: Saved | Path, model: Any = None, **options: Any) -> PeftModel:
        folder = saved.folder if isinstance(saved, Saved) else saved
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(model or self.base(), folder, **options)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found[:, -IDS.shape[1] :]


def gap(model: Any, other: torch.Tensor) -> float:
    return float((logits(model) - other).abs().max())


def codes(folder: Path, *base: Any) -> dict[str, str]:
    """Return the findings' codes and severities, without what is no fault of the model."""
    found = check_adapter(folder, *base).findings
    return {one.code: one.severity for one in found if one.code not in SHIPPING}


def served(folder: Path) -> dict[str, str]:
    return {one.engine: one.effect for one in check_adapter(folder).served}


def edit(saved: Saved, name: str, **changes: Any) -> Path:
    """Return a copy of a folder with other settings; those that are None are taken out."""
    folder = saved.folder.with_name(name)
    shutil.copytree(saved.folder, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    config = {key: value for key, value in config.items() if value is not None}
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def rename(folder: Path, old: str, new: str) -> Path:
    """Give the tensors in a folder other names."""
    file = folder / "adapter_model.safetensors"
    tensors = {name.replace(old, new): one for name, one in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def test_a_plain_lora_is_sound(shop: Shop) -> None:
    """Nothing but the training machine's path, and not that if the base has a name on the hub."""
    saved = shop.save("plain")
    report = check_adapter(saved.folder)
    assert report.ok
    assert [(one.severity, one.code) for one in report.findings] == [("info", "local_paths")]
    assert "LORA rank 4 alpha 8 on q_proj, v_proj" in report.about
    assert "vocabulary 97, embeddings not tied" in report.about
    folder = edit(saved, "named", base_model_name_or_path="ada/base")
    (folder / "README.md").write_text("---\nbase_model: ada/base\n---\n", encoding="utf-8")
    for given in ((), (shop.path,)):
        report = check_adapter(folder, *given)
        assert not report.findings
        assert "Nothing found" in str(report)
        assert ("not held against" in report.about) is not given
        assert {one.effect for one in report.served if one.engine != OLD_PEFT} == {"takes"}
    assert "vLLM" in report._repr_html_()


@pytest.mark.parametrize(
    ("settings", "expected", "vllm", "llama"),
    [
        ({"use_rslora": True}, {"weighted_sum": "info"}, "takes", "changes"),
        (
            {"use_dora": True},
            {"dora_loading": "warning", "dora_as_lora": "info", "weighted_sum": "info"},
            "refuses",
            "refuses",
        ),
        ({"lora_bias": True}, {"weighted_sum": "info"}, "refuses", "refuses"),
        ({"bias": "all"}, {"unload": "info"}, "refuses", "refuses"),
        ({"trainable_token_indices": [1, 2]}, {"weighted_sum": "info"}, "refuses", "refuses"),
        (
            {"modules_to_save": ["lm_head"]},
            {"weighted_sum": "info", "unload": "info"},
            "refuses",
            "refuses",
        ),
        (
            {"modules_to_save": ["input_layernorm"]},
            {"weighted_sum": "info", "unload": "info"},
            "refuses",
            "changes",
        ),
        ({"alpha_pattern": {"v_proj": 32}}, {}, "takes", "changes"),
        ({"rank_pattern": {"v_proj": 20}}, {}, "needs", "takes"),
        ({"r": 600}, {}, "refuses", "takes"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {}, "takes", "not known"),
        ({"init_lora_weights": "gaussian"}, {}, "takes", "takes"),
        ({"layer_replication": [[0, 2], [0, 2]]}, {}, "refuses", "refuses"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_what_is_more_than_a_plain_lora(
    shop: Shop, settings: dict[str, Any], expected: dict[str, str], vllm: str, llama: str
) -> None:
    """What is said of each part, and what two engines make of it; it reloads all the same."""
    name = "-".join(f"{key}-{value}" for key, value in settings.items())
    saved = shop.save("".join(filter(str.isalnum, name)), **settings)
    assert codes(saved.folder) == expected
    found = served(saved.folder)
    assert (found[VLLM], found[LLAMA]) == (vllm, llama)
    assert gap(shop.load(saved), saved.logits) < 1e-5


def test_a_folder_of_the_base_s_name_that_is_no_model(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if gpt2/, where someone keeps the runs of that model, is taken for the model."""
    folder = edit(shop.save("of_gpt2"), "of_gpt2_here", base_model_name_or_path="gpt2")
    (tmp_path / "gpt2" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "not held against its base" in check_adapter(folder).about


def test_each_engine_s_fact_has_a_source() -> None:
    assert all(fact.source for fact in FACTS)
    assert {use.severity for use in USES} == {"error", "warning", "info"}


def loaded_by_transformers(shop: Shop, saved: Saved) -> list[Any]:
    model = shop.base()
    model.load_adapter(str(saved.folder))
    return [AutoModelForCausalLM.from_pretrained(saved.folder), model]


def test_dora_loses_its_magnitudes_where_transformers_loads_it(shop: Shop) -> None:
    """Every other LoRA is exact there; peft itself is exact with all."""
    for settings in (
        {}, {"use_rslora": True}, {"bias": "all"}, {"trainable_token_indices": [1, 2]},
        {"modules_to_save": ["lm_head"]}, {"alpha_pattern": {"v_proj": 32}},
    ):  # fmt: skip
        saved = shop.save("by-transformers", **settings)
        assert all(gap(one, saved.logits) < 1e-5 for one in loaded_by_transformers(shop, saved))
        shutil.rmtree(saved.folder)
    saved = shop.save("dora", use_dora=True)
    effect = float((shop.logits - saved.logits).abs().max())
    wrong = [gap(one, saved.logits) for one in loaded_by_transformers(shop, saved)]
    assert min(wrong) > 0.1 * effect
    assert gap(shop.load(saved), saved.logits) == 0
    save_as_lora(shop.place / "as-lora", shop.load(saved), rank=4)
    assert gap(shop.load(shop.place / "as-lora"), saved.logits) > 0.1 * effect


@pytest.mark.parametrize("way", ["linear", "svd", "cat"])
def test_a_weighted_sum_of_one_adapter(shop: Shop, way: str) -> None:
    """With the weights [1, 0] it is the first for a plain LoRA, and for what is named it is not."""
    off = {}
    for name, settings in {
        "plain": {}, "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 32}},
        "rslora": {"use_rslora": True}, "dora": {"use_dora": True},
        "bias": {"lora_bias": True}, "tokens": {"trainable_token_indices": [1, 2]},
    }.items():  # fmt: skip
        first, second = (shop.save(f"sum-{name}-{seed}", seed=seed, **settings) for seed in (1, 2))
        model = shop.load(first, adapter_name="a")
        model.load_adapter(second.folder, adapter_name="b")
        model.add_weighted_adapter(["a", "b"], [1.0, 0.0], "sum", combination_type=way)
        model.set_adapter("sum")
        effect = float((shop.logits - first.logits).abs().max())
        off[name] = gap(model, first.logits) / effect
        assert ("weighted_sum" in codes(first.folder)) is (off[name] > 0.01), off
    assert off["plain"] < 1e-5


def test_how_far_the_ways_of_a_weighted_sum_are_off(shop: Shop) -> None:
    """By the change of weights, of two plain LoRAs with 0.7 and 0.3: "cat" alone is exact."""
    first, second = (shop.save(f"two-{seed}", seed=seed) for seed in (1, 2))
    model = shop.load(first, adapter_name="a")
    model.load_adapter(second.folder, adapter_name="b")

    def change(adapter: str) -> torch.Tensor:
        layers = [one for one in model.modules() if hasattr(one, "lora_A")]
        return torch.cat([one.get_delta_weight(adapter).flatten() for one in layers])

    wanted, off = 0.7 * change("a") + 0.3 * change("b"), {}
    for way in ("linear", "svd", "cat"):
        model.add_weighted_adapter(["a", "b"], [0.7, 0.3], way, combination_type=way)
        off[way] = float((change(way) - wanted).norm() / wanted.norm())
    assert off["cat"] < 1e-6
    assert 0.1 < off["svd"] < off["linear"] < 1.2


def test_what_unload_and_merging_leave(shop: Shop) -> None:
    for settings, stays in (
        ({}, False), ({"bias": "all"}, True), ({"modules_to_save": ["lm_head"]}, True),
    ):  # fmt: skip
        saved = shop.save("unload", **settings)
        assert (gap(shop.load(saved).unload(), shop.logits) > 0.1) is stays
        assert ("unload" in codes(saved.folder)) is stays
        shutil.rmtree(saved.folder)
    saved = shop.save("osf", OSFConfig(target_modules=TARGETS, task_type="CAUSAL_LM"))
    assert codes(saved.folder) == {"osf_merge": "info"}
    assert gap(shop.load(saved).merge_and_unload(), saved.logits) < 1e-4
    model = shop.load(saved)
    model.merge_adapter()
    assert gap(model.merge_and_unload(), saved.logits) > 0.1


def test_what_no_folder_shows(shop: Shop) -> None:
    """Loaded onto a base that it is merged into, and saved after a hotswap: compare logits."""
    plain = shop.save("first")
    merged = shop.load(plain).merge_and_unload()
    assert gap(merged, plain.logits) < 1e-5
    assert gap(shop.load(plain, merged), plain.logits) > 0.1
    other = shop.save("other-alpha", seed=2, lora_alpha=64)
    model = shop.load(plain)
    hotswap_adapter(model, str(other.folder), adapter_name="default", torch_device="cpu")
    assert gap(model, other.logits) < 1e-5
    model.save_pretrained(shop.place / "swapped")
    assert gap(shop.load(shop.place / "swapped"), other.logits) > 0.1
    assert not codes(shop.place / "swapped")


def test_adapters_of_older_versions_of_peft(shop: Shop) -> None:
    config = LoKrConfig(target_modules=TARGETS, r=4, alpha=8, task_type="CAUSAL_LM")
    lokr = shop.save("lokr", config)
    assert not codes(lokr.folder)
    old = edit(lokr, "old-lokr", rank_dropout_scale=None, peft_version=None)
    assert codes(old) == {"old_lokr": "error"}
    meant = edit(lokr, "old-lokr-fixed", rank_dropout_scale=None, peft_version=None, alpha=4)
    assert not codes(meant)
    assert gap(shop.load(old), logits(shop.load(meant))) > 0.1

    config = OFTConfig(target_modules=TARGETS, oft_block_size=4, task_type="CAUSAL_LM")
    oft = shop.save("oft", config)
    assert not codes(oft.folder)
    old = rename(edit(oft, "old-oft", peft_version=None), "oft_R.weight", "oft_r")
    assert codes(old) == {"old_oft": "error"}
    assert gap(shop.load(old), shop.logits) < 1e-5

    miss = shop.save("miss", MissConfig(target_modules=TARGETS, r=4, task_type="CAUSAL_LM"))
    assert not codes(miss.folder)
    old = rename(edit(miss, "old-bone", peft_type="BONE"), "miss_block", "bone_block")
    assert codes(old) == {"bone": "error"}
    with pytest.raises(KeyError, match="BONE"):
        shop.load(old)


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=TARGETS, feedforward_modules=[], task_type="CAUSAL_LM"),
        VeraConfig(target_modules=TARGETS, r=8, task_type="CAUSAL_LM"),
        ShiraConfig(target_modules=TARGETS, r=2, task_type="CAUSAL_LM"),
        LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=TARGETS, r=4, init_lora_weights="pissa", task_type="CAUSAL_LM"),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_types_fit_their_base(shop: Shop, config: PeftConfig) -> None:
    """No fault of names or shapes is found where there is none."""
    saved = shop.save(f"type-{config.peft_type.value}", config)
    report = check_adapter(saved.folder)
    assert report.ok
    found = {one.engine: one.effect for one in report.served}
    assert found[VLLM] == "refuses"
    by_transformers = next(e for name, e in found.items() if name.startswith("transformers"))
    assert by_transformers == ("refuses" if config.peft_type.value in NOT_INJECTED else "takes")


def test_the_types_that_peft_does_not_inject() -> None:
    shared = {
        kind.value
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if getattr(tuner, "uses_shared_state", False)
    }
    prompts = {
        kind.value
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if config.is_prompt_learning is True or config.__new__(config).is_prompt_learning is True
    }
    assert shared | prompts | {"ADAPTION_PROMPT", "SHADOW"} == set(NOT_INJECTED)


def of(report: Any, code: str) -> Finding:
    return next(one for one in report.findings if one.code == code)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"hidden_size": 64}, "shapes", "8 of 8 tensors have another shape"),
        ({"num_hidden_layers": 3}, "names", "4 of them are not in the folder"),
        ({"num_hidden_layers": 1}, "names", "4 that are in it have no place"),
    ],
)
def test_another_base_than_the_one_trained_on(
    shop: Shop, change: dict[str, int], code: str, words: str
) -> None:
    saved = shop.save("elsewhere")
    report = check_adapter(saved.folder, LlamaConfig(**SHAPE | change))
    assert of(report, code).severity == "error"
    assert words in of(report, code).what
    assert "cannot make this adapter" in of(check_adapter(saved.folder, GPT2Config()), "base").what
    shutil.rmtree(saved.folder)


def grown_by_lora(shop: Shop) -> Path:
    """A vocabulary that grew: peft saves both embeddings, as it notices the new size."""
    model = shop.base()
    model.resize_token_embeddings(100, mean_resizing=False)
    get_peft_model(model, LoraConfig(target_modules=TARGETS)).save_pretrained(shop.place / "grown")
    return shop.place / "grown"


def one_more_token(shop: Shop) -> Path:
    saved = shop.save("tokens", trainable_token_indices=[1, 2])
    return edit(saved, "new-token", trainable_token_indices=[1, 99])


@pytest.mark.parametrize(
    "make",
    [
        grown_by_lora,
        lambda shop: edit(
            shop.save("tokens", trainable_token_indices=[1, 2]),
            "new",
            trainable_token_indices=[1, 99],
        ),
    ],
    ids=["saved whole", "one trained token"],
)
def test_a_vocabulary_that_grew(shop: Shop, make: Callable[[Shop], Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = make(shop)
    found = of(check_adapter(folder, shop.path), "vocabulary")
    assert "100 tokens" in found.what
    assert "resize_token_embeddings(100)" in found.fix
    assert "vocabulary" not in codes(folder, LlamaConfig(**SHAPE | {"vocab_size": 100}))
    with pytest.raises((RuntimeError, IndexError)):
        shop.load(folder)


@pytest.mark.parametrize(
    "options",
    [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [98, 99]}],
    ids=["saved whole", "trained whole", "trained tokens"],
)
def test_what_is_saved_twice_of_a_vocabulary_that_grew_is_no_fault(
    shop: Shop, options: dict[str, Any], tmp_path: Path
) -> None:
    """Peft 0.21 saves the parts of its wrappers, too, which no loading asks for."""
    base = LlamaForCausalLM.from_pretrained(shop.path, tie_word_embeddings=True)
    base.resize_token_embeddings(100, mean_resizing=False)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(target_modules=TARGETS, **options))
        model.save_pretrained(tmp_path / "adapter")
    found = codes(tmp_path / "adapter", tmp_path / "base")
    assert not {"names", "shapes", "vocabulary"} & {*found}
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    assert gap(shop.load(tmp_path / "adapter", loaded), logits(model)) == 0


def test_a_classifier_s_head_is_no_fault(shop: Shop) -> None:
    """How many labels there were stands in no base."""
    model = AutoModelForSequenceClassification.from_pretrained(shop.path, num_labels=5)
    config = LoraConfig(target_modules=TARGETS, task_type="SEQ_CLS")
    get_peft_model(model, config).save_pretrained(shop.place / "classes")
    assert codes(shop.place / "classes") == {"weighted_sum": "info", "unload": "info"}
    assert served(shop.place / "classes")[VLLM] == "takes"


def test_the_folder_of_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card and its pickle are named, and nothing is opened, changed or drawn."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        args=SFTConfig(
            str(tmp_path), **CALM | {"save_strategy": "steps", "save_steps": 1}, max_steps=1
        ),
        train_dataset=Dataset.from_dict({"text": ["the cat sat"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        peft_config=LoraConfig(r=4),
    )
    trainer.train()
    trainer.save_model()
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    state = torch.random.get_rng_state()
    for name in ("torch.load", "pickle.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a pickle was opened"))
    report = check_adapter(tmp_path)
    assert report.ok
    assert {one.code for one in report.findings} == SHIPPING
    assert "training_args.bin" in of(report, "pickles").what
    assert str(POCKET_MODEL) in of(report, "local_paths").what
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_without_a_base_no_library_is_loaded(shop: Shop) -> None:
    """So a folder of any size is read in the time that its header takes."""
    folder = edit(shop.save("light"), "light-named", base_model_name_or_path="ada/base")
    code = (
        "import sys; from preflight.adapter_check import check_adapter; check_adapter(sys.argv[1])"
    )
    heavy = "{'torch', 'peft', 'transformers', 'datasets', 'pandas'}"
    done = python("-c", f"{code}; sys.exit(len({heavy} & set(sys.modules)))", folder)
    assert (done.returncode, done.stderr) == (0, "")
