"""The faults that only tokens show: lengths, truncation, masks, the boundary, the vocabulary.

Rows are tokenised as SFTTrainer does it: the end-of-sequence token is appended to text and to
completions that do not end in it, and the completion begins where the tokens of the prompt alone
and those of prompt and completion together part. Chats are rendered once a row, and the rendering
is both tokenised and compared with the messages. Of many rows that are alike, some are looked at.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

from course_utils.tokenizer_setup import first_token_differs
from preflight.dataset_check.forms import Format, Row
from preflight.dataset_check.rendering import SANITIZED, Messages, Renderer, settings
from preflight.dataset_check.rows import Fault
from preflight.dataset_check.sampling import Ends, Sample, Shape, encoded, shape_of
from preflight.dataset_check.token_ids import ids_faults, length_faults
from preflight.dataset_check.words import WordFaults, dates_in

BATCH = 500  # rows tokenised at once
CHATS = 50  # of chats, which are longer and kept as text, too
OF_BOUNDARY = ("boundary_moves", "fully_masked")


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


def ended(text: str, eos: str) -> str:
    """Return a text with the end-of-sequence token, which trainers append where it is not there."""
    return text if text.endswith(eos) else text + eos


@dataclass
class _Chat:
    """The messages of a row, and what became of them."""

    messages: Messages
    prompt: Messages | None  # those before the completion, if it has one
    options: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    length: int = 0  # of the messages, in bytes
    looked_at: bool = True
    text: str = ""
    ids: list[int] | None = None
    error: Exception | None = None


class TokenFaults:
    """Tokenises rows of one format, a batch at a time, and says what is wrong with each.

    `sample` says which rows are looked at, and counts the others.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None,
        form: Format,
        renderer: Renderer,
        every_row: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length or float("inf")
        self.form = form
        self.renderer = renderer
        # A tokenizer is slow to say these.
        self._bos, self._eos = (
            getattr(tokenizer, f"{n}_token", None) or "" for n in ("bos", "eos")
        )
        self._bos_id = getattr(tokenizer, "bos_token_id", None)
        self.words = WordFaults(renderer)
        self.sample = Sample(self.max_length, every_row)
        self._ends = Ends(self._tokenise)

    def of(self, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, list[Fault]]]:
        """Yield the number and the faults of each row.

        Rows come with their numbers, and as the columns that the format extracts.
        """
        while batch := [*islice(rows, BATCH)]:
            numbers, columns = zip(*batch, strict=True)
            yield from zip(numbers, self._batch_faults(columns), strict=True)

    def _batch_faults(self, rows: Sequence[Row]) -> Iterator[list[Fault]]:
        if self.form.target == "tokens":
            known = len(self.tokenizer) if self.tokenizer else float("inf")
            yield from (list(ids_faults(row, known, self.max_length)) for row in rows)
        elif self.tokenizer is None or (self.form.chat and not self.renderer.template):
            yield from ([] for _ in rows)
        elif self.form.target == "prompt":
            yield from ([*self._prompt_faults(row["prompt"])] for row in rows)
        elif self.form.chat:
            for start in range(0, len(rows), CHATS):
                chats = [self._chat(row) for row in rows[start : start + CHATS]]
                self._render([chat for chat in chats if chat.looked_at])
                yield from map(self._chat_faults, chats)
        elif self.form.target == "text":
            yield from self._text_faults([row["text"] for row in rows])
        else:
            yield from self._pairs_faults(rows)

    def _prompt_faults(self, prompt: Any) -> Iterator[Fault]:
        """Yield the faults of a prompt that the model is to answer in training."""
        if isinstance(prompt, str):
            ids = self._tokenise([prompt])[0]
            yield from self._doubled(prompt, ids)
        else:
            options = {"add_generation_prompt": True}
            try:
                text = self.renderer.text(prompt, options)
                ids = self.renderer.tokens([text])[0]
            except Exception as error:  # a template may raise anything, and that is the finding
                yield from self.words.of_refused(prompt, options, error)
                return
            yield from self.words.of(prompt, options, text)
        if len(ids) > self.max_length:
            yield "too_long", len(ids)

    def _text_faults(self, texts: list[str]) -> Iterator[list[Fault]]:
        whole = [ended(text, self._eos) for text in texts]
        tokens = self._tokens_of(whole, [False] * len(texts))
        for text, ids in zip(texts, tokens, strict=True):
            yield [*length_faults(0, len(ids), self.max_length), *self._doubled(text, ids)]

    def _pairs_faults(self, rows: Sequence[Row]) -> Iterator[list[Fault]]:
        pairs = [(row["prompt"], ended(row["completion"], self._eos)) for row in rows]
        apart = self._ends.apart(pairs)
        doubts = [not (one and self._ends.trusted) for one in apart]
        together = self._tokens_of([prompt + answer for prompt, answer in pairs], doubts)
        looked_at = zip(pairs, together, strict=True)
        alone = iter(self._tokenise([prompt for (prompt, _), ids in looked_at if ids]))
        for row, ids, one in zip(rows, together, apart, strict=True):
            own = [*self._pair_faults(next(alone), ids)] if ids else []
            self._ends.trusted &= not (one and any(code in OF_BOUNDARY for code, _ in own))
            yield [*own, *self._doubled(row["completion"], ids), *self._written_out(row)]

    def _tokens_of(self, texts: list[str], doubts: Sequence[bool]) -> list[list[int]]:
        """Return the tokens of the texts that are looked at, as those in doubt are; else none."""
        looked_at = []
        for text, doubt in zip(texts, doubts, strict=True):
            second = bool(self._bos) and text.lstrip().startswith(self._bos)
            looked_at.append(self.sample.looks(text, doubt=doubt or second))
        chosen = zip(texts, looked_at, strict=True)
        found = iter(self._tokenise([text for text, look in chosen if look]))
        tokens = [next(found) if look else [] for look in looked_at]
        for text, ids in zip(texts, tokens, strict=True):
            if ids:
                self.sample.counted(text, len(ids))
        return tokens

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: without the tokenizer's warning about long rows, which the findings count.
        return self.tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]

    def _doubled(self, text: str, ids: list[int]) -> Iterator[Fault]:
        """Yield faults of text that a chat template has been over: tokens come once more."""
        if self._bos_id is not None and ids[:2] == [self._bos_id] * 2:
            yield "second_bos", self.tokenizer.decode(ids[:10])
        eos = self._eos
        if eos and text.rstrip().endswith(eos) and not text.endswith(eos):
            yield "second_end", text[-40:] + eos

    def _written_out(self, row: Row) -> Iterator[Fault]:
        """Yield a fault if the completion holds a control token, though its prompt has none."""
        # At its very end, it ends the answer.
        inside = row["completion"].rstrip().removesuffix(self._eos)
        token = self.renderer.control_token(inside)
        if token and not self.renderer.control_token(row["prompt"]):
            yield "special_token_in_text", {"token": token}

    def _pair_faults(self, prompt: list[int], ids: list[int]) -> Iterator[Fault]:
        """Yield faults of a prompt's tokens, and of those of prompt and completion together."""
        start = len(prompt)
        if ids[:start] != prompt:
            start = _shared(prompt, ids)
            yield "boundary_moves", self.tokenizer.decode(prompt[start:])
        if start == len(ids):
            yield "fully_masked", self.tokenizer.decode(prompt[-10:])
        yield from length_faults(start, len(ids), self.max_length)

    def _chat(self, row: Row) -> _Chat:
        """Return the messages of a row, and whether they are looked at."""
        parts = [row[name] for name in ("messages", "prompt", "completion") if name in row]
        if not all(isinstance(part, list) for part in parts):
            return _Chat([], [])  # empty text, which is a finding already
        chat = _Chat([message for part in parts for message in part], row.get("prompt"))
        try:
            chat.options = settings(row)
        except Exception as error:  # SFTTrainer stops at them, and that is the finding
            chat.error = error
        plain = [*chat.options] == ["tools"] and not chat.options["tools"]
        shape, texts = shape_of(chat.messages, self.renderer.marks) if plain else (None, "")
        doubt = shape is None or self.renderer.control_token(texts) is not None
        if not doubt:
            begin = str(parts[-1][0].get("content"))[:1] if chat.prompt else ""
            begin = "" if begin.isalnum() else begin  # else it may join the token before it
            key = shape, chat.options["tools"] is None, len(chat.prompt or ()), begin
            chat.shape, chat.length = self.sample.shape(key), len(encoded(texts))
        chat.looked_at = self.sample.looks(texts, chat.shape, doubt)
        return chat

    def _render(self, chats: list[_Chat]) -> None:
        """Render chats, and tokenise them together, which is quicker; or each alone, later."""
        for chat in chats:
            try:
                if chat.messages and not chat.error:
                    chat.text = self.renderer.text(chat.messages, chat.options)
            except Exception as error:  # a template may raise anything, and that is the finding
                chat.error = error
        together = [chat for chat in chats if chat.text and not chat.options.get(SANITIZED)]
        if self.renderer.answers_only or not together:
            return
        with suppress(Exception):  # which text it was shows when each is tokenised alone
            tokens = self.renderer.tokens([chat.text for chat in together])
            for chat, ids in zip(together, tokens, strict=True):
                chat.ids = ids

    def _chat_faults(self, chat: _Chat) -> list[Fault]:
        if not chat.looked_at and chat.shape:
            return [(code, None) for code in chat.shape.codes]
        faults = [*self._rendered_faults(chat)]
        if chat.ids:
            self.sample.counted(chat.text, len(chat.ids))
        if chat.shape:
            more = len(encoded(chat.text)) - chat.length
            chat.shape.note((code for code, _ in faults), more)
        return faults

    def _rendered_faults(self, chat: _Chat) -> Iterator[Fault]:
        messages, options = chat.messages, chat.options
        if not messages:
            return
        try:
            if chat.error:
                raise chat.error
            if self.renderer.answers_only:
                yield from self._answer_faults(chat)
                return
            chat.ids = chat.ids or self._chat_tokens(messages, options, chat.text)
            if chat.prompt:
                yield from self._pair_faults(self._asked(chat.prompt, options)[1], chat.ids)
            else:
                long = len(chat.ids) > self.max_length
                start = self._start(messages, options) if long else 0
                yield from length_faults(start, len(chat.ids), self.max_length)
        except Exception as error:
            yield from self.words.of_refused(messages, options, error)
            return
        yield from self.words.of(messages, options, chat.text)
        yield from dates_in(chat.text, self.renderer.date_formats, messages)

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

    def _answer_faults(self, chat: _Chat) -> Iterator[Fault]:
        """Yield the faults of messages of which only the answers are trained on."""
        messages, options, in_use = chat.messages, chat.options, chat.text
        text, chat.ids, learned = self.renderer.trained(messages, options)
        chat.text = text
        if learned:
            yield from length_faults(learned[0][0], len(chat.ids), self.max_length)
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


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how long the beginning is that both have in common."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
