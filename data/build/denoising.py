"""The pretraining tasks of the pocket T5: parts of a text are cut out, and the model writes them.

- Spans: 15% of the tokens, three at a time on average (Raffel et al., Exploring the Limits of
  Transfer Learning with a Unified Text-to-Text Transformer, 2020, section 3.1.4).
- The end of the text, as UL2's S-denoiser (Tay et al., UL2: Unifying Language Learning Paradigms,
  2022, section 3.1.2), here cut where a line or an answer begins. Short spans alone do not teach a
  model of this size to copy from its input: what is said again has to be a whole answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast

SENTINELS = 32
NEWLINE = "Ċ"  # as byte-level BPE writes it
DENSITY = 0.15
MEAN_SPAN = 3
END_SHARE = 0.75  # documents that lose their end; the others lose spans


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


def cut_end(
    ids: list[int], mark: int, openers: frozenset[int], rng: random.Random
) -> tuple[list[int], list[int]]:
    """Return the beginning of the text with a sentinel for its end, and the target: that end.

    It is cut in its last three quarters, after one of the tokens in `openers`, chosen at random;
    where there is none, anywhere there.
    """
    first = max(1, len(ids) // 4)
    places = [i + 1 for i, token in enumerate(ids[:-1]) if i >= first and token in openers]
    place = rng.choice(places) if places else rng.randint(first, max(first, len(ids) - 1))
    return [*ids[:place], mark], [mark, *ids[place:]]


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
        self._openers = frozenset(
            i
            for token, i in self.tokenizer.get_vocab().items()
            if NEWLINE in token or token[-1] == ":"
        )

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        end = self.tokenizer.eos_token_id
        pairs = [self._task(row["input_ids"][:-1]) for row in rows]
        sources = self.tokenizer.pad(
            {"input_ids": [[*source, end] for source, _ in pairs]}, return_tensors="pt"
        )
        targets = self.tokenizer.pad(
            {"input_ids": [[*target, end] for _, target in pairs]}, return_tensors="pt"
        )
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        return {**sources, "labels": labels}

    def _task(self, ids: list[int]) -> tuple[list[int], list[int]]:
        if self._rng.random() < END_SHARE:
            return cut_end(ids, self._sentinels[0], self._openers, self._rng)
        return corrupt(ids, self._sentinels, self._rng)
