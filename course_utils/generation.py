"""Greedy answers, and rows of a batch, that are what the model says of each prompt alone.

With most adapters padding and a cache change nothing. With some they do, so it is measured on two
of the prompts before the others are answered.

Used by lessons: 00, 03, 05a, 05b, 08, 09, 11a, 12.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

# How prompts may be answered, the fastest first: whole batches or one by one, cached or not.
WAYS = {
    (True, True): "in batches",
    (True, False): "without a cache",
    (False, False): "one by one and without a cache",
}
FASTEST = (True, True)
TRIED = 2  # tokens: the first of an answer, and one that the cache has a part in

Ids = Sequence[int]


def virtual_tokens(model: PreTrainedModel) -> int:
    """Return how many virtual tokens an adapter puts before each text now."""
    config = getattr(model, "active_peft_config", None)
    if config is None or getattr(model, "_adapters_disabled", False):
        return 0
    return config.num_virtual_tokens if config.is_prompt_learning else 0


def way_of(
    model: PreTrainedModel, longest: Ids, shortest: Ids, pad: int, max_new_tokens: int
) -> tuple[bool, bool]:
    """Return how a model can be asked in batches: whole ones or row by row, cached or not.

    It is the fastest way whose first tokens, of the longest and the shortest prompt in one batch,
    have the logits that the model itself gives to each prompt alone. What is slow is said once.

    Raises:
        ValueError: if no way has them.
    """
    pair = [list(ids) for ids in (longest, shortest) if ids]
    if not hasattr(model, "peft_config") or not pair:
        return FASTEST
    new = min(TRIED, max_new_tokens)
    for way in WAYS:
        together, cached = way
        options = {"use_cache": cached, "max_new_tokens": new, "min_new_tokens": new}
        outputs = [
            written(model, *padded(part, pad, model.device), pad, **options, output_logits=True)
            for part in ([pair] if together else [[ids] for ids in pair])
        ]
        tokens = torch.cat([out.sequences for out in outputs])
        logits = torch.cat([torch.stack(out.logits, 1) for out in outputs])
        alone = [
            [_last_logits(model, ids + said[:place]) for place in range(new)]
            for ids, said in zip(pair, tokens.tolist(), strict=True)
        ]
        if _alike(model, logits, torch.stack([torch.stack(row) for row in alone])):
            break
    else:
        raise ValueError(
            f"An adapter of the type {_type(model)} generates other tokens than its forward pass "
            "says, in a batch or alone, with a cache or without. Score it by token_loss() instead."
        )
    if way != FASTEST:
        warnings.warn(
            f"{_type(model)}: prompts are answered {WAYS[way]}, or this adapter's answers "
            "would depend on what shares their batch, or on the cache.",
            stacklevel=3,
        )
    return way


def rows_are_alone(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> bool:
    """Say whether the last row of a batch that is padded on the right has the logits it has alone.

    Where it has not, that is said once.
    """
    ids = batch["input_ids"][-1][batch["attention_mask"][-1] == 1]
    if not hasattr(model, "peft_config") or not len(ids):
        return True
    alone = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
    there = model(**batch).logits[-1, -batch["input_ids"].shape[1] :][: len(ids)]
    same = _alike(model, there, alone[0, -len(ids) :])
    if not same:
        warnings.warn(
            f"{_type(model)}: texts are scored one by one, or this adapter's loss would depend on "
            "what shares their batch.",
            stacklevel=3,
        )
    return same


def padded(rows: Sequence[Ids], pad: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the tokens and the attention mask of a batch that is padded on the left."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def written(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, pad: int, **options: Any
) -> Any:
    """Return what `generate` returns as a dict, greedily, with the new tokens alone as sequences.

    `ids` and `mask` are padded on the left. Virtual tokens come behind the padding: peft 0.21 puts
    them before it, drops the positions, and with transformers 5.24 puts them in once more before
    each token that the cache continues. So the base model itself goes on from them here.
    """
    # A model's own settings may ask for beams, which are not greedy.
    options |= {"do_sample": False, "num_beams": 1, "pad_token_id": pad}
    options["return_dict_in_generate"] = True
    inputs, count = {"input_ids": ids, "attention_mask": mask}, virtual_tokens(model)
    if count:
        front, words = model.get_prompt(len(ids)), model.word_embeddings(ids)
        model = model.get_base_model()
        mask = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if isinstance(front, Cache):  # keys and values; generate cuts off as many tokens in front
            ids = torch.cat([ids.new_full((len(ids), count), pad), ids], dim=1)
            # transformers 5.24 has another name for it
            cache = {"cache", "past_key_values"} & set(signature(model.forward).parameters)
            inputs = {"input_ids": ids, "attention_mask": mask, min(cache): front}
            options["use_cache"] = True
        else:
            order = mask.argsort(dim=1, stable=True)  # the padding first
            embeddings = torch.cat([front.to(words.dtype), words], dim=1)
            embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
            inputs = {"inputs_embeds": embeddings, "attention_mask": mask.gather(1, order)}
    output = model.generate(**inputs, **options)
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    output.sequences = output.sequences[:, given:]
    return output


def _last_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Return the logits of the token that follows a text, by one forward pass of it alone."""
    ids = torch.tensor([ids], device=model.device)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]


def _alike(model: PreTrainedModel, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether logits differ by rounding alone; logits that are no numbers are alike.

    Rounding is the root of the type's step, as a share of the largest logit. The kernels for
    quantized weights round otherwise for one row than for several, and to 16 bits.
    """
    quantized = getattr(model, "is_quantized", False)
    step = torch.finfo(torch.bfloat16 if quantized else _computed_in(other)).eps
    one, other = one.float().nan_to_num(), other.float().nan_to_num()
    return float((one - other).abs().max()) <= step**0.5 * float(other.abs().max())


def _computed_in(logits: torch.Tensor) -> torch.dtype:
    """Return the type that logits have, or the 16 bits that they were computed in.

    Training with `bf16` or `fp16` leaves its autocast on the model's forward pass, which hands out
    float32; `generate` asks the base model, which has none.
    """
    for short in (torch.bfloat16, torch.float16):
        if torch.equal(logits, logits.to(short).to(logits.dtype)):
            return short
    return logits.dtype


def _type(model: PreTrainedModel) -> str:
    return ", ".join(sorted({config.peft_type.value for config in model.peft_config.values()}))
