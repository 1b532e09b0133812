"""Models that are more than a plain decoder: they see or hear, mix layers, or come quantized."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import sweep_targets
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
)

from course_utils import configs
from preflight import lora_targets
from preflight.__main__ import main
from preflight.lora_targets import refused_names
from preflight.memory_plan import default_adapter, fit_gpus, predict
from preflight.memory_plan.stored import dequantized, stored_bytes

SHORT = {"length": 64}
TEXT = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
    "deepstack_visual_indexes": [0], "patch_size": 4, "num_position_embeddings": 16,
}  # fmt: skip
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip
HYBRIDS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 32},
    "falcon_h1": {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "mamba"], "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16,
        "intermediate_size": 128, "n_routed_experts": 4, "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 64, "num_experts_per_tok": 2,
    },
    "bamba": {
        "attn_layer_indices": [1], "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "mamba_n_heads": 8, "mamba_d_head": 16,
    },
    "zamba2": {
        "num_attention_heads": 4, "intermediate_size": 128, "hybrid_layer_ids": [2],
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
    },
}  # fmt: skip


def qwen3_vl(**options: Any) -> PretrainedConfig:
    kind = CONFIG_MAPPING["qwen3_vl"]
    return kind(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False, **options)


def qwen3(**options: Any) -> PretrainedConfig:
    return CONFIG_MAPPING["qwen3"](**TEXT | {"hidden_size": 256, "head_dim": 64}, **options)


def gemma3() -> PretrainedConfig:
    config = CONFIG_MAPPING["gemma3"]()
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    return config


# What sees.


def test_a_model_that_sees_has_its_head() -> None:
    """As transformers builds it: the head was 64,000 parameters that nobody counted."""
    config = qwen3_vl()
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    table = lora_targets.discover(config)
    assert type(configs.build_empty(config)) is type(whole)
    assert table.parameters == whole.num_parameters()
    check = lora_targets.check_targets(config, ["lm_head"])
    assert (check.ok, check.names[0].count, check.names[0].kinds) == (True, 1, ("head",))


@pytest.mark.parametrize("kind", ["llava", "qwen2_audio", "kimi_k25", "step3p7"])
def test_others_that_see_or_hear_have_theirs(kind: str) -> None:
    assert configs.build_empty(CONFIG_MAPPING[kind]()).get_output_embeddings() is not None


def test_lora_on_the_language_model_alone() -> None:
    """all-linear takes the tower, and says so; the suggestion takes the language model alone."""
    config = qwen3_vl()
    table = lora_targets.discover(config)
    reached = sum(t.in_all_linear for t in table.in_towers)
    assert reached == 12
    assert f'"all-linear" reaches {reached} layers outside the language model' in table.summary()
    suggestion = lora_targets.suggest(config)
    assert suggestion.what == "dense-linear"
    assert suggestion.layers == 7 * 8
    adapted = get_peft_model(configs.build_empty(config), LoraConfig(r=8, **suggestion))
    assert adapted.get_nb_trainable_parameters()[0] == suggestion.adapter
    assert not [n for n, p in adapted.named_parameters() if p.requires_grad and "visual" in n]
    assert "outside the language model" not in lora_targets.discover(qwen3()).summary()


def test_layers_to_transform_counts_in_each_tower() -> None:
    """What `modules` says of it: peft itself."""
    model = configs.build_empty(gemma3())
    first = LoraConfig(target_modules=["q_proj"], layers_to_transform=[0])
    adapted = get_peft_model(model, first).targeted_module_names
    assert len([name for name in adapted if "vision" in name]) == 1
    assert len([name for name in adapted if "language" in name]) == 1
    assert "layers_to_transform" in lora_targets.discover(gemma3()).summary()


@pytest.mark.parametrize("kind", ["idefics3", "granite_speech", "blip-2"])
def test_layers_outside_the_decoder_are_not_the_language_models(kind: str) -> None:
    """Their connectors and encoders have names of their own, and blocks like any other."""
    model = configs.build_empty(CONFIG_MAPPING[kind]())
    decoder = next(n for n, m in model.named_modules() if m is model.get_decoder())
    layers = [name for t in lora_targets.discover(model) if t.in_blocks for name in t.layers]
    assert layers
    assert all(name.startswith(f"{decoder}.") for name in layers)


def test_dense_layers_that_share_their_names_with_a_tower() -> None:
    """GLM-4.5V's first MLP: peft takes its names for the experts, and the tower has them, too."""
    model = sweep_targets.build("glm4v_moe")
    suggestion = lora_targets.suggest(model, "dense-linear+expert")
    first = [n for n in suggestion.target_parameters if ".layers.0.mlp.gate_proj.weight" in n]
    assert first == ["model.language_model.layers.0.mlp.gate_proj.weight"]
    adapted = get_peft_model(model, LoraConfig(r=8, **suggestion), low_cpu_mem_usage=True)
    assert adapted.get_nb_trainable_parameters()[0] == suggestion.adapter


def test_a_plan_for_rows_of_text() -> None:
    """tests/test_memory_measure.py holds it against real steps."""
    table = fit_gpus(qwen3_vl(), "T4", "lora", **SHORT)
    assert "No gradient reaches what would be trained in model.visual." in table.notes
    assert any("rows of text alone" in note for note in table.notes)
    text_only = LoraConfig(r=16, **lora_targets.suggest(qwen3_vl()), task_type="CAUSAL_LM")
    less = predict(qwen3_vl(), "peft", peft_config=text_only, **SHORT)
    assert less.settings["idle"] == []
    assert less.at_peak["adapters"] < table.rows[0].memory.at_peak["adapters"]


@pytest.mark.parametrize("kind", ["vit", "t5"])
def test_what_does_not_write_has_no_plan(kind: str) -> None:
    with pytest.raises(ValueError, match="no model that writes text from left to right") as error:
        predict(CONFIG_MAPPING[kind]())
    assert len(str(error.value)) < 250  # not a list of all classes


# State spaces.


@pytest.mark.parametrize("kind", HYBRIDS)
def test_hybrids_are_planned_with_what_peft_accepts(kind: str) -> None:
    config = CONFIG_MAPPING[kind](
        hidden_size=64, num_hidden_layers=4, vocab_size=128, **HYBRIDS[kind]
    )
    refused = refused_names(configs.build_empty(config))
    assert refused == ([] if kind in ("bamba", "zamba2") else ["out_proj"])
    adapter = default_adapter(config)
    made = get_peft_model(configs.build_empty(config), copy.deepcopy(adapter))
    assert made.targeted_module_names
    notes = fit_gpus(config, "T4", "lora", **SHORT).notes
    assert any(f"peft refuses out_proj in models of type '{kind}'" in n for n in notes) == bool(
        refused
    )
    assert any("mamba-ssm" in note for note in notes)


def test_layers_that_are_read_past_their_adapters() -> None:
    """Mamba multiplies by dt_proj's weight itself; with mamba-ssm the kernels take more of them.

    peft refuses out_proj in some types and not in others that do the same, such as Bamba.
    """
    mamba = CONFIG_MAPPING["mamba"](hidden_size=64, num_hidden_layers=2, vocab_size=128)
    noted = {t.name for t in lora_targets.discover(mamba) if "past an adapter" in t.note}
    assert noted == {"conv1d", "x_proj", "dt_proj", "out_proj"}
    idle = predict(mamba, "lora", length=8).settings["idle"]
    assert idle == ["backbone.layers.*.mixer.dt_proj"]
    bamba = CONFIG_MAPPING["bamba"](
        hidden_size=64, num_hidden_layers=4, vocab_size=128, **HYBRIDS["bamba"]
    )
    assert "past an adapter" in lora_targets.discover(bamba)["out_proj"].note
    notes = [t.note for t in lora_targets.discover(qwen3())]
    assert not any("past an adapter" in note for note in notes)


def test_an_adapter_that_the_user_gives_is_taken_as_it_is() -> None:
    """Training raises on it, so the plan does."""
    config = CONFIG_MAPPING["mamba"](hidden_size=64, num_hidden_layers=2, vocab_size=128)
    with pytest.raises(ValueError, match="out_proj"):
        predict(config, "lora", peft_config=LoraConfig(target_modules="all-linear"), **SHORT)


def test_plain_decoders_are_adapted_everywhere() -> None:
    assert default_adapter(qwen3()).exclude_modules is None
    assert len(fit_gpus(qwen3(), "T4", "lora", **SHORT).notes) == 2  # overhead, bfloat16


# Checkpoints that are quantized already.


def test_fp8_is_held_in_fp8() -> None:
    """One byte a weight instead of two, and a scale a block; embeddings and norms stay."""
    plain, small = qwen3(), qwen3(quantization_config=FP8)
    on_cpu = SHORT | {"device": "cpu"}  # which rounds no allocation up
    loads = [predict(c, "lora", **on_cpu).phases["load"]["weights"] for c in (plain, small)]
    linear = [m for m in configs.build_empty(plain).modules() if type(m) is torch.nn.Linear]
    weights = [m.weight.numel() for m in linear[:-1]]  # the head stays
    blocks = [-(-m.in_features // 128) * -(-m.out_features // 128) for m in linear[:-1]]
    assert loads[0] - loads[1] == sum(weights) - 4 * sum(blocks)
    opened = predict(dequantized(small), "lora", **on_cpu)
    assert opened.phases["load"]["weights"] == loads[0]


def test_fp8_on_gpus_that_have_none() -> None:
    """transformers dequantizes as it loads below compute capability 8.9: an A100, not an L4."""
    table = fit_gpus(qwen3(quantization_config=FP8), ["A100 80GB", "L4"], "lora", **SHORT)
    weights = [row.memory.phases["load"]["weights"] for row in table.rows]
    plain = fit_gpus(qwen3(), "L4", "lora", **SHORT).rows[0].memory
    assert weights[0] == plain.phases["load"]["weights"] > weights[1]


@pytest.mark.parametrize("method", ["full", "qlora", "int8"])
def test_fp8_is_trained_by_adapters_alone(method: str) -> None:
    with pytest.raises(ValueError, match="Allowed are lora, peft") as error:
        predict(qwen3(quantization_config=FP8), method, **SHORT)
    assert f"method={method!r} was given" in str(error.value)


def test_advice_keeps_to_what_the_checkpoint_allows() -> None:
    """QLoRA makes most plans lighter, and from_pretrained refuses it here."""
    table = fit_gpus(qwen3(quantization_config=FP8), 0.001, "lora", advice=True, **SHORT)
    row = table.rows[0]
    assert not [change for change in (*row.changes, *row.tried) if "QLoRA" in change.name]


def test_experts_in_fp8_get_no_gradient() -> None:
    """peft puts adapters on their weights, which transformers' FP8 product gives none."""
    config = CONFIG_MAPPING["qwen3_moe"](
        **TEXT | {"num_hidden_layers": 2}, num_experts=8, moe_intermediate_size=128,
        num_experts_per_tok=2, quantization_config=FP8,
    )  # fmt: skip
    idle = predict(config, "lora", **SHORT).settings["idle"]
    assert any("mlp.experts" in name for name in idle)


def test_bitsandbytes_keeps_its_own_settings() -> None:
    small = qwen3(quantization_config=NF4)
    given = BitsAndBytesConfig.from_dict(dict(NF4))
    by_hand = predict(qwen3(), "qlora", quantization_config=given, **SHORT)
    for method in ("lora", "qlora"):
        assert predict(small, method, **SHORT).phases == by_hand.phases
    with pytest.raises(ValueError, match="trains no quantized weights"):
        predict(small, "full", **SHORT)


def test_gpt_oss_is_dequantized_for_training() -> None:
    """The bytes stored are those of openai/gpt-oss-20b's own index of its weights."""
    names = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    stored = {"quant_method": "mxfp4", "modules_to_not_convert": [*names, "lm_head"]}
    whole = CONFIG_MAPPING["gpt_oss"](
        num_hidden_layers=24, num_local_experts=32, quantization_config=stored
    )
    assert stored_bytes(whole) == 13_761_264_768
    few = {**TEXT, "num_hidden_layers": 2, "num_local_experts": 4, "layer_types": None}
    small, plain = (CONFIG_MAPPING["gpt_oss"](**few) for _ in range(2))
    small.quantization_config = stored
    assert predict(small, "lora", **SHORT).phases == predict(plain, "lora", **SHORT).phases
    notes = fit_gpus(small, "H200", "lora", **SHORT).notes
    assert any("Mxfp4Config(dequantize=True)" in note for note in notes)


@pytest.mark.parametrize(
    "stored, words",
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "nvfp4"}, "transformers does not train on it"),
        ({"quant_method": "brand-new"}, "Unknown quantization type"),
        ({"bits": 4}, "no `quant_method`"),
    ],
)
def test_what_cannot_be_planned_says_why(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="is quantized already") as error:
        predict(qwen3(quantization_config=stored), "lora", **SHORT)
    assert words in str(error.value)
    assert "Give the model that it was made from" in str(error.value)


# Code of a repository.


def test_a_model_with_code_of_its_own_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kimi-K2's config: in the words of transformers, it was a path that nobody can click."""
    config = {
        "model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in (["modules", str(tmp_path)], ["memory", "--model", str(tmp_path)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "a model of type 'kimi_k2'" in said
        assert "never runs code of a repository" in said
        assert "model_type 'deepseek_v3'" in said
        assert "inspect the repository" not in said


# Two words for two sets.


def test_all_linear_is_pefts_own_word() -> None:
    """In a mixture it takes the experts in; what is suggested here leaves them out."""
    config = CONFIG_MAPPING["mixtral"](
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, num_local_experts=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="peft's own word"):
        lora_targets.suggest(config, "all-linear")
    dense = lora_targets.suggest(config)
    assert dense.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert any("experts" in note for note in dense.notes)
    assert lora_targets.discover(config)["experts.down_proj"].in_all_linear == 2
