"""Answers and losses of every type of adapter that peft has: in a batch as alone, with a cache."""

from __future__ import annotations

import warnings
from pathlib import Path

import adapter_types
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from course_utils import generation, metrics
from course_utils.paths import POCKET_MODEL

pytestmark = pytest.mark.usefixtures("one_thread")

# peft 0.21.2: the mean over a batch decides what Lily adds; Shadow's own cache is lost in
# transformers 5.24, which has another name for it.
SLOW = {"LILY": "one by one and without a cache", "SHADOW": "without a cache"}
TEXTS = ["1 2 3 40 41 42 43 44 45", "1 2 3 50 51 52 53 54 55", "1 2 3 60", "1 2 3 70 71 72"]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the numbers of the tokens of the small model."""
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(96)}, unk_token="0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0")


def trained(name: str, folder: Path) -> PeftModel:
    try:
        model = adapter_types.adapted(name, folder)
    except ImportError as error:
        pytest.skip(str(error))
    adapter_types.disturb(model, lambda: 1.0)
    return model


@torch.no_grad()
def logits_alone(model: PeftModel, ids: list[int]) -> torch.Tensor:
    """Return the logits of a text's tokens by a plain forward pass of this text."""
    text = torch.tensor([ids])
    return model(input_ids=text, attention_mask=torch.ones_like(text)).logits[0, -len(ids) :]


@pytest.mark.parametrize("name", adapter_types.names())
def test_answers_and_losses_are_those_of_each_text_alone(name: str, words, tmp_path: Path) -> None:
    """Breaks if padding, company or a cache changes what an adapter is said to answer."""
    model = trained(name, tmp_path)
    if name in adapter_types.BY_TASK:
        for score in (metrics.generate, metrics.token_loss):
            with pytest.raises(ValueError, match="task_ids"):
                score(model, words, TEXTS)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = metrics.generate(model, words, TEXTS, max_new_tokens=5, progress=False)
        loss = metrics.token_loss(model, words, TEXTS)
    said = [str(one.message) for one in caught if str(one.message).startswith(f"{name}: ")]
    answers = [text for text in said if "answered" in text]
    assert len(answers) == (name in SLOW) and all(SLOW[name] in text for text in answers)

    total = count = 0.0
    for text, answer in zip(TEXTS, found, strict=True):
        ids = words(text)["input_ids"]
        told = cross_entropy(logits_alone(model, ids)[:-1], torch.tensor(ids[1:]), reduction="sum")
        total, count = total + float(told), count + len(ids) - 1
        for _ in range(5):
            following = int(logits_alone(model, ids)[-1].argmax())
            ids.append(following)
            if following == words.pad_token_id:  # the model's end token as well
                break
        expected = words.decode(ids[len(words(text)["input_ids"]) :], skip_special_tokens=True)
        assert answer == expected
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_a_soft_prompt_that_is_switched_off_is_not_in_the_answers(model, tokenizer) -> None:
    """The base model is reached directly for virtual tokens; switched off, there are none."""
    texts = ["Message: Hello, this is Ada from Leeds.", "Hi."]
    base = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    soft = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert generation.virtual_tokens(soft) == 4
    options = {"max_new_tokens": 6, "progress": False}
    expected = metrics.generate(model, tokenizer, texts, **options)
    with soft.disable_adapter():
        assert metrics.generate(soft, tokenizer, texts, **options) == expected
    # They take room as well: 512 tokens are all that the model has.
    with pytest.raises(ValueError, match="max_new_tokens is 509"):
        metrics.generate(soft, tokenizer, texts, max_new_tokens=509)


def test_an_empty_text_among_others_is_no_error(words, tmp_path: Path) -> None:
    """Nothing can be asked of it alone, so it says nothing of padding."""
    model = trained("LORA", tmp_path)
    texts = [*TEXTS, ""]
    answers = metrics.generate(model, words, texts, max_new_tokens=3, progress=False)
    assert answers[:-1] == metrics.generate(model, words, TEXTS, max_new_tokens=3, progress=False)
    assert metrics.token_loss(model, words, texts) == pytest.approx(
        metrics.token_loss(model, words, TEXTS), rel=1e-5
    )


def test_a_model_that_was_trained_in_16_bits_is_answered(model, tokenizer) -> None:
    """Training leaves its autocast on the forward pass of the adapter's model, not on the base's.

    Breaks if the rounding to 16 bits is taken for an adapter that generates other tokens.
    """
    texts = ["Message: Hello, this is Ada from Leeds.", "Message: Hi.\nTicket:"]
    base = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    forward = adapted.forward
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    before = adapted(ids).logits
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(adapted)
        assert prepared is adapted and adapted.forward is not forward
        assert adapted(ids).logits.dtype == torch.float32
        assert (adapted(ids).logits - before).abs().max() > 1e-3
        options = {"max_new_tokens": 6, "progress": False}
        answers = metrics.generate(adapted, tokenizer, texts, **options)
        assert answers == metrics.generate(model, tokenizer, texts, **options)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_an_adapter_that_no_way_answers_rightly_is_refused(words, tmp_path: Path) -> None:
    """A generate() that says something else than the forward pass must not be scored."""
    model = trained("LORA", tmp_path)
    with torch.no_grad():
        forward, calls = model.forward, []

        def other(*arguments, **named):
            calls.append(named)
            output = forward(*arguments, **named)
            output.logits = output.logits.flip(-1)
            return output

        model.forward = other
        with pytest.raises(ValueError, match="LORA generates other tokens"):
            metrics.generate(model, words, TEXTS, progress=False)
    assert calls
