"""Renders messages as SFTTrainer does, and says why a chat template refuses them.

SFTTrainer gives the template the row's own `tools` (a list, or its JSON) and what stands in
`chat_template_kwargs`. With `assistant_only_loss` it takes another template of TRL's where the
tokenizer's own does not mark what the assistant says.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import Any

from preflight.dataset_check.forms import SETTINGS, Row
from preflight.dataset_check.rows import Fault

Messages = list[Row]
Change = tuple[str, Callable[[Messages], Messages]]  # the code of a rule, and what it changes

SANITIZED = "sanitize_control_tokens"  # apply_chat_template's; it takes it only with tokenize=True
# Without the tokenizer's warning about long rows, which the findings count.
QUIET = {"verbose": False, "return_attention_mask": False}
OTHER_KEYS = ("content", "value", "input_text", "output_text")  # of a part's text
MARKUP = re.compile(r"<[|｜].*[|｜]>", re.S)  # a turn's token, where it is not marked as special
# What templates look for in texts.
MARKUP_OF_TEXT = re.compile(r"</?[^\s<>\"'{}]+>|\[/?[A-Z_]{2,}\]|/no_?think\b")
# Tokens that data may well hold: where a picture stands, reasoning, calls.
WANTED = re.compile("image|img|video|vision|audio|think|tool", re.I)
DATE_FORMAT = re.compile(r"""strftime_now\(\s*["']([^"']+)["']""")


def tools_of(row: Row) -> Any:
    """Return a row's tools, read where they are JSON text; a text that is none stays as it is."""
    tools = row.get(SETTINGS[0])
    return _read(tools) if isinstance(tools, str) else tools


@lru_cache(maxsize=100)  # many rows have the same
def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def settings(row: Row) -> dict[str, Any]:
    """Return what SFTTrainer gives the template of this row, next to its messages.

    The row's tools are those of `tools_of`; what is still text then, SFTTrainer stops at.

    Raises:
        TypeError, ValueError: if SFTTrainer would stop at them.
    """
    tools, options = (row.get(name) for name in SETTINGS)
    if SETTINGS[1] in row and options is None:  # as datasets fills in what only other rows have
        raise TypeError("chat_template_kwargs is None; give each row a dict with the same keys")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(options or {})}


class Renderer:
    """Renders messages with a tokenizer's chat template, or with the one for training."""

    # TRL is imported where it is needed, since that takes seconds.
    def __init__(self, processor: Any, tokenizer: Any, assistant_only_loss: bool) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.of_parts = processor is not tokenizer  # with a processor text becomes a list of parts
        self.assistant_only_loss = assistant_only_loss
        template = getattr(processor, "chat_template", None) or ""
        template = template or getattr(tokenizer, "chat_template", None) or ""
        if isinstance(template, dict):
            template = template.get("default", "")
        self.template: str = template
        self.training_template = self._training_template() if assistant_only_loss else template
        # Without one SFTTrainer stops; the rows are then looked at as it would else train on them.
        self.answers_only = assistant_only_loss and bool(self.training_template)
        self._control = self._control_tokens() if tokenizer is not None else ()
        self.marks = (*dict.fromkeys(MARKUP_OF_TEXT.findall(template + self.training_template)),)
        self.date_formats = DATE_FORMAT.findall(template)

    def _training_template(self) -> str:
        """Return the template that SFTTrainer takes for training on answers; "" if it has none."""
        from trl.chat_template_utils import get_training_chat_template, has_generation_markers

        if not self.template or has_generation_markers(self.template):
            return self.template
        try:
            return get_training_chat_template(self.processor) or self.template
        except Exception:  # it tries the template, which may raise anything
            return ""

    def training_faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the template for training on answers only."""
        from trl.chat_template_utils import is_chat_template_stop_token_trained

        if not self.training_template:
            yield "no_training_template", self.template[:60]
            return
        try:
            template = {"chat_template": self.training_template}
            if not is_chat_template_stop_token_trained(self.processor, **template):
                yield "stop_not_learned", None
        except Exception as error:  # where SFTTrainer would stop, too
            yield "template_fails", f"{type(error).__name__}: {error}"

    def control_token(self, text: str) -> str | None:
        """Return a token of the tokenizer or the template that is written out in a text, if any."""
        return next((token for token in self._control if token in text), None)

    def _control_tokens(self) -> tuple[str, ...]:
        named = {str(token) for token in self.tokenizer.special_tokens_map.values()}
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        texts = [t.content for t in added if t.special or MARKUP.fullmatch(t.content)]
        used = [text for text in texts if text in named or text in self.template]
        return tuple(text for text in used if text.strip() and not WANTED.search(text))

    def text(self, messages: Messages, options: dict[str, Any]) -> str:
        """Return the rendering in use."""
        return self._apply(messages, options, tokenize=False)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each rendering."""
        return self.tokenizer(texts, add_special_tokens=False, **QUIET)["input_ids"]

    def sanitized_tokens(self, messages: Messages, options: dict[str, Any]) -> list[int]:
        """Return the tokens of messages in which control tokens that are written out stay text."""
        how = {"tokenize": True, "return_dict": True, "tokenizer_kwargs": QUIET}
        return self._apply(messages, options, **how)["input_ids"]

    def trained(self, messages: Messages, options: dict[str, Any]) -> tuple[str, list[int], Any]:
        """Return the rendering for training on answers only, its tokens, and what is learned.

        What is learned is the place of each such token: its number and its characters.
        """
        template = {"chat_template": self.training_template}
        text = self._apply(messages, template | options, tokenize=False)
        done = self._apply(
            messages,
            template | options,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False, "return_offsets_mapping": True},
        )
        marks = enumerate(zip(done["assistant_masks"], done["offset_mapping"], strict=True))
        learned = [(number, *span) for number, (mark, span) in marks if mark]
        return text, done["input_ids"], learned

    def _apply(self, messages: Messages, options: dict[str, Any], **how: Any) -> Any:
        if not how["tokenize"]:
            options = {k: v for k, v in options.items() if k != SANITIZED}
        if self.of_parts:
            from trl.data_utils import prepare_multimodal_messages

            how = {"chat_template": self.template} | how
            messages = prepare_multimodal_messages(messages, [None] * _pictures(messages))
        return self.tokenizer.apply_chat_template(messages, **{**how, **options})

    def shows(self, messages: Messages, options: dict[str, Any], text: str) -> bool:
        """True if the rendering of these messages holds the text; False if they are refused."""
        try:
            return text in self.text(messages, options)
        except Exception:  # a template may raise anything
            return False

    def causes(self, messages: Messages, options: dict[str, Any]) -> list[Change]:
        """Return what has to be changed before the template takes these messages, if anything."""
        for last, arguments in product(([], HEAVY), (_arguments_as_dict, _arguments_as_text)):
            changes = [("arguments_form", arguments), *CHANGES, *last]
            needed = [one for one in changes if one[1](messages) != messages]
            if not self._accepts(messages, options, needed):
                continue
            for one in needed[::-1]:  # the later ones take more away
                others = [other for other in needed if other is not one]
                if self._accepts(messages, options, others):
                    needed = others
            return needed
        return []

    def _accepts(self, messages: Messages, options: dict[str, Any], changes: list[Change]) -> bool:
        return self.shows(changed(messages, changes), options, "")


def _pictures(messages: Messages) -> int:
    contents = (message.get("content") for message in messages)
    found = (part for content in contents if isinstance(content, list) for part in content)
    return sum(isinstance(part, dict) and part.get("type") == "image" for part in found)


def part_texts(content: Any) -> Iterator[str]:
    """Yield the texts of content that is a list of parts, under whatever key they stand."""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
        elif isinstance(part, dict) and "text" in str(part.get("type", "text")):
            yield from (v for k, v in part.items() if k in OTHER_KEYS and isinstance(v, str))


def calls_of(message: Row) -> list[Row]:
    """Return the tool calls of a message, those that are no dicts left out."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def called(call: Row) -> Row:
    """Return the part of a tool call that holds the name and the arguments."""
    return call["function"] if isinstance(call.get("function"), dict) else call


def as_dict(arguments: Any) -> Any:
    """Return the dict that a JSON text stands for, and anything else as it is."""
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        return arguments
    return read if isinstance(read, dict) else arguments


def joined(messages: Messages) -> Messages:
    """Return messages in which the parts of the content are one text."""
    return [
        {**m, "content": "".join(part_texts(m["content"]))}
        if isinstance(m.get("content"), list)
        else m
        for m in messages
    ]


def changed(messages: Messages, changes: list[Change]) -> Messages:
    """Return messages with all of the changes."""
    for _, change in changes:
        messages = change(messages)
    return messages


def _filled(messages: Messages) -> Messages:
    return [{**m, "content": ""} if m.get("content") is None else m for m in messages]


def _with_calls(messages: Messages, change: Callable[[Row], Row]) -> Messages:
    return [{**m, "tool_calls": [*map(change, calls)]} if (calls := calls_of(m)) else m
            for m in messages]  # fmt: skip


def _with_arguments(messages: Messages, change: Callable[[Any], Any]) -> Messages:
    def with_new(call: Row) -> Row:
        function = called(call)
        new = {**function, "arguments": change(function.get("arguments"))}
        return {**call, "function": new} if function is not call else new

    return _with_calls(messages, with_new)


def _arguments_as_dict(messages: Messages) -> Messages:
    return _with_arguments(messages, as_dict)


def _arguments_as_text(messages: Messages) -> Messages:
    return _with_arguments(
        messages, lambda value: json.dumps(value) if isinstance(value, dict) else value
    )


def _full_calls(messages: Messages) -> Messages:
    return _with_calls(messages, lambda call: {"type": "function", "function": called(call)} | call)


def _one_call_each(messages: Messages) -> Messages:
    return [
        {**m, "tool_calls": [call]} if call else m
        for m in messages
        for call in (calls_of(m) or [None])
    ]


def _without_calls(messages: Messages) -> Messages:
    return [m for m in messages if m.get("role") != "tool" and not calls_of(m)]


def _developer_as_system(messages: Messages) -> Messages:
    return [{**m, "role": "system"} if m.get("role") == "developer" else m for m in messages]


def _without_system(messages: Messages) -> Messages:
    return [m for m in messages if m.get("role") not in ("system", "developer")]


# Each changes one thing of messages, which is to blame if the template takes them only then; the
# later ones change more.
CHANGES: tuple[Change, ...] = (
    ("parts_not_read", joined),
    ("content_missing", _filled),
    ("role_not_read", _developer_as_system),
    ("system_refused", _without_system),
    ("call_form", _full_calls),
    ("several_calls", _one_call_each),
)
HEAVY: list[Change] = [("calls_lost", _without_calls)]
