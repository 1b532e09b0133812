"""What LoRA can target: every architecture against what peft really wraps, and the hard ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import sweep_targets
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from course_utils import configs, hardware
from course_utils.paths import CONFIGS, POCKET_MODEL, POCKET_T5
from preflight import lora_targets

# peft doubles the rank of two names that became one parameter, and warns that it did not.
PATTERNS = pytest.mark.filterwarnings(
    "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128}
MOE = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 128}
DEEPSEEK = {
    **MOE, "moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1,
}  # fmt: skip


def small(kind: str, **sizes: object) -> PreTrainedModel:
    """A model of some architecture without weights."""
    return configs.build_empty(CONFIG_MAPPING[kind](**sizes))


def trainable(model: PreTrainedModel, **targets: object) -> int:
    """The parameters that peft really makes; the model stays as it is."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, **targets))
    return adapted.get_nb_trainable_parameters()[0]


# The sweep over all architectures.


@pytest.fixture(scope="module")
def swept() -> list[dict]:
    return sweep_targets.sweep()


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads(sweep_targets.OUTPUT.read_text(encoding="utf-8"))


@pytest.mark.long
def test_discovery_agrees_with_peft_on_every_architecture(swept: list[dict]) -> None:
    """Names, parameters and refusals for all-linear, peft's default and the classic list, and that
    no parameter of the model is forgotten: a new rule of peft would show here first."""
    wrong = {r["type"]: r["agrees"] for r in swept if r["built"] and not all(r["agrees"].values())}
    assert not wrong
    assert sum(r["built"] for r in swept) >= 180


@pytest.mark.long
def test_no_architecture_is_skipped_in_silence(swept: list[dict], kept: dict) -> None:
    """Each type that transformers knows is in the table; those that cannot be built, by name."""
    assert [r["type"] for r in swept] == sweep_targets.kinds()
    if kept["versions"]["transformers"] == sweep_targets.versions()["transformers"]:
        assert {r["type"]: r["reason"] for r in swept if not r["built"]} == {
            r["type"]: r["reason"] for r in kept["records"] if not r["built"]
        }


@pytest.mark.long
def test_the_table_in_the_course_is_that_of_today(swept: list[dict], kept: dict) -> None:
    """Lesson 04 shows it: on the versions it names it must come out again, figure by figure."""
    assert kept["schema"] == sweep_targets.SCHEMA
    if kept["versions"] != sweep_targets.versions():
        pytest.skip(f"the table is of {kept['versions']}")
    assert json.loads(json.dumps(swept)) == kept["records"]
    assert json.loads(json.dumps(sweep_targets.summary(swept))) == kept["summary"]


# Single architectures.


def test_llama(tmp_path: Path) -> None:
    """The plain case, from a model, a config, a name, a file and a folder alike."""
    table = lora_targets.discover("llama-3.1-8b")
    assert [t.name for t in table if t.in_all_linear] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert table.parameters == 8_030_261_248  # as on the model's page
    assert table["q_proj"].adapter == 32 * 8 * (4096 + 4096)
    assert table["k_proj"].adapter == 32 * 8 * (4096 + 1024)
    assert table.all_linear_adapter == 20_971_520
    assert table["q_proj"].in_default == table["v_proj"].in_default == 32
    assert table["k_proj"].in_default == 0
    file = CONFIGS / "llama-3.1-8b.json"
    (tmp_path / "config.json").write_bytes(file.read_bytes())
    config = configs.load_config(file)
    for given in (config, file, str(tmp_path), configs.build_empty(config), "LLAMA-3.1-8B"):
        assert lora_targets.discover(given) == table


def test_gpt2_has_conv1d_and_one_name_twice() -> None:
    """Its c_proj is in attention and in the MLP, and its matrices are stored as d_in x d_out."""
    model = small("gpt2", n_embd=64, n_layer=2, n_head=2)
    table = lora_targets.discover(model)
    assert (table["attn.c_proj"].kind, table["mlp.c_proj"].kind) == ("attention", "MLP")
    assert table["c_attn"].type == "Conv1D"
    assert table["c_attn"].shapes == ((64, 192),)
    assert "query, key and value in one matrix" in table["c_attn"].note
    assert "wte" in table["lm_head"].note  # the two share their weight
    assert lora_targets.suggest(model, "attention")["target_modules"] == ["c_attn", "attn.c_proj"]
    dense = lora_targets.suggest(model, "dense-linear")
    assert dense["target_modules"] == ["c_attn", "c_proj", "c_fc"]


def test_phi3_is_fused() -> None:
    """The names of most tutorials match two of its four matrices."""
    check = lora_targets.check_targets(small("phi3", **MOE, pad_token_id=0), sweep_targets.CLASSIC)
    assert [n.name for n in check.names if not n.problem] == ["o_proj"]
    nearest = {n.name: n.nearest for n in check.names}
    assert nearest["q_proj"] == nearest["v_proj"] == "qkv_proj"
    assert nearest["gate_proj"] == nearest["up_proj"] == "gate_up_proj"
    assert not check.error  # peft says nothing
    assert not check.ok


@PATTERNS
@pytest.mark.parametrize(
    "kind, sizes",
    [
        ("mixtral", {}),
        ("gpt_oss", {"head_dim": 32}),
        ("qwen2_moe", {"moe_intermediate_size": 64, "num_experts": 4}),
        ("deepseek_v3", DEEPSEEK),
    ],
)
def test_experts_as_parameters(kind: str, sizes: dict) -> None:
    """peft's all-linear adapts them on some types only; asked for by name, they are adapted."""
    model = small(kind, **{**MOE, **sizes})
    names = sweep_targets.wrap(copy.deepcopy(model), "all-linear")
    adapted = any("experts.gate_up_proj" in name for name in names)
    table = lora_targets.discover(model)
    experts = [t for t in table if t.kind == "expert"]
    assert [t.name for t in experts] == ["experts.gate_up_proj", "experts.down_proj"]
    assert all(bool(t.in_all_linear) == adapted for t in experts)
    lines = [line for line in table.summary().splitlines() if "passes over" in line]
    missed = any("experts.down_proj," in f"{line[:-1]}," for line in lines)
    assert missed == (not adapted and not table.all_linear_error)
    assert bool(table.all_linear_error) == (not names)
    suggestion = lora_targets.suggest(model, "expert")
    assert suggestion.target_parameters == ["experts.gate_up_proj", "experts.down_proj"]
    assert trainable(model, **suggestion) == suggestion.adapter
    assert suggestion.adapter == sum(t.adapter for t in experts)


@PATTERNS
def test_names_that_peft_takes_for_the_experts() -> None:
    """DeepSeek-V3's dense and shared layers: no entry of target_modules selects them."""
    model = small("deepseek_v3", **DEEPSEEK)
    table = lora_targets.discover(model)
    shared = table["shared_experts.gate_proj"]
    assert (shared.kind, shared.in_all_linear) == ("shared expert", 0)
    check = lora_targets.check_targets(model, ["gate_proj", "up_proj", "down_proj"])
    assert all("in its place" in name.problem for name in check.names)
    assert check.names[2].kinds == ("expert",)
    assert trainable(model, target_modules=["gate_proj", "up_proj", "down_proj"]) == check.adapter
    assert lora_targets.check_targets(model, ["gate_proj"]).error.startswith("Cannot convert")
    suggestion = lora_targets.suggest(model, "shared expert")
    assert "target_parameters" in suggestion.keys()
    assert trainable(model, **suggestion) == suggestion.adapter == 3 * 8 * (64 + 64)


def test_a_suggestion_trains_experts() -> None:
    """With weights: every adapter gets a gradient, on bare parameters as on modules."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["deepseek_v3"](**DEEPSEEK))
    adapted = get_peft_model(
        model, LoraConfig(r=4, **lora_targets.suggest(model, "dense-linear+expert"))
    )
    ids = torch.arange(64).reshape(2, 32)
    adapted(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert len(grads) == 18
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)


def test_hybrids_have_state_spaces() -> None:
    """Jamba mixes Mamba, attention, dense layers and experts; its all-linear leaves experts out."""
    table = lora_targets.discover(CONFIG_MAPPING["jamba"](num_hidden_layers=8))
    kinds = {t.name: t.kind for t in table}
    assert {kinds["in_proj"], kinds["x_proj"]} == {"state-space"}
    assert (kinds["conv1d"], kinds["q_proj"]) == ("convolution", "attention")
    assert kinds["router.weight"] == "router"
    assert table["conv1d"].refused  # 8192 groups, and the rank must be a multiple
    assert table["experts.down_proj"].in_all_linear == 0
    suggestion = lora_targets.suggest(small("jamba", num_hidden_layers=8), "state-space")
    assert suggestion.target_modules == ["in_proj", "x_proj", "dt_proj", "out_proj"]


def test_mamba_has_layers_that_peft_refuses() -> None:
    """all-linear fails on it, and a suggestion leaves the refused layer out."""
    model = small("mamba", hidden_size=64, num_hidden_layers=2, vocab_size=128)
    table = lora_targets.discover(model)
    assert "out_proj" in table.all_linear_error
    assert table["out_proj"].refused
    assert "all-linear" in str(table)
    suggestion = lora_targets.suggest(model, "dense-linear")
    assert suggestion.target_modules == ["in_proj", "x_proj", "dt_proj"]
    assert trainable(model, **suggestion) == suggestion.adapter


def test_towers_are_told_apart() -> None:
    """Gemma 3 has a q_proj in its vision tower: only a regular expression leaves that out."""
    config = CONFIG_MAPPING["gemma3"]()
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    model = configs.build_empty(config)
    suggestion = lora_targets.suggest(model, "attention")
    assert isinstance(suggestion.target_modules, str)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**suggestion))
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(names) == 2 * 4
    assert not [name for name in names if "vision" in name]
    assert lora_targets.check_targets(model, ["q_proj"]).names[0].kinds == ("vision", "attention")
    assert "no effect" in lora_targets.discover(model)["attention.out_proj"].note


def test_encoders_and_pairs() -> None:
    """BERT's three layers called dense, and T5's encoder and decoder."""
    bert = lora_targets.discover(CONFIG_MAPPING["bert"]())
    dense = {t.name: t.kind for t in bert if t.name.endswith("dense")}
    assert dense == {
        "attention.output.dense": "attention",
        "intermediate.dense": "MLP",
        "*.output.dense": "MLP",
        "transform.dense": "head",
    }
    model = small("bert", **SMALL, intermediate_size=128)
    suggestion = lora_targets.suggest(model, "MLP")
    assert trainable(model, **suggestion) == suggestion.adapter == 2 * 2 * 8 * (64 + 128)
    t5 = lora_targets.discover(POCKET_T5)
    assert {t5["q"].kind, t5["o"].kind} == {"attention"}
    assert t5["q"].in_default == t5["q"].count == t5["v"].in_default


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_keep_their_shape(bits: int) -> None:
    """A 4-bit weight is packed to half its numbers: the table must say the matrix's."""
    hardware.fix_bitsandbytes()
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, quantization_config=quantization)
    table, plain = lora_targets.discover(model), lora_targets.discover(POCKET_MODEL)
    assert table["q_proj"].type == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert table["lm_head"].type == "Linear"
    columns = ["name", "kind", "count", "shapes", "parameters", "adapter", "in_all_linear", "note"]
    assert table.to_frame()[columns].equals(plain.to_frame()[columns])
    suggestion = lora_targets.suggest(model, "dense-linear")
    assert suggestion == lora_targets.suggest(POCKET_MODEL, "dense-linear")
    adapted = get_peft_model(model, LoraConfig(r=8, **suggestion))
    assert adapted.get_nb_trainable_parameters()[0] == suggestion.adapter


def test_the_model_that_is_asked_about_stays_as_it_is() -> None:
    """peft freezes what it wraps and hooks into it: that must happen to a copy, without a cost."""
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL)
    modules, config = list(model.modules()), model.config.to_dict()
    weights = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    assert lora_targets.make_adapters(model, "all-linear", r=8).modules
    assert lora_targets.make_adapters(model, ["self_attn"]).error
    assert list(model.modules()) == modules
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == weights
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert (model.config.to_dict(), hasattr(model, "peft_config")) == (config, False)


@pytest.mark.parametrize(
    "kind, sizes, name",
    [
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2}, "wte"),
        ("gemma3", {}, "patch_embedding"),
        ("gemma3", {}, "head.attention"),
        ("xlm", {}, "embeddings"),
    ],
)
def test_adapters_on_what_is_not_linear(kind: str, sizes: dict, name: str) -> None:
    """Embeddings, convolutions and MultiheadAttention have formulas of their own."""
    config = CONFIG_MAPPING[kind](**sizes)
    sweep_targets.shorten(config, 2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check = lora_targets.check_targets(model, [name])
    assert check.names[0].count == check.layers == 1
    assert trainable(model, target_modules=[name]) == check.adapter


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd:UserWarning")
def test_a_depthwise_convolution_wants_a_rank_of_its_own() -> None:
    """peft raises unless the rank is a multiple of the groups."""
    model = small("jamba", num_hidden_layers=2, hidden_size=8, mamba_dt_rank=4)
    assert model.model.layers[0].mamba.conv1d.groups == 16
    assert "16 groups" in lora_targets.check_targets(model, ["conv1d"]).error
    with pytest.raises(ValueError, match="groups=16 and rank 8"):
        trainable(model, target_modules=["conv1d"])
    check = lora_targets.check_targets(model, ["conv1d"], r=32)
    adapted = get_peft_model(model, LoraConfig(r=32, target_modules=["conv1d"]))
    assert adapted.get_nb_trainable_parameters()[0] == check.adapter


# Names.


def test_one_wrong_name_in_a_list() -> None:
    """peft issue 1959: it adapts what it finds and says nothing."""
    given = ["q_proj", "K_proj", "v_porj", "q_proj", "qkv", "zzz"]
    model = configs.build_empty(configs.load_config(POCKET_MODEL))
    check = lora_targets.check_targets(model, given)
    found = [(n.count, n.problem, n.nearest) for n in check.names]
    assert found == [
        (4, "", ""),
        (0, "matches nothing: upper and lower case count", "k_proj"),
        (0, "matches nothing", "v_proj"),
        (4, "stands in the list twice", ""),
        (0, "matches nothing", "q_proj"),
        (0, "matches nothing", ""),
    ]
    assert (check.ok, check.error, check.layers) == (False, "", 4)
    assert trainable(model, target_modules=given) == check.adapter
    assert "says nothing" in check.summary()
    assert lora_targets.check_targets(model, ["q_proj", "self_attn.v_proj"]).ok


def test_a_string_is_a_regular_expression() -> None:
    """It has to fit the whole name: "q_proj" fits none, and peft raises."""
    good = lora_targets.check_targets(POCKET_MODEL, r".*\.(q|v)_proj")
    assert (good.ok, good.layers, good.names[0].kinds) == (True, 8, ("attention",))
    for given, names in (("q_proj", ["q_proj"]), ("q_proj, v_proj", ["q_proj", "v_proj"])):
        bad = lora_targets.check_targets(POCKET_MODEL, given)
        assert bad.error
        assert bad.names[0].nearest == repr(names)
    everything = lora_targets.check_targets(POCKET_MODEL, "All-Linear")
    assert (everything.ok, everything.layers) == (True, 28)


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "No target name"),
        ("", "empty string"),
        (["q_proj", 3], "3 is among"),
        (None, "None was given"),
        ("(", "no regular expression"),
    ],
)
def test_bad_names(names: object, words: str) -> None:
    """What was given, what is allowed."""
    with pytest.raises(ValueError, match=words):
        lora_targets.check_targets(POCKET_MODEL, names)


def test_bad_models() -> None:
    """Each says what to do."""
    model = configs.build_empty(configs.load_config(POCKET_MODEL))
    with pytest.raises(ValueError, match="no layer that LoRA can adapt"):
        lora_targets.discover(torch.nn.Sequential(torch.nn.LayerNorm(4)))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has an adapter already"):
        lora_targets.discover(adapted)


def test_plain_modules_of_torch() -> None:
    """A network without a config, its layers called by numbers."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    table = lora_targets.discover(net)
    assert [(t.name, t.adapter) for t in table] == [("0", 8 * 12), ("2", 8 * 10)]
    assert table.parameters == sum(p.numel() for p in net.parameters())


def test_tables_are_plain() -> None:
    """As text, JSON and DataFrame. (test_security.py has HTML.)"""
    table = lora_targets.discover(POCKET_MODEL)
    assert json.loads(json.dumps(table.to_dict()))["targets"][1]["name"] == "q_proj"
    parameters = table.to_frame().set_index("name")["parameters"].drop("lm_head")  # it is tied
    assert parameters.sum() + sum(rest.parameters for rest in table.rest) == table.parameters
    assert "q_proj" in str(table)
    with pytest.raises(KeyError, match="Targets: embed_tokens"):
        table["nothing"]


# Configs.


def test_every_shipped_config_can_be_targeted() -> None:
    """Offline, by name."""
    assert configs.shipped()
    for name in configs.shipped():
        assert lora_targets.suggest(name, "attention").layers


def test_configs_that_are_none(tmp_path: Path) -> None:
    """Broken JSON, another file; book/bad_input.yaml has missing files, adapters."""
    for text in ("{", "[]", '{"model_type": "nonsense"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="cannot be read as a model's config"):
            configs.load_config(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is a file, but not a config"):
        configs.load_config(tmp_path / "notes.txt")
    for given in (None, 3, " "):
        with pytest.raises(ValueError, match="was given as a model"):
            configs.load_config(given)


def test_configs_that_describe_no_model() -> None:
    """A head that does not fit, and a config without a model."""
    with pytest.raises(ValueError, match="describes no model that transformers can build"):
        small("nemotron")  # the default lacks num_key_value_heads
    names = {"t5": "T5ForConditionalGeneration", "bert": "BertForMaskedLM"}
    for kind, name in {**names, "llama": "LlamaForCausalLM", "vit": "ViTModel"}.items():
        assert type(small(kind)).__name__ == name
    assert type(small("bert", is_decoder=True)).__name__ == "BertLMHeadModel"
