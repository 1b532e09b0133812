"""T5's pretraining task: spans of a text are cut out, and the model writes them.

Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer (2020), section 3.1.4: 15% of the tokens, in spans of three on average.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast

SENTINELS = 32
DENSITY = 0.15
MEAN_SPAN = 3


def sentinel(number: int) -> str:
    """Return the token that stands for the span of that number."""
    return f"<extra_id_{number}>"


def corrupt(
    ids: list[int], sentinel_ids: list[int], rng: random.Random
) -> tuple[list[int], list[int]]:
    """Return the text with sentinels for spans, and the target: each sentinel and its span."""
    spans = min(len(sentinel_ids), max(1, round(len(ids) * DENSITY / MEAN_SPAN)))
    starts = sorted(rng.sample(range(len(ids)), min(spans, len(ids))))
    source: list[int] = []
    target: list[int] = []
    position = 0
    for mark, start in zip(sentinel_ids, starts, strict=False):
        if start < position:  # it begins inside the span before
            continue
        end = min(len(ids), start + rng.randint(1, 2 * MEAN_SPAN - 1))
        source += [*ids[position:start], mark]
        target += [mark, *ids[start:end]]
        position = end
    return source + ids[position:], target


@dataclass
class DenoisingCollator:
    """Makes a batch of corrupted texts and their targets; each time, other spans."""

    tokenizer: PreTrainedTokenizerFast
    seed: int
    _rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        names = [sentinel(number) for number in range(SENTINELS)]
        self._sentinels = self.tokenizer.convert_tokens_to_ids(names)

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        end = self.tokenizer.eos_token_id
        pairs = [corrupt(row["input_ids"][:-1], self._sentinels, self._rng) for row in rows]
        sources = self.tokenizer.pad(
            {"input_ids": [[*source, end] for source, _ in pairs]}, return_tensors="pt"
        )
        targets = self.tokenizer.pad(
            {"input_ids": [[*target, end] for _, target in pairs]}, return_tensors="pt"
        )
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        return {**sources, "labels": labels}
