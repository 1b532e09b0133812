"""The faults that only tokens show: lengths, truncation, masks, the boundary, the vocabulary.

Rows are tokenised as SFTTrainer does it: the end-of-sequence token is appended to text and to
completions that do not end in it, and the completion begins where the tokens of the prompt alone
and those of prompt and completion together part.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from preflight.dataset_check.formats import MISSING, Format, Row
from preflight.dataset_check.rows import Fault

BATCH = 500  # rows tokenised at once
IGNORED = -100  # the label that the loss skips


def tokenizer_faults(tokenizer: Any, form: Format) -> Iterator[Fault]:
    """Yield what is wrong with the tokenizer for data of this form."""
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        yield "pad_is_eos", {"pad": tokenizer.pad_token, "eos": tokenizer.eos_token}
    if form.chat and not tokenizer.chat_template:
        yield "no_chat_template", None
    if form.target in ("text", "prompt-completion") and not form.chat and not tokenizer.eos_token:
        yield "no_eos", None


class TokenFaults:
    """Tokenises rows of one format, a batch at a time, and says what is wrong with each."""

    def __init__(self, tokenizer: Any, max_length: int | None, form: Format) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length or float("inf")
        self.form = form

    def of(self, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, list[Fault]]]:
        """Yield the number and the faults of each row.

        Rows come with their numbers, and as the columns that the format extracts.
        """
        while batch := [*islice(rows, BATCH)]:
            numbers, columns = zip(*batch, strict=True)
            yield from zip(numbers, self._batch_faults(columns), strict=True)

    def _batch_faults(self, rows: Sequence[Row]) -> Iterator[list[Fault]]:
        if self.form.target == "tokens":
            yield from (list(self._ids_faults(row)) for row in rows)
        elif self.tokenizer is None or (self.form.chat and not self.tokenizer.chat_template):
            yield from ([] for _ in rows)
        elif self.form.chat:
            yield from (list(self._chat_faults(row)) for row in rows)
        elif self.form.target == "text":
            for ids in self._tokenise([self._ended(row["text"]) for row in rows]):
                yield list(self._length_faults(0, len(ids)))
        else:
            prompts = self._tokenise([row["prompt"] for row in rows])
            pairs = self._tokenise([row["prompt"] + self._ended(row["completion"]) for row in rows])
            for prompt, ids in zip(prompts, pairs, strict=True):
                yield list(self._pair_faults(prompt, ids))

    def _ended(self, text: str) -> str:
        eos = self.tokenizer.eos_token or ""
        return text if text.endswith(eos) else text + eos

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: without the tokenizer's warning about long rows, which the findings count.
        return self.tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]

    def _render(self, messages: list[Row], **options: Any) -> list[int]:
        quiet = {"verbose": False}
        return self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, tokenizer_kwargs=quiet, **options
        )["input_ids"]

    def _length_faults(self, start: int, length: int) -> Iterator[Fault]:
        """Yield faults of a row of `length` tokens whose answer begins at the token `start`."""
        if length <= self.max_length:
            return
        yield "too_long", {"tokens": length}
        if start:
            cut = "away" if start >= self.max_length else "partly"
            yield f"completion_cut_{cut}", {"tokens": length, "answer begins at": start}

    def _pair_faults(self, prompt: list[int], ids: list[int]) -> Iterator[Fault]:
        """Yield faults of a prompt's tokens, and of those of prompt and completion together."""
        start = len(prompt)
        if ids[:start] != prompt:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))
            start = sum(1 for _ in same)
            yield "boundary_moves", self.tokenizer.decode(prompt[start:])
        if start == len(ids):
            yield "fully_masked", self.tokenizer.decode(prompt[-10:])
        yield from self._length_faults(start, len(ids))

    def _chat_faults(self, row: Row) -> Iterator[Fault]:
        try:
            if "messages" not in row:
                prompt = self._render(row["prompt"], add_generation_prompt=True)
                both = self._render(row["prompt"] + row["completion"])
                yield from self._pair_faults(prompt, both)
                return
            messages, start = row["messages"], 0
            length = len(self._render(messages))
            asked = list(takewhile(lambda message: message["role"] != "assistant", messages))
            if length > self.max_length and 0 < len(asked) < len(messages):
                start = len(self._render(asked, add_generation_prompt=True))
            yield from self._length_faults(start, length)
        except Exception as error:  # a template may raise anything, and that is the finding
            yield "template_fails", f"{type(error).__name__}: {error}"

    def _ids_faults(self, row: Row) -> Iterator[Fault]:
        """Yield the faults of a row that is tokenised already; needs no tokenizer."""
        ids = row["input_ids"]
        given = {n: v for n, v in row.items() if v is not MISSING and (v is not None or v is ids)}
        if not all(_are_ints(v) and len(v) == len(ids) for v in given.values()):
            yield "wrong_type", {name: type(v).__name__ for name, v in given.items()}
            return
        if not ids:
            yield "empty_value", ids
            return
        vocabulary = len(self.tokenizer) if self.tokenizer else float("inf")
        labels = given.get("labels")
        masks = [given[name] for name in ("completion_mask", "assistant_masks") if name in given]
        if labels is None:
            labels = [i if all(m) else IGNORED for i, *m in zip(ids, *masks, strict=True)]
        if odd := [i for i in ids if not 0 <= i < vocabulary]:
            yield "token_out_of_range", odd[0]
        if odd := [i for i in labels if i != IGNORED and not 0 <= i < vocabulary]:
            yield "label_out_of_range", odd[0]
        learned = [place for place, label in enumerate(labels) if label != IGNORED]
        if not learned:
            yield "fully_masked", labels
        yield from self._length_faults(learned[0] if learned else 0, len(ids))


def _are_ints(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
