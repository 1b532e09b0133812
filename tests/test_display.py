"""What is shown of a dataset is text, never markup; trained tokens are told apart in two ways."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from course_utils.display import TokenMask, text_table
from course_utils.paths import POCKET_MODEL

SCRIPT = "<script>alert(1)</script>"


def test_text_tables_line_up() -> None:
    """Columns start below their heads, and no line ends in spaces."""
    lines = text_table([("a", 10), ("bcd", 2)], ("x", "count")).splitlines()
    assert lines == ["x    count", "a    10", "bcd  2"]


def test_a_mask_shows_as_brackets_and_as_marked_html(tokenizer) -> None:
    """Colour alone says nothing to some readers, and nothing in a terminal."""
    prompt, completion = tokenizer("Record:")["input_ids"], tokenizer(f" {SCRIPT}")["input_ids"]
    ids = [*prompt, *completion, tokenizer.eos_token_id, tokenizer.pad_token_id]
    labels = [-100] * len(prompt) + [*completion, tokenizer.eos_token_id, -100]
    mask = TokenMask.decode(tokenizer, ids, labels)
    assert repr(mask).startswith("Record:[")
    assert repr(mask).endswith("[<|end|>]")
    assert repr(mask).replace("[", "").replace("]", "") == f"Record: {SCRIPT}<|end|>"
    assert "<script" not in mask._repr_html_()
    trained = len(completion) + 1
    assert f"{trained} of {len(prompt) + trained} tokens carry a loss" in mask._repr_html_()


def test_an_end_token_that_pads_as_well_is_shown_where_it_is_trained() -> None:
    """Many tokenizers have one for both: a mask must show that a model learns to end."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    first, second = tokenizer("a b")["input_ids"]
    mask = TokenMask.decode(tokenizer, [first, second, end, end], [-100, second, end, -100])
    assert mask.trained == (False, True, True)
    assert repr(mask) == "a[ b][<|end|>]"


def test_a_label_too_few_is_an_error(tokenizer) -> None:
    """A mask shifted by one looks right and is wrong."""
    with pytest.raises(ValueError, match="3 tokens and 2 labels"):
        TokenMask.decode(tokenizer, [5, 6, 7], [5, 6])
