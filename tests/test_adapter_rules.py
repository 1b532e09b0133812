"""Adapters that become another model without an error, with peft 0.21.2 and transformers 5.24.

Each fault is shown on the libraries, next to what is said of it; a sound case stands beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from helpers import CALM
from peft import (
    CartridgeConfig,
    FrodConfig,
    LilyConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    PsoftConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from test_training_check import LORA, POCKET_MODEL, trainer
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    set_seed,
)
from trl import DPOConfig, DPOTrainer

from course_utils.configs import build_empty
from preflight.training_check import check_settings, check_trainer
from preflight.training_check.adapter_rules import rule_findings
from preflight.training_check.merging import merge_findings
from preflight.training_check.new_parts import new_part_findings

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(3, 27).reshape(2, 12)
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
Q = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def llama(tied: bool = True, **sizes: int) -> LlamaForCausalLM:
    set_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | sizes, tie_word_embeddings=tied)).eval()


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits.float()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def trained(model: nn.Module, config: PeftConfig, noise: float = 0.1) -> PeftModel:
    """Return a model with an adapter whose numbers are as after a training: no longer the start."""
    adapted = get_peft_model(model, copy.deepcopy(config)).eval()
    set_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter += noise * torch.randn_like(parameter)
    return adapted


def reloaded(adapted: PeftModel, base: nn.Module, folder: Path) -> PeftModel:
    adapted.save_pretrained(folder)
    set_seed(2)
    return PeftModel.from_pretrained(base, folder).eval()


def codes(config: PeftConfig, model: nn.Module) -> list[str]:
    """Return what the rules find: of a bare model, of it on the meta device, and with the adapter.

    The three have to agree.
    """
    config = copy.deepcopy(config)
    found = [one.code for one in rule_findings(config, model)]
    empty = build_empty(model.config)
    assert found == [one.code for one in rule_findings(config, empty)]
    adapted = get_peft_model(copy.deepcopy(model), config)
    assert found == [one.code for one in rule_findings(adapted.active_peft_config, adapted)]
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**Q),
        LoraConfig(**Q | {"target_modules": "all-linear"}, use_dora=True),
        LoraConfig(**Q | {"target_modules": r".*layers\.1\..*q_proj"}),
        LoraConfig(**Q | {"target_modules": r".*\.(0|1)\.self_attn\.(q|v)_proj"}),
        LoraConfig(**Q | {"target_modules": r".*layers.1[01]?.*q_proj"}),
        LoraConfig(**Q, layers_to_transform=[0], exclude_modules=["nope"]),
        LoraConfig(**Q, modules_to_save=["lm_head"]),
        LoraConfig(**Q, trainable_token_indices=[1, 2]),
        LoraConfig(**Q, trainable_token_indices={"lm_head": [1], "embed_tokens": [1]}),
        LoraConfig(**Q, alpha_pattern={"layers.0.self_attn.q_proj": 32, "q_proj": 4}),
        LoraConfig(**Q, alpha_pattern={"q_proj": 4, "layers.0.self_attn.q_proj": 4}),
        LoraConfig(**Q, init_lora_weights="gaussian"),
        LoHaConfig(**Q),
        OFTConfig(**Q),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        TrainableTokensConfig(token_indices=[1, 2]),
    ],
    ids=lambda value: getattr(value, "peft_type", value),
)
def test_sound_configs_pass(config: PeftConfig, tied: bool) -> None:
    assert codes(config, llama(tied, num_hidden_layers=12)) == []


@pytest.mark.parametrize("name", ["alpha_pattern", "rank_pattern"])
def test_a_general_key_before_a_special_one(name: str, tmp_path: Path) -> None:
    """The first key that fits holds, and saving sorts them: another model, or an error of sizes."""
    config = LoraConfig(**Q, **{name: {"q_proj": 3, "layers.0.self_attn.q_proj": 32}})
    (found,) = rule_findings(config, llama())
    assert found.code == name
    assert "In model.layers.0.self_attn.q_proj 'q_proj' holds now (3)" in found.what
    assert [one.code for one in check_settings(None, config, llama()).findings] == [name]
    adapted = trained(llama(), config)
    if name == "rank_pattern":
        with pytest.raises(RuntimeError, match="size mismatch"):
            reloaded(adapted, llama(), tmp_path)
    else:
        assert gap(logits(reloaded(adapted, llama(), tmp_path)), logits(adapted)) > 0.5


def test_an_empty_list_of_layers_means_all() -> None:
    config = LoraConfig(**Q, layers_to_transform=[])
    assert codes(config, llama()) == ["layers_to_transform"]
    assert len(get_peft_model(llama(), config).targeted_module_names) == 2


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        (r"^model.layers.1.*q_proj", [1, 10, 11]),
        (r".*layers.(0|1).*q_proj", [0, 1, 10, 11]),
        (r".*\.1\..*q_proj", [1]),
    ],
)
def test_a_number_that_fits_longer_ones(pattern: str, hits: list[int]) -> None:
    config, model = LoraConfig(**Q | {"target_modules": pattern}), llama(num_hidden_layers=12)
    assert codes(config, model) == (["target_modules"] if 10 in hits else [])
    layers = get_peft_model(model, config).targeted_module_names
    assert [int(name.split(".")[2]) for name in layers] == hits


def mixture(kind: str = "mixtral") -> PreTrainedModel:
    experts = {"num_local_experts": 4, "num_experts": 4, "layer_types": None}
    return build_empty(CONFIG_MAPPING[kind](**SIZES | experts))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "phimoe"])
def test_a_router_is_found(kind: str) -> None:
    """All-linear takes it for a linear layer; transformers calls it gate, router and more."""
    (found,) = rule_findings(LoraConfig(**Q | {"target_modules": "all-linear"}), mixture(kind))
    assert (found.code, found.severity) == ("router", "warning")
    assert "changes 2 routers" in found.what
    for names in (["q_proj", "v_proj"], r".*\.self_attn\.\w_proj"):
        assert not list(rule_findings(LoraConfig(**Q | {"target_modules": names}), mixture(kind)))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["model.layers.1.mlp.experts"]}, "exclude_modules"),
        ({"exclude_modules": r".*layers\.1\.mlp.*"}, "exclude_modules"),
    ],
)
def test_experts_that_are_not_left_out(settings: dict[str, Any], code: str) -> None:
    """peft asks this of modules alone, and makes tensors of the names w1, w2 and w3."""
    named = LoraConfig(target_modules=["q_proj", "w1", "w2", "w3"], **settings)
    tensors = LoraConfig(target_modules=[], target_parameters=["experts.down_proj"], **settings)
    for config in (named, tensors):
        (found,) = rule_findings(config, mixture())
        assert found.code == code and "model.layers.1.mlp.experts" in found.what
        adapted = get_peft_model(mixture(), config, low_cpu_mem_usage=True)
        assert "model.layers.1.mlp.experts.down_proj" in adapted.targeted_parameter_names
    whole = LoraConfig(target_modules=[], target_parameters=["experts.down_proj"])
    assert not list(rule_findings(whole, build_empty(MixtralConfig(**SIZES))))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**Q | {"target_modules": ["embed_tokens"]}),
        LoraConfig(**Q | {"target_modules": ["q_proj", "lm_head"]}),
        LoraConfig(**Q | {"target_modules": ["lm_head"]}, ensure_weight_tying=True),
        LoHaConfig(**Q | {"target_modules": ["lm_head"]}),
    ],
)
def test_an_adapter_on_tied_weights_is_merged_wrongly(config: PeftConfig) -> None:
    assert codes(config, llama()) == ["tied_weights"]
    assert codes(config, llama(tied=False)) == []
    for tied in (True, False):
        adapted = trained(llama(tied), config)
        right = logits(adapted)
        assert (gap(logits(adapted.merge_and_unload()), right) > 0.1) == tied


def test_trained_tokens_of_a_tied_model(tmp_path: Path) -> None:
    """As a list they are merged exactly; as a dict of two ends, or next to LoRA, they are not."""
    for indices, code in (
        ([1, 2], []),
        ({"embed_tokens": [4, 5], "lm_head": [4]}, ["tied_tokens"]),
    ):
        config = LoraConfig(**Q, trainable_token_indices=indices)
        assert codes(config, llama()) == code
        adapted = trained(llama(), config)
        right = logits(adapted)
        assert (gap(logits(adapted.merge_and_unload()), right) > 0.1) == bool(code)
    both = LoraConfig(**Q | {"target_modules": ["lm_head"]}, trainable_token_indices=[1, 2])
    (found,) = rule_findings(both, llama())
    assert "cannot even be saved" in found.what
    with pytest.raises(RuntimeError, match="shared tensors"):
        trained(llama(), both).merge_and_unload().save_pretrained(tmp_path)


@pytest.mark.parametrize("start", [True, "pissa", "olora", "pissa_niter_4", "orthogonal"])
def test_a_start_that_changes_the_base(start: bool | str, tmp_path: Path) -> None:
    config = LoraConfig(**Q, init_lora_weights=start)
    found = codes(config, llama())
    base, adapted = logits(llama()), trained(llama(), config)
    with adapted.disable_adapter():
        assert (gap(logits(adapted), base) > 0.1) == ("base_changed" in found)
    again = reloaded(adapted, llama(), tmp_path)
    assert (gap(logits(again), logits(adapted)) > 0.1) == ("start_not_saved" in found)
    assert [one.code for one in check_settings(None, config).findings] == found


def test_a_start_that_comes_from_data_is_known_by_name() -> None:
    found = [one.code for one in rule_findings(LoraConfig(init_lora_weights="lora_ga"), llama())]
    assert found == ["base_changed", "start_not_saved"]


@pytest.mark.parametrize("start", [True, "olora"])
def test_a_reference_that_is_not_the_base(start: bool | str, tmp_path: Path) -> None:
    """DPO begins at a loss of log 2, if the reference is the model that it starts from."""
    words = {"prompt": ["the cat sat"], "chosen": [" on the mat"], "rejected": [" in the rain"]}
    built = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(POCKET_MODEL),
        args=DPOConfig(str(tmp_path), max_steps=1, logging_steps=1, **CALM),
        train_dataset=trainer(tmp_path).train_dataset.from_dict(words),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        peft_config=LoraConfig(**LORA, init_lora_weights=start),
    )
    found = [one.code for one in check_trainer(built).findings if one.severity == "error"]
    assert found == ([] if start is True else ["reference_off"])
    built.train()
    assert (abs(built.state.log_history[0]["loss"] - 0.693) < 0.001) == (start is True)


def test_a_method_that_mixes_rows_and_times() -> None:
    """Lily's router takes the mean over all tokens of the batch, later ones and other rows too."""
    changed = IDS.clone()
    changed[:, -1] = 99
    for config in (LilyConfig(**Q), LoraConfig(**Q)):
        mixes = codes(config, llama()) == ["rows_mixed"]
        assert mixes == isinstance(config, LilyConfig)
        adapted = trained(llama(), config, noise=0.3)
        whole = logits(adapted)
        assert (gap(logits(adapted, IDS[:1]), whole[:1]) > 0.1) == mixes
        assert (gap(logits(adapted, changed)[:, :-1], whole[:, :-1]) > 0.1) == mixes


def test_numbers_that_belong_to_the_rounding_of_the_base() -> None:
    """FRoD and PSOFT take the base apart when they are loaded; near-equal parts come otherwise."""
    set_seed(0)
    layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.orthogonal_(layer[0].weight)
    inputs, share = torch.randn(8, 64), {}
    for kind in (FrodConfig, PsoftConfig, LoraConfig):
        config = kind(target_modules=["0"])
        adapted = trained(copy.deepcopy(layer), config)
        rounded = get_peft_model(copy.deepcopy(layer).bfloat16(), config)
        set_peft_model_state_dict(rounded, get_peft_model_state_dict(adapted))
        with torch.no_grad():
            right, plain = adapted(inputs), layer(inputs)
            share[kind] = gap(rounded.float()(inputs), right) / gap(right, plain)
        assert [one.code for one in rule_findings(kind(**Q), llama())] == (
            [] if kind is LoraConfig else ["dtype_of_base"]
        )
    assert share[LoraConfig] < 0.1 < 0.5 < min(share[FrodConfig], share[PsoftConfig])


def prefix(kind: type[PeftConfig] = PrefixTuningConfig) -> PeftConfig:
    return kind(task_type="CAUSAL_LM", num_virtual_tokens=4)


@pytest.mark.parametrize("kind", [PrefixTuningConfig, CartridgeConfig, PromptTuningConfig])
def test_a_prefix_and_checkpointing(kind: type[PeftConfig], tmp_path: Path) -> None:
    """The trap is SFTConfig's default. Prompt tuning's tokens are embeddings, and bear it."""
    built = trainer(tmp_path, prefix(kind), activation_checkpointing=True)
    falls = "prefix_checkpointing" in [one.code for one in check_trainer(built).findings]
    assert falls == (kind is not PromptTuningConfig)
    assert falls == (not check_settings(built.args, prefix(kind)).ok)
    if falls:
        with pytest.raises(RuntimeError, match="must match the size of tensor"):
            built.train()
    assert check_settings(trainer(tmp_path).args, prefix(kind)).ok


@pytest.mark.parametrize("kind", [PrefixTuningConfig, CartridgeConfig, PromptTuningConfig])
def test_a_prefix_that_generation_drops(kind: type[PeftConfig]) -> None:
    """If this fails, peft has the new name of the cache: take the finding out."""
    base, adapted = logits(llama())[:, -1], trained(llama(), prefix(kind), noise=1.0)
    said = adapted.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=1, pad_token_id=0,
        do_sample=False, output_logits=True, return_dict_in_generate=True,
    ).logits[0]  # fmt: skip
    dropped = kind is not PromptTuningConfig
    assert (gap(said, base) < 1e-4) == dropped
    assert (gap(said, logits(adapted)[:, -1]) > 0.1) == dropped
    assert codes(prefix(kind), llama()) == (["prefix_unused"] if dropped else [])


HEADS: list[tuple[str, Callable, dict[str, Any], list[str], list[str]]] = [
    ("bert", AutoModelForMaskedLM, {}, ["query"], ["bert.pooler"]),
    ("roberta", AutoModelForMaskedLM, {}, ["query"], []),
    ("deberta-v2", AutoModelForMaskedLM, {"relative_attention": True}, ["query_proj"], ["pooler"]),
    ("xlnet", AutoModelForCausalLM, {"d_model": 64, "n_layer": 2, "n_head": 2, "d_inner": 64},
     ["layer_1"], ["logits_proj", "sequence_summary"]),
    ("t5", AutoModelForSeq2SeqLM,
     {"d_model": 64, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
     ["q"], ["classification_head"]),
    ("llama", AutoModelForCausalLM, {}, ["q_proj"], []),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "auto", "sizes", "targets", "lost"), HEADS)
def test_a_new_part_under_another_name(
    kind: str, auto: Any, sizes: dict[str, Any], targets: list[str], lost: list[str], tmp_path: Path
) -> None:
    """It is in no file of the checkpoint, not trained, and in no file of the adapter."""
    several = {"vocab_size": 128, "pad_token_id": 0, "num_labels": 3}
    config = CONFIG_MAPPING[kind](
        **(SIZES | sizes | several if kind != "xlnet" else sizes | several)
    )
    auto.from_config(config).save_pretrained(tmp_path / "base")
    ids = torch.cat([IDS, torch.full((2, 1), config.eos_token_id or 1)], 1)

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        path = tmp_path / "base"
        return AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=3, pad_token_id=0
        )

    for also in (None, lost):
        settings = {"task_type": "SEQ_CLS", "target_modules": targets, "modules_to_save": also}
        adapted = trained(model(5), LoraConfig(**settings))
        state = torch.get_rng_state()
        fixes = [one.fix for one in new_part_findings(adapted)]
        assert torch.equal(state, torch.get_rng_state())
        quiet = not lost or also is not None
        assert fixes == ([] if quiet else [f"Add modules_to_save={lost}."])
        adapted.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(model(6), tmp_path / "adapter").eval()
        assert (gap(logits(again, ids), logits(adapted, ids)) < 1e-5) == quiet


def test_names_that_were_translated_are_not_new() -> None:
    """Lesson 05b loads a model whose names are not the checkpoint's, by key_mapping."""
    model = AutoModelForQuestionAnswering.from_pretrained(
        POCKET_MODEL, key_mapping={r"^model\.": "transformer."}
    )
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="QUESTION_ANS"))
    assert not list(new_part_findings(adapted))


class Codes(nn.Linear):
    """Computes with whole numbers and a scale, as quantized layers do that peft knows no class of.

    Its weight is made of them at each access, so what is added to it is lost.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False)
        whole = nn.Parameter((self._parameters.pop("weight") * 100).round(), requires_grad=False)
        self.whole = whole

    @property
    def weight(self) -> torch.Tensor:
        return self.whole / 100

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        """Take nothing."""


def test_a_merge_that_leaves_the_adapter_out() -> None:
    pytest.importorskip("optimum.quanto", reason="the stand-in below is tried everywhere")
    from optimum.quanto import freeze, qint8, quantize

    model = llama(tied=False)
    quantize(model, weights=qint8, exclude="lm_head")
    freeze(model)
    lost_on_merging(model)


def test_a_merge_into_codes() -> None:
    model = llama(tied=False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Codes(64)
    lost_on_merging(model)
    assert not list(merge_findings(trained(llama(), LoraConfig(**Q))))


def lost_on_merging(model: nn.Module) -> None:
    base, adapted = logits(model), trained(model, LoraConfig(**Q))
    right = logits(adapted)
    (found,) = merge_findings(adapted)
    assert found.code == "merge" and "leaves the adapter out of 2 layers" in found.what
    assert gap(logits(adapted), right) == 0, "the check changed the model"
    merged = logits(adapted.merge_and_unload())
    assert gap(merged, base) < 1e-5 < 0.1 < gap(merged, right)


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="another CPU")
def test_four_bits_that_an_evaluation_repacks(tmp_path: Path) -> None:
    """Merged into them an adapter is another model; fix_bitsandbytes keeps them as they are."""
    llama(tied=False).save_pretrained(tmp_path)
    error = {}
    for repacks in (True, False):
        model = LlamaForCausalLM.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
        )
        for layer in model.modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                layer.support_avx512bf16_for_cpu = repacks
        adapted = trained(model, LoraConfig(**Q)).train()
        built = trainer(tmp_path / "out")
        built.model = adapted
        assert ("repacked" in [one.code for one in check_trainer(built).findings]) == repacks
        right = logits(adapted)
        logits(adapted.eval())
        error[repacks] = gap(logits(adapted.train().merge_and_unload().train()), right)
    assert error[True] > 2 * error[False]
