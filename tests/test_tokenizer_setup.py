"""Real tokenizers and templates are made ready for a training: a pad token, marked answers."""

from __future__ import annotations

import architectures
import pytest
from transformers import AutoTokenizer

from course_utils.paths import POCKET_MODEL
from course_utils.tokenizer_setup import PLAIN_TEMPLATE, with_pad_token, with_training_template

CHAT = [
    {"role": "user", "content": "Is it far?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "How far?"},
    {"role": "assistant", "content": "A mile."},
]
# The pad token, and whether the tokenizer's own template can be kept word for word.
EXPECTED = {
    "qwen3": ("<|endoftext|>", False),
    "llama-3.1": ("<|reserved_special_token_0|>", True),
    "gemma-3": ("<pad>", True),
    "phi-3": ("<unk>", True),
    "gpt2": ("<|endoftext|>", False),
    "mistral": ("<pad>", True),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_pad_token_ends_no_text_where_there_is_another(name: str) -> None:
    tokenizer = with_pad_token(AutoTokenizer.from_pretrained(architectures.model(name)))
    assert tokenizer.pad_token == EXPECTED[name][0]
    assert name == "gpt2" or tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < len(tokenizer), "no token was added, so no table has to grow"


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_are_marked_and_the_text_is_the_templates_own(name: str) -> None:
    """Both answers carry the mark, each to the token that ends it, and nothing else does."""
    tokenizer = AutoTokenizer.from_pretrained(architectures.model(name))
    own = tokenizer.chat_template and tokenizer.apply_chat_template(CHAT, tokenize=False)
    tokenizer = with_training_template(tokenizer)
    assert (tokenizer.chat_template == PLAIN_TEMPLATE) == (not EXPECTED[name][1])
    if EXPECTED[name][1]:
        assert tokenizer.apply_chat_template(CHAT, tokenize=False) == own
    rendered = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
    marked = tokenizer.decode([token for token, mark in pairs if mark])
    assert "No." in marked and "A mile." in marked and "far" not in marked.replace("afar", "")
    assert any(str(t) in marked for t in tokenizer.added_tokens_decoder.values() if t.special)


def test_the_pocket_models_tokenizer_stays_as_it_is() -> None:
    before = AutoTokenizer.from_pretrained(POCKET_MODEL)
    after = with_training_template(with_pad_token(AutoTokenizer.from_pretrained(POCKET_MODEL)))
    assert after.pad_token == before.pad_token and after.chat_template == before.chat_template
