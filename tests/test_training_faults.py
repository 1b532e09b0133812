"""What check_trainer says of a training that would run and go wrong, each next to a sound one.

Seen with trl 1.16.0, transformers 5.24.0, peft 0.21.2; what the libraries do is asserted as well,
so that a version which does otherwise is noticed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CALM
from peft import (
    BOFTConfig,
    CPTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BitsAndBytesConfig,
    Gemma2Config,
    LlamaConfig,
    MixtralConfig,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from course_utils import hardware
from course_utils.paths import POCKET_MODEL
from preflight.findings import Finding
from preflight.training_check import check_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "vocab_size": 3072, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
PAIRS = {"prompt": ["the cat sat"] * 4, "completion": [" on the mat"] * 4}
PREFERENCES = {
    "prompt": ["the cat sat"] * 4,
    "chosen": [" on the mat"] * 4,
    "rejected": [" in"] * 4,
}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
KINDS = {SFTTrainer: SFTConfig, DPOTrainer: DPOConfig}


def pocket(**options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(POCKET_MODEL, **options)


def tiny(config: type = LlamaConfig, **options: Any) -> Any:
    """Return a random model whose logits are no small numbers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**TINY | options))
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data *= 8
    return model


def built(
    folder: Path,
    model: Any = None,
    rows: dict[str, list[Any]] = PAIRS,
    kind: type = SFTTrainer,
    *,
    peft_config: PeftConfig | None = LORA,
    own: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Return a trainer of three steps; `own` are arguments of the trainer itself."""
    settings = {"max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1} | arguments
    return kind(
        model=pocket() if model is None else model,
        args=KINDS[kind](str(folder), **CALM | settings),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(POCKET_MODEL),
        peft_config=copy.deepcopy(peft_config),
        **own or {},
    )


def found(trainer: Trainer) -> dict[str, Finding]:
    return {one.code: one for one in check_trainer(trainer).findings if one.code != "all_weights"}


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def trained_before(config: PeftConfig, folder: Path) -> Path:
    """Save an adapter that does something, and return where."""
    model = get_peft_model(pocket(), copy.deepcopy(config))
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder / "before")
    return folder / "before"


def test_an_adapter_that_is_loaded_to_be_used(tmp_path: Path) -> None:
    """With activation checkpointing it trains without an error, and the loss stands still."""
    saved = trained_before(LORA, tmp_path)
    frozen = built(tmp_path, PeftModel.from_pretrained(pocket(), saved), peft_config=None)
    one = found(frozen)["nothing_trained"]
    assert one.severity == "error" and "is_trainable=True" in one.fix and "to be used" in one.what
    assert len({*losses(frozen)}) == 1
    model = PeftModel.from_pretrained(pocket(), saved, is_trainable=True)
    assert found(built(tmp_path, model, peft_config=None)) == {}
    bare = built(tmp_path, pocket().requires_grad_(False), peft_config=None)
    assert "0 of 3,737,856 parameters are trained. " in found(bare)["nothing_trained"].what


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (LORA, False),
        (IA3Config(task_type="CAUSAL_LM"), True),
        (LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4), True),
    ],
    ids=["lora", "ia3", "loha"],
)
def test_the_reference_of_dpo(config: PeftConfig, wrong: bool, tmp_path: Path) -> None:
    """At the start the policy is its reference, and the loss is ln 2, where it was copied."""
    saved = trained_before(config, tmp_path)
    model = PeftModel.from_pretrained(pocket(), saved, is_trainable=True)
    count = model.get_nb_trainable_parameters()
    trainer = built(tmp_path, model, PREFERENCES, DPOTrainer, peft_config=None)

    def state() -> list[Any]:
        flags = [(n, p.requires_grad) for n, p in model.named_parameters()]
        modes = [module.training for module in model.modules()]
        return [flags, modes, model.active_adapters, torch.get_rng_state().tolist()]

    before = state()
    report = check_trainer(trainer)
    assert before == state()
    assert [one.code for one in report.findings] == ["reference"] * wrong
    assert "trains {:,} of {:,} parameters".format(*count) in report.about, "the copy is no part"
    assert (losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3)) is not wrong


@pytest.mark.parametrize("kind", [LoHaConfig, HRAConfig])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "merged"])
def test_a_sound_reference(fresh: bool, kind: type, tmp_path: Path) -> None:
    """Two new adapters begin otherwise and do nothing yet; the fix that is named is one."""
    config = kind(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)
    if fresh:
        model, new = get_peft_model(pocket(dtype=torch.float32), config), None
    else:
        saved = trained_before(config, tmp_path)
        model, new = PeftModel.from_pretrained(pocket(), saved).merge_and_unload(), config
    trainer = built(tmp_path, model, PREFERENCES, DPOTrainer, peft_config=new)
    assert found(trainer) == {}
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("kind", [SFTTrainer, DPOTrainer])
def test_trained_tokens_of_a_tied_model(kind: type, tmp_path: Path) -> None:
    """peft wraps the head, too, and trl asks the wrapper for the head's bias."""
    rows = PAIRS if kind is SFTTrainer else PREFERENCES
    tokens = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[5, 6]
    )
    trainer = built(tmp_path, None, rows, kind, peft_config=tokens)
    error = "'TrainableTokensWrapper' object has no attribute 'bias'"
    assert error in found(trainer)["fused_head"].what
    with pytest.raises(AttributeError, match=error):
        trainer.train()
    assert found(built(tmp_path, tiny(), rows, kind, peft_config=tokens)) == {}, "untied"
    plain = Trainer(
        get_peft_model(pocket(), tokens),
        TrainingArguments(str(tmp_path), max_steps=1, **CALM),
        train_dataset=built(tmp_path).train_dataset.select_columns(["input_ids", "labels"]),
    )
    assert found(plain) == {}
    plain.train()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_head(bits: int, tmp_path: Path) -> None:
    """llm_int8_skip_modules takes the place of the list that has the head."""
    hardware.fix_bitsandbytes()
    tiny().save_pretrained(tmp_path / "base")

    def quantized(*skipped: str) -> Any:
        width = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True}
        options = BitsAndBytesConfig(
            **width, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=[*skipped] or None
        )
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=options)

    wrong = built(tmp_path, quantized("k_proj"))
    one = found(wrong)["fused_head"]
    assert "Linear8bitLt, torch.int8" in one.what if bits == 8 else "Linear4bit" in one.what
    assert '"lm_head" belongs in your list' in one.fix
    if bits == 8:
        assert losses(wrong)[0] > 500
    else:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            wrong.train()
    for sound in (quantized("k_proj", "lm_head"), quantized()):
        assert found(built(tmp_path, sound)) == {}
    pocket().save_pretrained(tmp_path / "base")
    tied = built(tmp_path, quantized("k_proj"))
    assert [*found(tied)] == ["quantized_head"]
    tied.train()
    with pytest.raises((AttributeError, AssertionError)):
        tied.model(torch.tensor([[5, 6]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_more_than_a_product(dtype: torch.dtype, tmp_path: Path) -> None:
    """BERT's head has a layer before the product; a cap of the logits trl knows."""
    options = {"peft_config": None, "activation_checkpointing": False}
    bert = built(tmp_path, tiny(BertConfig, is_decoder=True).to(dtype), **options)
    assert "SFTTrainer's loss is not the model's: " in found(bert)["fused_head"].what
    capped = tiny(Gemma2Config, head_dim=32, query_pre_attn_scalar=32).to(dtype)
    assert found(built(tmp_path, capped, **options)) == {}
    assert found(built(tmp_path, capped, **options, bf16=True)) == {}


def test_an_adapter_with_a_loss_of_its_own(tmp_path: Path) -> None:
    """CPT weighs the logits itself, and the fused head has none; with Trainer it trains."""
    config = CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1]
    )
    fused = built(tmp_path, peft_config=config, activation_checkpointing=False)
    assert "With Linear and CPTConfig the first step raises" in found(fused)["fused_head"].what
    with pytest.raises(AttributeError, match="no attribute 'logits'"):
        fused.train()
    assert found(built(tmp_path, peft_config=PROMPT, activation_checkpointing=False)) == {}
    rows = {"input_ids": [[88, 265, 8]], "attention_mask": [[1] * 3], "labels": [[88, 265, 8]]}
    plain = Trainer(
        get_peft_model(pocket(), config),
        TrainingArguments(str(tmp_path), max_steps=1, **CALM),
        train_dataset=Dataset.from_dict(rows | {"input_type_mask": [[1, 1, 1]]}),
    )
    assert found(plain) == {}
    plain.train()


KIND = {"task_type": "CAUSAL_LM"}
ON_Q = KIND | {"target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**ON_Q, use_dora=True),
        LoraConfig(**ON_Q, modules_to_save=["lm_head"]),
        LoHaConfig(**ON_Q),
        LoKrConfig(**ON_Q),
        OFTConfig(**ON_Q),
        BOFTConfig(**ON_Q, boft_block_size=4),
        VeraConfig(**ON_Q),
        FourierFTConfig(**ON_Q, n_frequency=50),
        HRAConfig(**ON_Q),
        LNTuningConfig(**KIND),
        PrefixTuningConfig(**KIND, num_virtual_tokens=4),
        PromptEncoderConfig(**KIND, num_virtual_tokens=4, encoder_hidden_size=32),
    ],
    ids=lambda config: type(config).__name__,
)
def test_no_alarm_of_any_kind_of_adapter(config: PeftConfig, tmp_path: Path) -> None:
    """At the rate of SFTConfig's own default."""
    settings = {"learning_rate": 2e-5, "activation_checkpointing": False, "peft_config": config}
    reported = found(built(tmp_path, pocket(dtype=torch.float32), **settings))
    assert [*reported] == ["prefix_unused"] * isinstance(config, PrefixTuningConfig)


def smooth(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def balanced(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return smooth(outputs, labels) + 0.5 * outputs.aux_loss


@pytest.mark.parametrize(
    ("arguments", "function", "wrong"),
    [
        ({}, None, False),
        ({"label_smoothing_factor": 0.1}, None, True),
        ({"label_smoothing_factor": 0.1, "router_aux_loss_coef": 0.0}, None, False),
        ({}, smooth, True),
        ({}, balanced, False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_the_balancing_loss_of_experts(
    arguments: dict[str, Any], function: Any, wrong: bool, tmp_path: Path
) -> None:
    """It is logged as aux_loss whether or not it is part of the loss."""
    mixture = tiny(MixtralConfig, num_local_experts=4, router_aux_loss_coef=0.5)
    settings = {"activation_checkpointing": False} | arguments
    own = {} if function is None else {"compute_loss_func": function}
    trainer = built(tmp_path, mixture, peft_config=None, own=own, **settings)
    assert [*found(trainer)] == ["balancing_loss"] * wrong
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"]).logits
    plain = smooth(type("", (), {"logits": logits}), batch["labels"])
    added = bool(arguments.get("router_aux_loss_coef", 0.5)) and not wrong
    assert (float(loss.detach() - plain) > 0.5) is added


@pytest.mark.parametrize(("rate", "still"), [(1e-5, True), (1e-3, False)])
def test_steps_that_rounding_undoes(rate: float, still: bool, tmp_path: Path) -> None:
    """SFTTrainer casts an adapter on a quantized base to bfloat16; the share is that seen."""
    hardware.fix_bitsandbytes()
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    settings = {"learning_rate": rate, "max_steps": 20, "lr_scheduler_type": "constant"}
    trainer = built(tmp_path, pocket(quantization_config=four_bit), **settings)
    weights = [p for n, p in trainer.model.named_parameters() if "lora_A" in n]
    before = [weight.clone() for weight in weights]
    reported = found(trainer)
    assert [*reported] == ["lost_steps"] * still
    trainer.train()
    same = [float((a == b).float().mean()) for a, b in zip(before, weights, strict=True)]
    share = sum(same) / len(same)
    assert f"for {share:.0%} of" in reported["lost_steps"].what if still else share < 0.05
    assert found(built(tmp_path, pocket(), **settings)) == {}, "there the adapter is in float32"


@pytest.mark.parametrize("config", [None, LNTuningConfig(task_type="CAUSAL_LM")])
def test_what_is_trained_in_bfloat16(config: PeftConfig | None, tmp_path: Path) -> None:
    """The weights themselves, or norms, which peft leaves in their dtype."""
    settings = {"peft_config": config, "learning_rate": 2e-5}
    assert [*found(built(tmp_path, pocket(), **settings))] == ["lost_steps"]
    assert found(built(tmp_path, pocket(dtype=torch.float32), **settings)) == {}


PADDED = {
    "input_ids": [[88, 265, 0, 0], [88, 265, 8, 9]],
    "attention_mask": [[1, 1, 0, 0], [1] * 4],
}
LEFT = {"input_ids": [[0, 88, 265]], "attention_mask": [[0, 1, 1]], "labels": [[-100, 88, 265]]}
LONG = {"text": ["the cat sat on the mat " * times for times in (1, 2, 5, 1, 9)]}


@pytest.mark.parametrize(
    ("rows", "arguments", "function", "code"),
    [
        (PADDED, {}, False, "padded_rows"),
        (PADDED | {"labels": [[88, 265, -100, -100], [88, 265, 8, 9]]}, {}, False, ""),
        (LEFT, {}, False, "padded_rows"),
        ({"messages": [CHAT]}, {}, True, "formatting_func"),
        ({"messages": [CHAT]}, {}, False, ""),
        (PAIRS, {"completion_only_loss": False}, True, "formatting_func"),
        ({"content": ["x"]}, {"dataset_text_field": "content"}, True, "formatting_func"),
        ({"question": ["x"]}, {}, True, ""),
        ({"text": ["x"]}, {}, True, ""),
        (PAIRS | {"text": ["x"] * 4}, {}, False, "completion_end"),
        (PAIRS | {"text": ["x"] * 4, "completion": [" on<|end|>"] * 4}, {}, False, ""),
        (LONG, {"packing": True, "max_length": 16}, False, "packing_cut"),
        (LONG, {"packing": True, "max_length": 256}, False, ""),
        (LONG, {"packing": True, "max_length": 16, "packing_strategy": "bfd_split"}, False, ""),
    ],
)
def test_columns_that_are_dropped(
    rows: dict[str, Any], arguments: dict[str, Any], function: bool, code: str, tmp_path: Path
) -> None:
    own = {"formatting_func": lambda row: "the dog"} if function else {}
    trainer = built(tmp_path, tiny(), rows, own=own, **arguments)
    reported = found(trainer)
    assert [*reported] == [code] * bool(code)
    ids = trainer.train_dataset["input_ids"]
    text = trainer.processing_class.decode(ids[0])
    if code == "padded_rows":
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["attention_mask"].all() and reported[code].rows == (0,)
    elif code == "completion_end":
        assert not text.endswith("<|end|>")
    elif code == "packing_cut":
        assert "2 of 5 texts" in reported[code].what
    elif function:
        assert ("the dog" in text) is (code == "")


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("SEQ_CLS", AutoModelForSequenceClassification),
        ("TOKEN_CLS", AutoModelForTokenClassification),
        ("QUESTION_ANS", AutoModelForQuestionAnswering),
    ],
)
def test_the_names_that_peft_adds_for_a_task_are_no_fault(
    task: str, kind: Any, tmp_path: Path
) -> None:
    """Peft adds classifier and score to modules_to_save, and a model has one of them at most."""
    config = LoraConfig(task_type=task, target_modules=["q_proj"], modules_to_save=["nope"])
    base = kind.from_pretrained(POCKET_MODEL)
    trainer = Trainer(get_peft_model(base, config), TrainingArguments(str(tmp_path), **CALM))
    assert [one.what.partition(":")[0] for one in check_trainer(trainer).findings] == [
        "modules_to_save has 'nope'"
    ]


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_an_adapter_may_have_any_name(kind: Any, tmp_path: Path) -> None:
    task = "SEQ_CLS" if kind is AutoModelForSequenceClassification else "CAUSAL_LM"
    config = LoraConfig(task_type=task, target_modules=["q_proj"])
    model = get_peft_model(kind.from_pretrained(POCKET_MODEL), config, adapter_name="mine")
    assert not found(Trainer(model, TrainingArguments(str(tmp_path), **CALM)))
