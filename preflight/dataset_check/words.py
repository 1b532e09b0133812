"""Which words of a row's messages do not stand in its rendering, and why.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from preflight.dataset_check.forms import Row
from preflight.dataset_check.rendering import (
    SANITIZED,
    Messages,
    Renderer,
    as_dict,
    called,
    calls_of,
    changed,
    joined,
    part_texts,
)
from preflight.dataset_check.rows import Fault

REASONING = ("reasoning_content", "thinking", "reasoning")
THOUGHT = re.compile(r"</?think>")
INDENT = re.compile(r"(?: {2,}|\t)[ \t]*(?=\S)")
TRIED = 100  # words of a long text that are looked for
QUOTED = 12  # words of a text that are quoted

Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A text of a message: which message it is of, and what it is there."""

    text: str
    place: int
    kind: str  # content, part, reasoning, thought, call, function_call or name


def pieces_of(messages: Messages) -> list[Piece]:
    """Return the texts of messages that a rendering should hold, in the usual order."""
    return [
        Piece(text.strip(), place, kind)
        for place, message in enumerate(messages)
        for kind, text in _texts(message)
        if isinstance(text, str) and text.strip()
    ]


def _texts(message: Row) -> Iterable[tuple[str, Any]]:
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):  # most are so, and quickly done
        return (("content", content),)
    return _all_texts(message)


def _all_texts(message: Row) -> Iterator[tuple[str, Any]]:
    if message.get("role") in ("system", "user", "assistant"):  # a tool is named by its call
        yield "name", message.get("name")
    yield "reasoning", next((message[key] for key in REASONING if message.get(key)), None)
    yield "content", message.get("content")
    yield from (("part", text) for text in part_texts(message.get("content")))
    for call in calls_of(message):
        yield from (("call", text) for text in _call_texts(called(call)))
    if isinstance(old := message.get("function_call"), dict):
        yield from (("function_call", text) for text in _call_texts(old))


def _call_texts(function: Row) -> Iterator[Any]:
    yield function.get("name")
    yield from _leaves(function.get("arguments"))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if item is not None:  # datasets fills in keys that only other rows have
                yield str(key)
                yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def find(pieces: list[Piece], text: str) -> tuple[dict[Piece, Span], list[Piece], str]:
    """Return where pieces stand in a text; if any do not, those and what else the text holds."""
    found: dict[Piece, Span] = {}
    end = 0
    for piece in pieces:
        start = text.find(piece.text, end)
        if start < 0:
            return _search(pieces, text)
        end = start + len(piece.text)
        found[piece] = start, end
    return found, [], ""


def _search(pieces: list[Piece], text: str) -> tuple[dict[Piece, Span], list[Piece], str]:
    """Do the same where some are missing or in another order: a long one is no chance hit."""
    found: dict[Piece, Span] = {}
    missing = []
    waiting = [*pieces]
    while waiting:
        waiting.sort(key=lambda piece: len(piece.text))
        piece = waiting.pop()
        span = _place(piece.text, text)
        if span:
            found[piece] = span
            text = text[: span[0]] + "\n" * (span[1] - span[0]) + text[span[1] :]
        elif parts := _split(piece):
            waiting += parts
        else:
            missing.append(piece)
    return found, missing, text


def _split(piece: Piece) -> list[Piece]:
    """Return the pieces that a template may make of one."""
    parts: list[tuple[str, str]] = []
    if piece.kind == "content" and "</think>" in piece.text:
        thought, _, answer = piece.text.rpartition("</think>")
        parts = [(THOUGHT.sub(" ", thought), "thought"), (answer, "content")]
    elif piece.kind in ("call", "function_call"):
        arguments = as_dict(piece.text)
        parts = [(text, piece.kind) for text in _leaves(arguments) if text != piece.text]
    return [Piece(text.strip(), piece.place, kind) for text, kind in parts if text.strip()]


def _place(piece: str, text: str) -> Span | None:
    for form in (piece, *(json.dumps(piece, ensure_ascii=ascii)[1:-1] for ascii in (False, True))):
        if (start := text.find(form)) >= 0:
            return start, start + len(form)
    words = piece.split()
    if len(words) > 1 and words[0] in text and words[-1] in text:
        found = re.search(r"\s+".join(map(re.escape, words)), text)
        return found.span() if found else None
    return None


def absent_words(piece: Piece, text: str) -> str:
    """Return the first words of a piece from one on that the text does not hold, or ""."""
    words = piece.text.split()
    step = -(-len(words) // TRIED)
    first = next((i for i in range(0, len(words), step) if words[i] not in text), None)
    return "" if first is None else " ".join(words[first : first + QUOTED])


class WordFaults:
    """Compares the messages of a row with their rendering."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._tools_shown: dict[str, bool] = {}  # by the role of the first message

    def of(
        self, messages: Messages, options: dict[str, Any], text: str, learned: Any = None
    ) -> Iterator[Fault]:
        """Yield what the rendering `text` of messages lacks or changes.

        `learned` holds the places of tokens under the loss, if not all are.
        """
        found, missing, rest = find(pieces_of(messages), text)
        yield from self._lost(messages, options, missing, rest)
        yield from self._other_form(messages, text)
        yield from self._indents(messages, found, text)
        yield from self._tools(messages, options, text)
        if not options.get(SANITIZED):
            yield from self._control_tokens(messages)
        if messages[-1].get("role") == "assistant":
            last = [span for piece, span in found.items() if piece.place == len(messages) - 1]
            if last and not text[max(end for _, end in last) :].strip():
                yield "no_end", text[-40:]
        if learned is not None:
            yield from self._not_learned(messages, found, learned)

    def of_refused(
        self, messages: Messages, options: dict[str, Any], error: Exception
    ) -> Iterator[Fault]:
        """Yield why the template refuses messages, and what it would lack if it did not."""
        example = f"{type(error).__name__}: {error}"
        causes = self.renderer.causes(messages, options)
        # If it takes them as they are, it was the prompt alone that it refused.
        for code, _ in causes or [("template_fails", None)]:
            yield code, example
        if causes:
            messages = changed(messages, causes)
            yield from self.of(messages, options, self.renderer.text(messages, options))

    def _lost(
        self, messages: Messages, options: dict[str, Any], missing: list[Piece], rest: str
    ) -> Iterator[Fault]:
        told = set()
        for piece in sorted(missing, key=lambda piece: piece.place):
            role = messages[piece.place].get("role")
            if (piece.kind, role) in told or not (words := absent_words(piece, rest)):
                continue
            told.add((piece.kind, role))
            code = self._cause(messages, options, piece)
            yield code, {"message": piece.place, "role": role, "lost": words}

    def _cause(self, messages: Messages, options: dict[str, Any], piece: Piece) -> str:
        """Return the rule that a missing piece breaks: what brings it back if it is changed."""
        by_kind = {"call": "calls_lost", "function_call": "calls_lost", "name": "name_lost"}
        if piece.kind in by_kind:
            return by_kind[piece.kind]
        place, message = piece.place, messages[piece.place]
        if piece.kind in ("thought", "reasoning"):
            # Most templates keep the last answer's only.
            ends_here = self.renderer.shows(messages[: place + 1], options, piece.text)
            return "thinking_lost" if piece.kind == "thought" or ends_here else "reasoning_lost"

        def shown(**changes: Any) -> bool:
            others = [*messages[:place], message | changes, *messages[place + 1 :]]
            return self.renderer.shows(joined(others), options, piece.text)

        if piece.kind == "part" and shown():
            return "parts_not_read"
        if calls_of(message):
            return "call_text_lost"
        if shown(role="system" if message["role"] == "developer" else "user"):
            return "role_not_read"
        return "text_lost"

    def _other_form(self, messages: Messages, text: str) -> Iterator[Fault]:
        """Yield where a list or a dict was written as code, in which all of its words stand."""
        for place, message in enumerate(messages):
            content = message.get("content")
            if isinstance(content, list):
                dicts = [part for part in content if isinstance(part, dict)]
                forms = [repr(content), *map(repr, dicts)]
                if message.get("role") != "tool":  # where JSON is a usual form
                    forms += [json.dumps(p, ensure_ascii=False, default=str) for p in dicts]
                if written := next((form for form in forms if form in text), None):
                    yield "parts_not_read", {"message": place, "written": written}
            for call in calls_of(message):
                arguments = called(call).get("arguments")
                forms = [repr(arguments)] if arguments and isinstance(arguments, dict) else []
                if as_dict(arguments) is not arguments:
                    forms = [json.dumps(arguments, ensure_ascii=a) for a in (False, True)]
                if written := next((form for form in forms if form in text), None):
                    yield "arguments_form", {"message": place, "written": written}

    def _indents(self, messages: Messages, found: dict[Piece, Span], text: str) -> Iterator[Fault]:
        for piece, (start, _) in found.items():
            message = messages[piece.place]
            if piece.kind != "content" or message.get("role") != "assistant":
                continue
            indent = INDENT.match(message["content"].lstrip("\n"))
            if indent and not text.endswith(indent[0], 0, start):
                yield "indent_lost", {"message": piece.place, "begins": indent[0] + piece.text[:40]}
                return

    def _tools(self, messages: Messages, options: dict[str, Any], text: str) -> Iterator[Fault]:
        """Yield a fault if the template writes the same without the row's tools."""
        first = messages[0].get("role")  # in some templates tools go with it
        if options.get("tools") and first not in self._tools_shown:
            without = self.renderer.text(messages, options | {"tools": None})
            self._tools_shown[first] = without != text
        if options.get("tools") and not self._tools_shown[first]:
            yield "tools_lost", options["tools"][0]

    def _control_tokens(self, messages: Messages) -> Iterator[Fault]:
        for place, message in enumerate(messages):
            for text in (message.get("content"), *part_texts(message.get("content"))):
                if isinstance(text, str) and (token := self.renderer.control_token(text)):
                    yield "special_token_in_text", {"message": place, "token": token}
                    return

    def _not_learned(
        self, messages: Messages, found: dict[Piece, Span], learned: list[tuple[int, int, int]]
    ) -> Iterator[Fault]:
        for piece, (start, end) in found.items():
            message = messages[piece.place]
            answer = piece.kind in ("content", "part") and message.get("role") == "assistant"
            if answer and not any(a < end and b > start for _, a, b in learned):
                yield "answer_not_learned", {"message": piece.place, "content": piece.text[:60]}
                return


def dates_in(text: str, formats: Iterable[str], messages: Messages) -> Iterator[Fault]:
    """Yield a fault if the rendering holds today's date, which no message holds."""
    for written in map(datetime.now().strftime, formats):
        if written in text and written not in str(messages):
            yield "date_in_rows", written
            return
