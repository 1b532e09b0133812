"""The faults that only tokens show: lengths, truncation, masks, the boundary, the vocabulary.

Rows are tokenised as SFTTrainer does it: the end-of-sequence token is appended to text and to
completions that do not end in it, and the completion begins where the tokens of the prompt alone
and those of prompt and completion together part. Chats are rendered once a row, and the rendering
is both tokenised and compared with the messages.

Used by lessons: 01, 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

from preflight.dataset_check.forms import MISSING, Format, Row
from preflight.dataset_check.rendering import SANITIZED, Messages, Renderer, settings
from preflight.dataset_check.rows import Fault
from preflight.dataset_check.versions import first_token_differs
from preflight.dataset_check.words import WordFaults, dates_in

BATCH = 500  # rows tokenised at once
CHATS = 50  # of chats, which are longer and kept as text, too
IGNORED = -100  # the label that the loss skips


def tokenizer_faults(renderer: Renderer, form: Format) -> Iterator[Fault]:
    """Yield what is wrong with the tokenizer, or with its template, for data of this form."""
    tokenizer = renderer.tokenizer
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        yield "pad_is_eos", {"pad": tokenizer.pad_token, "eos": tokenizer.eos_token}
    if form.chat and not renderer.template:
        yield "no_chat_template", None
    elif renderer.assistant_only_loss:
        yield from renderer.training_faults() if form.chat else [("answers_need_chat", form.name)]
    if form.target in ("text", "prompt-completion") and not form.chat and not tokenizer.eos_token:
        yield "no_eos", None
    if not form.chat and form.target != "tokens" and (found := first_token_differs(tokenizer)):
        yield "bos_by_version", found


@dataclass
class _Chat:
    """The messages of a row, and what became of them."""

    messages: Messages
    prompt: Messages | None  # those before the completion, if it has one
    options: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    ids: list[int] | None = None
    error: Exception | None = None


class TokenFaults:
    """Tokenises rows of one format, a batch at a time, and says what is wrong with each."""

    def __init__(
        self, tokenizer: Any, max_length: int | None, form: Format, renderer: Renderer
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length or float("inf")
        self.form = form
        self.renderer = renderer
        self.words = WordFaults(renderer)

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
        elif self.tokenizer is None or (self.form.chat and not self.renderer.template):
            yield from ([] for _ in rows)
        elif self.form.chat:
            for start in range(0, len(rows), CHATS):
                chats = [self._rendered(row) for row in rows[start : start + CHATS]]
                self._tokenise_chats(chats)
                yield from (list(self._chat_faults(chat)) for chat in chats)
        elif self.form.target == "text":
            texts = [row["text"] for row in rows]
            for text, ids in zip(texts, self._tokenise([*map(self._ended, texts)]), strict=True):
                yield [*self._length_faults(0, len(ids)), *self._doubled(text, ids)]
        else:
            prompts = self._tokenise([row["prompt"] for row in rows])
            pairs = self._tokenise([row["prompt"] + self._ended(row["completion"]) for row in rows])
            for row, prompt, ids in zip(rows, prompts, pairs, strict=True):
                answer = self._doubled(row["completion"], ids)
                yield [*self._pair_faults(prompt, ids), *answer, *self._written_out(row)]

    def _ended(self, text: str) -> str:
        eos = self.tokenizer.eos_token or ""
        return text if text.endswith(eos) else text + eos

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: without the tokenizer's warning about long rows, which the findings count.
        return self.tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]

    def _doubled(self, text: str, ids: list[int]) -> Iterator[Fault]:
        """Yield faults of text that a chat template has been over: tokens come once more."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token
        if bos is not None and ids[:2] == [bos, bos]:
            yield "second_bos", self.tokenizer.decode(ids[:10])
        if eos and text.rstrip().endswith(eos) and not text.endswith(eos):
            yield "second_end", text[-40:] + eos

    def _written_out(self, row: Row) -> Iterator[Fault]:
        """Yield a fault if the completion holds a control token, though its prompt has none."""
        # At its very end, it ends the answer.
        inside = row["completion"].rstrip().removesuffix(self.tokenizer.eos_token or "")
        token = self.renderer.control_token(inside)
        if token and not self.renderer.control_token(row["prompt"]):
            yield "special_token_in_text", {"token": token}

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
            start = _shared(prompt, ids)
            yield "boundary_moves", self.tokenizer.decode(prompt[start:])
        if start == len(ids):
            yield "fully_masked", self.tokenizer.decode(prompt[-10:])
        yield from self._length_faults(start, len(ids))

    def _rendered(self, row: Row) -> _Chat:
        parts = [row[name] for name in ("messages", "prompt", "completion") if name in row]
        if not all(isinstance(part, list) for part in parts):
            return _Chat([], [])  # empty text, which is a finding already
        chat = _Chat([message for part in parts for message in part], row.get("prompt"))
        try:
            chat.options = settings(row)
            chat.text = self.renderer.text(chat.messages, chat.options)
        except Exception as error:  # a template may raise anything, and that is the finding
            chat.error = error
        return chat

    def _tokenise_chats(self, chats: list[_Chat]) -> None:
        """Tokenise renderings together, which is quicker; each alone where that is not possible."""
        together = [chat for chat in chats if chat.text and not chat.options.get(SANITIZED)]
        if self.renderer.answers_only or not together:
            return
        with suppress(Exception):  # which text it was shows when each is tokenised alone
            tokens = self.renderer.tokens([chat.text for chat in together])
            for chat, ids in zip(together, tokens, strict=True):
                chat.ids = ids

    def _chat_faults(self, chat: _Chat) -> Iterator[Fault]:
        messages, options, text = chat.messages, chat.options, chat.text
        if not messages:
            return
        try:
            if chat.error:
                raise chat.error
            if self.renderer.answers_only:
                yield from self._answer_faults(messages, options, text)
                return
            ids = chat.ids or self._chat_tokens(messages, options, text)
            if chat.prompt:
                yield from self._pair_faults(self._asked(chat.prompt, options)[1], ids)
            else:
                start = self._start(messages, options) if len(ids) > self.max_length else 0
                yield from self._length_faults(start, len(ids))
        except Exception as error:
            yield from self.words.of_refused(messages, options, error)
            return
        yield from self.words.of(messages, options, text)
        yield from dates_in(text, self.renderer.date_formats, messages)

    def _chat_tokens(self, messages: Messages, options: dict[str, Any], text: str) -> list[int]:
        if options.get(SANITIZED):  # tokens that are written out become others than in the text
            return self.renderer.sanitized_tokens(messages, options)
        return self.renderer.tokens([text])[0]

    def _start(self, messages: Messages, options: dict[str, Any]) -> int:
        """Return the number of tokens before the first answer, 0 if there is none."""
        asked = list(takewhile(lambda message: message["role"] != "assistant", messages))
        if not 0 < len(asked) < len(messages):
            return 0
        return len(self._asked(asked, options)[1])

    def _asked(self, messages: Messages, options: dict[str, Any]) -> tuple[str, list[int]]:
        """Return the rendering and the tokens of what stands before an answer."""
        options = options | {"add_generation_prompt": True}
        text = self.renderer.text(messages, options)
        return text, self._chat_tokens(messages, options, text)

    def _answer_faults(
        self, messages: Messages, options: dict[str, Any], in_use: str
    ) -> Iterator[Fault]:
        """Yield the faults of messages of which only the answers are trained on."""
        text, ids, learned = self.renderer.trained(messages, options)
        if learned:
            yield from self._length_faults(learned[0][0], len(ids))
        if text != in_use:
            same = _shared(text, in_use)
            begin = max(0, same - 20)
            parts = {"in training": text[begin : same + 40], "in use": in_use[begin : same + 40]}
            yield "training_template_differs", parts
        asked = list(takewhile(lambda message: message["role"] != "assistant", messages))
        if learned and 0 < len(asked) < len(messages):
            given = _shared(text, self._asked(asked, options)[0])
            header = text[learned[0][1] : given]
            if any(map(str.isalnum, header)):  # a line break does no harm
                yield "header_under_loss", header
        yield from self.words.of(messages, options, text, learned)
        yield from dates_in(text, self.renderer.date_formats, messages)

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


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how long the beginning is that both have in common."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _are_ints(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
