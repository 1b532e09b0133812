"""The shipped models are what their cards say, and what the lessons need."""

from __future__ import annotations

import json

import pretrain
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from course_utils import data, metrics
from course_utils.paths import POCKET_MODEL, POCKET_T5


def test_shape_of_the_llama(model) -> None:
    """Later lessons count on the projections' names and on widths that bitsandbytes gets right."""
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 2e6 <= model.num_parameters() <= 6e6
    assert model.config.max_position_embeddings >= 512
    linear = {
        n.split(".")[-1]: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert projections <= set(linear)
    for layer in linear.values():
        assert layer.in_features % 64 == 0
        assert layer.out_features % 32 == 0


@pytest.mark.parametrize("folder", [POCKET_MODEL, POCKET_T5], ids=lambda folder: folder.name)
def test_files_are_small_16_bit_safetensors(folder) -> None:
    """A clone must stay small."""
    (weights,) = folder.glob("*.safetensors")
    assert weights.stat().st_size < 16e6
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}


def test_tokenizer_round_trip_and_special_tokens(tokenizer) -> None:
    """Pad apart from eos, or a model learns never to stop; and no text is lost or changed."""
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = 'Dear team, café 42 – "Zoë" 日本\n{"name": "Ada"}'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_value_has_the_same_tokens_in_text_and_json(tokenizer) -> None:
    """Copying a name into a record is copying tokens only if the tokens are the same."""
    ids = tokenizer(["from Leeds", '"Leeds'])["input_ids"]
    leeds = tokenizer("Leeds")["input_ids"]
    assert all(row[-len(leeds) :] == leeds for row in ids)


def test_chat_template_marks_what_the_assistant_says(tokenizer) -> None:
    """assistant_only_loss needs the markers; the end of the turn must be inside them."""
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    row = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Good day<|end|>"


def test_the_base_model_copies_from_its_context(model, tokenizer) -> None:
    """Fluent but unable to copy, a base cannot be tuned to the task."""
    rows = data.load("qa", "test").select(range(50))
    prompts = [f"Message: {r['context']}\nQuestion: {r['question']}\nAnswer:" for r in rows]
    texts = metrics.generate(model, tokenizer, prompts, 16, progress=False)
    answers = [text.split("\n")[0] for text in texts]
    assert metrics.exact_match(answers, [row["answers"]["text"][0] for row in rows]) > 0.6


def test_the_encoder_decoder_copies_from_its_input() -> None:
    """It fits its limit, and fills a gap with what the input says: fine-tuning builds on that."""
    model = AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5, dtype=torch.float32)
    assert model.num_parameters() <= 4e6
    tokenizer = AutoTokenizer.from_pretrained(POCKET_T5)
    probe = [case for case in pretrain.copying_probe() if case[2] in ("name", "day")]
    scores = pretrain.copying_scores(model, tokenizer, probe)
    assert scores["name"] > 0.8 and scores["day"] > 0.8, scores


def test_what_python_cannot_read_has_no_value_right() -> None:
    """A model early in its training may repeat a digit to the end, which must not end it."""
    assert pretrain.values_copied('{"a": ' + "1" * 5000 + "}", '{"a": 1, "b": 2}') == [False] * 2
    assert pretrain.values_copied('{"a": 1}', '{"a": 1, "b": 2}') == [True, False]


def test_cards_hold_the_recorded_figures() -> None:
    """The card's figures come from the training's own record."""
    for folder in (POCKET_MODEL, POCKET_T5):
        facts = json.loads((folder / "training.json").read_text())
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"{facts['parameters']:,} parameters" in card
        assert f"{facts['heldout_loss']:.3f} nats per token" in card
