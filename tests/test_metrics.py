"""The figures that the lessons rest on: each against a value computed in another way."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from course_utils import metrics
from course_utils.paths import POCKET_MODEL, POCKET_T5

TEXTS = [
    "Message: Hello, this is Ada from Leeds.",
    "Order 12 was placed on Monday by Otto: one red kettle, to be sent to York.",
    "Hi.",
]


def test_exact_match_ignores_outer_spaces_only() -> None:
    """A completion's leading space must not count as an error, a changed letter must."""
    assert metrics.exact_match([" a b ", "c", "D"], ["a b", "c", "d"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("predictions, references", [([], []), (["a"], ["a", "b"])])
def test_unequal_or_empty_lists_are_refused(predictions: list[str], references: list[str]) -> None:
    """A score over a truncated list would look like a real one."""
    for metric in (metrics.exact_match, metrics.field_accuracy):
        with pytest.raises(ValueError, match=r"one prediction for each reference"):
            metric(predictions, references)


def test_field_accuracy_counts_each_field() -> None:
    """Invalid JSON, a missing field and a wrong value are all errors, of the right field."""
    truth = ['{"a": "1", "b": null}'] * 4
    given = ['{"a": "1", "b": null}', '{"a": "2"}', '{"a": "1"', "[1]"]
    accuracy = metrics.field_accuracy(given, truth)
    assert accuracy.to_dict() == {"a": 0.25, "b": 0.25}


def test_true_is_not_one() -> None:
    """Python takes them for equal, JSON does not; 1 and 1.0 are one number to both."""
    truth = ['{"urgent": true, "count": 1}'] * 3
    given = ['{"urgent": 1, "count": true}', '{"urgent": true, "count": 1.0}', '{"urgent": false}']
    assert metrics.field_accuracy(given, truth).to_dict() == pytest.approx(
        {"urgent": 1 / 3, "count": 1 / 3}
    )


@pytest.mark.parametrize(
    "text",
    ['{"a": ' + "1" * 5000 + "}", '{"a": ' * 100_000, "[1]", "a"],
    ids=["digits", "deep", "list", "word"],
)
def test_what_is_no_record_to_python_is_none(text: str) -> None:
    """A model that repeats a digit until it is cut off must not end the evaluation."""
    assert metrics.json_record(text) is None
    assert metrics.field_accuracy([text], ['{"a": 1}']).to_dict() == {"a": 0}


def test_one_text_is_not_taken_for_a_list_of_letters(model, tokenizer) -> None:
    """It would be answered letter by letter, and scored so."""
    for function in (metrics.generate, metrics.token_loss, metrics.perplexity):
        with pytest.raises(ValueError, match=r"'Hello' was given.*\[text\]"):
            function(model, tokenizer, "Hello")
    for metric in (metrics.exact_match, metrics.field_accuracy):
        for pair in (("Hello", ["Hello"]), (["Hello"], "Hello")):
            with pytest.raises(ValueError, match=r"'Hello' was given.*\[text\]"):
                metric(*pair)


def test_field_accuracy_names_a_bad_reference() -> None:
    """The wrong column as reference gives a clear error, not a score of zero."""
    with pytest.raises(ValueError, match="not a JSON object"):
        metrics.field_accuracy(["{}"], ["plain text"])


def test_token_loss_weighs_tokens_and_not_texts(model, tokenizer) -> None:
    """Batches with padding give the loss of the texts one by one, each token counted once."""
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    assert metrics.token_loss(model, tokenizer, TEXTS, batch_size=2) == pytest.approx(
        total / count, rel=1e-4
    )
    assert metrics.perplexity(model, tokenizer, TEXTS) == pytest.approx(
        math.exp(total / count), rel=1e-4
    )


def test_token_loss_of_the_same_tokens_behind_a_soft_prompt(tokenizer) -> None:
    """peft puts virtual tokens before a text; its first token must not become one more target."""
    base = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.eval()
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 4:-1]
    expected = float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    assert metrics.token_loss(model, tokenizer, TEXTS[1:2]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("texts", [[], ["."]])
def test_token_loss_needs_something_to_predict(model, tokenizer, texts: list[str]) -> None:
    """An empty list or one-token texts would give NaN, which spreads silently."""
    with pytest.raises(ValueError):
        metrics.token_loss(model, tokenizer, texts)


def test_generate_equals_one_by_one(model, tokenizer) -> None:
    """Without an adapter neither padding on the left nor sorting by length changes an answer."""
    prompts = [f"{text}\nQuestion: Which town is it?\nAnswer:" for text in TEXTS]
    model.train()
    together = metrics.generate(
        model, tokenizer, prompts, max_new_tokens=6, batch_size=2, progress=False
    )
    assert model.training, "generate() must put the model back into the mode it was in"
    alone = [
        metrics.generate(model, tokenizer, [p], max_new_tokens=6, progress=False)[0]
        for p in prompts
    ]
    assert together == alone


def test_generate_puts_no_second_beginning_before_a_template(model) -> None:
    """Llama 3's tokenizer adds a token of the beginning, and its chat template writes one."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    begin = tokenizer.convert_ids_to_tokens(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 0)]
    )
    options = {"max_new_tokens": 6, "progress": False}
    by_tokenizer = metrics.generate(model, tokenizer, TEXTS, **options)
    written = [begin + text for text in TEXTS]
    by_template = metrics.generate(model, tokenizer, written, add_special_tokens=False, **options)
    assert by_template == by_tokenizer


def test_generate_refuses_what_it_cannot_do(model) -> None:
    """No prompts and no pad token: said at once, with what to do."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET_MODEL)
    with pytest.raises(ValueError, match="at least one"):
        metrics.generate(model, tokenizer, [])
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token"):
        metrics.generate(model, tokenizer, ["a"])
    with pytest.raises(ValueError, match=r"tokenizer\.pad_token"):
        metrics.token_loss(model, tokenizer, TEXTS)


def test_generate_refuses_prompts_that_it_would_misread(model, tokenizer) -> None:
    """One chat was taken for its letters; a mix and no token ended in errors of the libraries."""
    chat = [{"role": "user", "content": "Hi."}]
    for prompts, said in (
        (chat, r"put it in brackets, \[messages\]"),
        (["Hi.", chat], "1 of 2 prompts are texts"),
        ([chat, "Hi."], "1 of 2 prompts are texts"),
        (["", ""], "No prompt has a token"),
    ):
        with pytest.raises(ValueError, match=said):
            metrics.generate(model, tokenizer, prompts, progress=False)


def test_an_encoder_decoder_is_refused() -> None:
    """Its answers lost as many tokens in front as the prompt has."""
    model = AutoModelForSeq2SeqLM.from_pretrained(POCKET_T5)
    tokenizer = AutoTokenizer.from_pretrained(POCKET_T5)
    for score in (metrics.generate, metrics.token_loss):
        with pytest.raises(ValueError, match="t5 is an encoder-decoder"):
            score(model, tokenizer, TEXTS)


def test_answers_are_greedy_where_a_model_asks_for_beams(tokenizer) -> None:
    """Breaks if an adapter's model with num_beams in its generation config is an error again."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(POCKET_MODEL), config)
    greedy = metrics.generate(model, tokenizer, TEXTS, max_new_tokens=8, progress=False)
    model.generation_config.num_beams = 3
    assert metrics.generate(model, tokenizer, TEXTS, max_new_tokens=8, progress=False) == greedy


def test_each_part_keeps_its_mode(tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL).train()
    model.model.layers[0].eval()
    metrics.token_loss(model, tokenizer, TEXTS)
    metrics.generate(model, tokenizer, TEXTS, max_new_tokens=1, progress=False)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training


def test_forgetting_of_an_adapter(tokenizer) -> None:
    """A fresh adapter forgets nothing; a disturbed one does, by the two ways of measuring alike."""
    model = AutoModelForCausalLM.from_pretrained(POCKET_MODEL, dtype=torch.float32)
    with pytest.raises(ValueError, match="loss_before"):
        metrics.forgetting(model, tokenizer, TEXTS)
    before = metrics.token_loss(model, tokenizer, TEXTS)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert metrics.forgetting(tuned, tokenizer, TEXTS) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    rise = metrics.forgetting(tuned, tokenizer, TEXTS)
    assert rise > 0.1
    assert rise == pytest.approx(
        metrics.forgetting(tuned, tokenizer, TEXTS, loss_before=before), abs=1e-5
    )
