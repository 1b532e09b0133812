"""How good a model is at a task, and how much it forgot.

Used by lessons: 00, 03, 05a, 05b, 08, 09, 11a, 12.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from course_utils import generation


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    max_new_tokens: int = 96,
    batch_size: int = 40,
    progress: bool = True,
    add_special_tokens: bool = True,
) -> list[str]:
    """Return the model's greedy answer to each prompt, without the prompt and special tokens.

    A prompt is a text, or a list of messages for the tokenizer's chat template. A text that such a
    template wrote has its first token already: for it pass `add_special_tokens=False`, or some
    tokenizers put in a second one. One that leaves no room for the answer loses its beginning. The
    longest ones come first: if memory runs out, it does so at once. The model's train or eval mode
    is kept.

    An answer is the one that its prompt gets alone. Batches are padded on the left, so that every
    answer starts right after its prompt; if the model has an adapter with which that, or the cache,
    would change what is said, prompts are answered one by one or without a cache, and a warning
    says so.

    Raises:
        ValueError: if there is no prompt, `prompts` is a single text or chat, or some are texts and
            some chats, none has a token, the tokenizer has no pad token, the model is an
            encoder-decoder, the answer alone is longer than the model can take, or an adapter
            generates what its forward pass does not say.
    """
    _require_list(prompts)
    _require_causal(model)
    if not prompts:
        raise ValueError(
            "No prompts were given. generate() needs at least one string: pass a list."
        )
    _require_pad_token(tokenizer)
    chats = _are_chats(prompts)
    if chats:
        prompts = tokenizer.apply_chat_template(
            list(prompts), tokenize=False, add_generation_prompt=True
        )
    taken = max_new_tokens + generation.virtual_tokens(model)
    room = context_length(model) - taken
    if room < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, but the model takes only {context_length(model)} "
            "tokens, the prompt among them. Ask for fewer."
        )
    ids = tokenizer(list(prompts), add_special_tokens=add_special_tokens and not chats)["input_ids"]
    if not any(ids):
        raise ValueError(
            "No prompt has a token: there is nothing to answer. Allowed are prompts of one token "
            "or more. Give a text, or leave out the empty ones."
        )
    ids, pad = [row[-room:] for row in ids], tokenizer.pad_token_id
    answers = [""] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    with _evaluating(model), torch.no_grad():
        way = generation.way_of(model, ids[order[0]], ids[order[-1]], pad, max_new_tokens)
        together, cached = way
        options = {"use_cache": cached, "max_new_tokens": max_new_tokens}
        starts = range(0, len(order), step := batch_size if together else 1)
        for start in tqdm(starts, desc="answers") if progress else starts:
            part = order[start : start + step]
            rows, mask = generation.padded([ids[i] for i in part], pad, model.device)
            new = generation.written(model, rows, mask, pad, **options).sequences
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(part, texts, strict=True):
                answers[i] = text.strip()
    return answers


def context_length(model: PreTrainedModel) -> int:
    """Return how many tokens a model takes at most, prompt and answer together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the share, 0 to 1, of predictions that equal their reference but for outer spaces.

    Raises:
        ValueError: if the two are empty, differ in length, or one is a single text.
    """
    _same_length(predictions, references)
    hits = [p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def field_accuracy(predictions: Sequence[str], references: Sequence[str]) -> pd.Series:
    """Return the share, 0 to 1, of right values for each field of the references' JSON records.

    A prediction that is no JSON object has all its fields wrong. The mean over the series is the
    share of fields right. JSON's true and false are no numbers: true is not 1.

    Raises:
        ValueError: if the two are empty or differ in length, one is a single text, or a reference
            is no JSON object.
    """
    _same_length(predictions, references)
    hits: dict[str, list[bool]] = {}
    for prediction, reference in zip(predictions, references, strict=True):
        truth = json_record(reference)
        if truth is None:
            raise ValueError(
                f"This reference is not a JSON object: {reference[:80]!r}. "
                'References look like {"name": "Ada", ...}; check which column you passed.'
            )
        said = json_record(prediction) or {}
        for field, value in truth.items():
            hits.setdefault(field, []).append(field in said and _same_value(said[field], value))
    return pd.Series({field: sum(h) / len(h) for field, h in hits.items()}, name="share right")


@torch.inference_mode()
def token_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 32,
    max_length: int = 512,
) -> float:
    """Return the mean cross-entropy of a text's tokens, each from those before it, in nats.

    Every token of every text counts the same; texts longer than `max_length` tokens are cut. It is
    the cross-entropy of the logits, without what a method or a model adds to its own loss. Texts of
    like length share a batch, which leaves little padding; with an adapter to which a text's
    company makes a difference they are scored one by one, and a warning says so.

    Raises:
        ValueError: if there is no text, `texts` is a single text, no text has two tokens, the
            tokenizer has no pad token, or the model is an encoder-decoder.
    """
    _require_list(texts)
    _require_causal(model)
    if not texts:
        raise ValueError("No texts were given. Pass a list with at least one text.")
    _require_pad_token(tokenizer)
    texts = sorted(texts, key=len, reverse=True)  # if memory runs out, it does so at once
    total, count = 0.0, 0

    def batch(some: Sequence[str]) -> BatchEncoding:
        return tokenizer(
            list(some), return_tensors="pt", padding=True, padding_side="right", truncation=True,
            max_length=max_length,
        ).to(model.device)  # fmt: skip

    with _evaluating(model):
        if not generation.rows_are_alone(model, batch([texts[0], texts[-1]])):
            batch_size = 1
        for start in range(0, len(texts), batch_size):
            inputs = batch(texts[start : start + batch_size])
            targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:]
            if targets.numel():
                # The logits of virtual tokens come first: they are no text's.
                logits = model(**inputs).logits[:, -targets.shape[1] - 1 : -1].float()
                total += float(
                    cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
                )
                count += int((targets != -100).sum())
    if not count:
        raise ValueError("No text has two tokens or more, so there is nothing to predict.")
    return total / count


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 32,
    max_length: int = 512,
) -> float:
    """Return exp(`token_loss`): between how many tokens the model wavers, on average.

    Source: Jurafsky and Martin, Speech and Language Processing, 3rd ed., section 3.3.

    Raises:
        ValueError: as `token_loss`.
    """
    return math.exp(token_loss(model, tokenizer, texts, batch_size, max_length))


def forgetting(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    loss_before: float | None = None,
) -> float:
    """Return how much the loss on `texts` rose by fine-tuning, in nats per token (0 is best).

    `texts` are of the kind that the base model was pretrained on. For a model with an adapter the
    loss before is measured with the adapter switched off; else pass it as `loss_before`. This is
    how the PEFT project's method comparison defines forgetting.

    Raises:
        ValueError: if the model has no adapter and `loss_before` is missing, or as `token_loss`.
    """
    if loss_before is None:
        if not hasattr(model, "disable_adapter"):
            raise ValueError(
                "The model has no adapter to switch off, so its loss before tuning is not known. "
                "Measure it before training, loss = token_loss(model, tokenizer, texts), "
                "and pass loss_before=loss."
            )
        with model.disable_adapter():
            loss_before = token_loss(model, tokenizer, texts)
    return token_loss(model, tokenizer, texts) - loss_before


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a while, and back to what it was."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was in training:  # parts of a model can be in other modes than the whole
            module.training = was


def json_record(text: str) -> dict[str, object] | None:
    """Return the JSON object in `text`, or None where there is none that Python can read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits; deep nesting
        return None
    return value if isinstance(value, dict) else None


def _same_value(said: object, true: object) -> bool:
    """Return whether two values of JSON are equal; to Python, True is 1 as well."""
    return said == true and isinstance(said, bool) == isinstance(true, bool)


def _require_list(texts: Sequence[str]) -> None:
    """Raise ValueError for a single text, whose letters would be taken for texts."""
    if isinstance(texts, str):
        raise ValueError(
            f"The single text {texts[:80]!r} was given. Texts come as a list, also where there is "
            "one only: put it in brackets, [text]."
        )


def _are_chats(prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> bool:
    """Return whether prompts are chats, not texts; raise ValueError for anything else."""
    if isinstance(prompts[0], Mapping):
        raise ValueError(
            "The messages of a single chat were given. Chats come as a list, also where there is "
            "one only: put it in brackets, [messages]."
        )
    texts = sum(isinstance(prompt, str) for prompt in prompts)
    if 0 < texts < len(prompts):
        raise ValueError(
            f"{texts} of {len(prompts)} prompts are texts, and the others are chats. Allowed are "
            "either texts or chats: call generate() once for each."
        )
    return not texts


def _require_causal(model: PreTrainedModel) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{model.config.model_type} is an encoder-decoder, and its answer does not go on from "
            "its prompt. Allowed are causal models. Call model.generate(**batch) and decode all of "
            "it, or take the loss of the model itself."
        )


def _require_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:
        raise ValueError(
            "The tokenizer has no pad token, which a batch of texts needs. "
            "Set one first: tokenizer.pad_token = tokenizer.eos_token is enough here."
        )


def _same_length(predictions: Sequence[str], references: Sequence[str]) -> None:
    _require_list(predictions)
    _require_list(references)
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"There are {len(predictions)} predictions and {len(references)} references. "
            "There must be one prediction for each reference, and at least one: "
            "pass both lists whole."
        )
