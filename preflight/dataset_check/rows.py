"""The faults that a row shows without a tokenizer.

Used by lessons: 01.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from math import isnan
from typing import Any

from preflight.dataset_check.forms import MISSING, Format, Row

ROLES = frozenset(["system", "developer", "user", "assistant", "tool"])
CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff"
# One search finds the rare row that needs a closer look; in ASCII, bytes are quicker.
PLAIN = bytes([*b"\t\n\r", *range(0x20, 0x7F)])
ODD = re.compile(f"[{CONTROL}\ufffd\ud800-\udfff]")
ODD_KINDS = {
    "control_character": re.compile(f"[{CONTROL}]"),
    "replacement_character": re.compile("\ufffd"),
    "bad_unicode": re.compile("[\ud800-\udfff]"),
}
CHAT_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:.*\]\s*""", re.S)
BETWEEN = " \0 "  # between texts; no space, which would count for nothing
LABEL_COLUMNS = ("label", "labels", "tags", "ner_tags", "pos_tags")
# A row with one of these cannot be tokenised.
BLOCKING = frozenset(
    "missing_column none_value wrong_type mixed_forms messages_as_text bad_unicode".split()
)
OF_PROMPTS = frozenset("unknown_role system_not_first assistant_first repeated_role".split())

Fault = tuple[str, object]  # a code of the rules and what to quote


def row_faults(columns: Row, form: Format, texts: list[str]) -> list[Fault]:
    """Return the faults of one row, given as the columns that the format extracts, and its texts.

    These are what `texts_in` returns of the columns.
    """
    faults = list(_character_faults(texts))
    if form.target == "tokens" and not columns["input_ids"]:
        faults += _value_faults(columns["input_ids"], form)
    if form.target in ("unknown", "tokens"):
        return faults
    roles: list[str] = []
    for value in columns.values():
        if not isinstance(value, list) or not value:
            faults += _value_faults(value, form)
            continue
        # Messages are looked at even where text is expected.
        broken = list(_message_faults(value))
        faults += broken
        if not any(code in BLOCKING for code, _ in broken):
            faults += [] if form.chat else [("mixed_forms", value)]
            roles += [message["role"] for message in value]
    prompt = columns.get("prompt")
    if form.target == "prompt":  # the answer is not there yet
        return faults + [fault for fault in _role_faults(roles) if fault[0] in OF_PROMPTS]
    if isinstance(prompt, str) and prompt.strip() and prompt[-1] in " \t":
        faults.append(("prompt_ends_in_space", prompt[-30:]))
    return faults + list(_role_faults(roles))


def trainable(columns: Row, faults: list[Fault]) -> bool:
    """True if the row can be tokenised, in spite of its faults."""
    blocked = faults and any(code in BLOCKING for code, _ in faults)
    return not blocked and [] not in columns.values()


def label_faults(row: Row, classes: dict[str, int], num_labels: int | None) -> Iterator[Fault]:
    """Yield a fault for each column of labels with one below 0 or not below its number of classes.

    `classes` holds the numbers that the dataset's own features give, `num_labels` is for the rest.
    """
    for name in LABEL_COLUMNS:
        value = row.get(name)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        # In a list of tags, -100 means "no label" to the loss.
        ignored = -100 if isinstance(value, list) else None
        limit = classes.get(name, num_labels) or float("inf")
        bad = [v for v in ids if type(v) is int and v != ignored and not 0 <= v < limit]
        if bad:
            yield "label_out_of_range", {name: bad[0]}


class Repeats:
    """Finds rows and prompts that came before; of those seen it keeps only hashes."""

    def __init__(self) -> None:
        # The hash, and the number of the split that had it last.
        self._rows: dict[bytes, int] = {}
        self._prompts: dict[bytes, int] = {}

    def faults(
        self, columns: Row, texts: list[str], split: int, tools: Any = None
    ) -> Iterator[Fault]:
        """Yield a fault if this row, or its prompt with another answer, came before.

        `texts` are those of the columns. The same words with other tools are another prompt.
        """
        start = texts[0] if texts else columns
        prompt = len(texts_in(_prompt(columns)))  # texts, which come first
        asked, answer = plain(texts[:prompt]), plain(texts[prompt:])
        given = plain([str(tools)]) if tools else b""
        before = _swap(self._rows, [asked, answer, given], split)
        if before is not None:
            yield ("duplicate" if before == split else "split_overlap"), start
            return
        if not asked.strip(BETWEEN.encode()):
            return
        before = _swap(self._prompts, [asked, given], split)
        if before is not None:
            yield ("conflicting_answers" if before == split else "prompt_overlap"), start


def plain(texts: list[str]) -> bytes:
    """Return texts as one; case and spaces do not make a row another one."""
    text = BETWEEN.join(texts)
    if text.isascii():  # quicker as bytes
        return b" ".join(text.encode().lower().split())
    return " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")


def _swap(seen: dict[bytes, int], texts: list[bytes], split: int) -> int | None:
    """Return the split that had these texts last, if any, and put this one in its place."""
    key = blake2b(BETWEEN.encode().join(texts), digest_size=8).digest()
    before = seen.get(key)
    seen[key] = split
    return before


def _prompt(columns: Row) -> Any:
    """Return what the model answers: the prompt, or all messages before the last answer."""
    messages = columns.get("messages")
    return columns.get("prompt") if not isinstance(messages, list) else messages[:-1]


def texts_in(value: Any) -> list[str]:
    """Return the strings and numbers in a nested value, in order, at any depth."""
    texts: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, dict):
            values = item.values()
            if {*map(type, values)} == {str}:  # most messages
                texts += values
            else:
                stack += reversed(values)
        elif isinstance(item, list) and item and type(item[0]) is int:
            texts.append(str(item))  # token ids: one string is as good as hundreds, and quicker
        elif isinstance(item, list):
            stack += reversed(item)
        elif item is not None and item is not MISSING:
            texts.append(str(item))
    return texts


def _character_faults(texts: list[str]) -> Iterator[Fault]:
    joined = "\n".join(texts)
    odd = joined.encode().translate(None, PLAIN) if joined.isascii() else ODD.search(joined)
    for text in texts if odd else ():
        for code, pattern in ODD_KINDS.items():
            if match := pattern.search(text):
                yield code, text[max(0, match.start() - 20) : match.end() + 20]


def _value_faults(value: Any, form: Format) -> Iterator[Fault]:
    """Yield what is wrong with a value that is not a list of messages."""
    if value is MISSING:
        yield "missing_column", None
    elif value is None or (isinstance(value, float) and isnan(value)):  # as a DataFrame has it
        yield "none_value", None
    elif value == [] or (isinstance(value, str) and not value.strip()):
        yield "empty_value", value
    elif not isinstance(value, str):
        yield "wrong_type", value
    elif CHAT_AS_TEXT.fullmatch(value):
        yield "messages_as_text", value
    elif form.chat:
        yield "mixed_forms", value


def _message_faults(messages: list[Any]) -> Iterator[Fault]:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            yield "wrong_type", message
            continue
        content = message.get("content")
        if isinstance(content, str) and content and not content.isspace():
            continue
        # A call of a tool needs no text of its own; a list holds parts, such as a picture.
        if message.get("tool_calls") or message.get("function_call") or isinstance(content, list):
            continue
        if content is None:
            yield "none_value", message
        elif not isinstance(content, str):
            yield "wrong_type", message
        elif message["role"] in ("user", "assistant"):
            yield "empty_value", message


def _role_faults(roles: list[str]) -> Iterator[Fault]:
    """Yield what is wrong with the order of the speakers; `roles` may be empty."""
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        yield "unknown_role", unknown[0]
    if not roles or unknown:
        return
    speakers = [role for role in roles if role not in ("system", "developer")]
    if speakers != roles[len(roles) - len(speakers) :]:
        yield "system_not_first", roles
    if "assistant" not in speakers:
        yield "no_assistant", roles
        return
    if speakers[0] == "assistant":
        yield "assistant_first", roles
    if any(a == b != "tool" for a, b in pairwise(speakers)):
        yield "repeated_role", roles
    if speakers[-1] != "assistant":
        yield "ends_with_user", roles
