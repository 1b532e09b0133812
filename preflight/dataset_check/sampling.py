"""Which rows of a large split are rendered and tokenised, and which are taken to be like others.

What a chat template makes of messages hangs on who speaks, on the keys there are, on how a text
begins and on markup in it, but not on its other words. Messages that agree in these have one shape.

Used by lessons: 01.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from zlib import crc32

from preflight.dataset_check.rendering import Messages

FIRST = 2_000  # rows of a form that are all looked at, and of those after them
ONE_IN = 100  # one in so many, spread as by chance,
ALIKE = 10  # and the first so many of a shape
SHAPES = 5_000  # that are remembered
# Faults that come of the template: all rows of a shape have them, or none.
OF_TEMPLATE = frozenset({"date_in_rows", "no_end"})
OF_LENGTH = frozenset({"too_long", "completion_cut_away", "completion_cut_partly"})
# How many tokens a text becomes, at most: one for each byte. Or half as many again as the letters
# and spaces of any row that was looked at did, and two for each other character.
MARGIN = 1.5
LEAST = 0.3  # tokens for a letter; more, if a text of so many bytes showed it
MANY = 200
SPARE = 16  # tokens that a tokenizer may add
PLAIN = (string.ascii_letters + string.whitespace).encode()
# What is next to the boundary of a prompt and its completion, and may become a token with it.
TAIL = re.compile(r"(?:\s?(?:\w+|[^\w\s]+)|\s+)\Z")
HEAD = re.compile(r"\s+.?|\w+|[^\w\s]+")
NEAR = 24  # characters
KEPT = 50_000  # boundaries

SCALARS = (str, int, float)  # and bool, of a message's values


def encoded(text: str) -> bytes:
    """Return the bytes of a text."""
    return text.encode("utf-8", "replace")


class Shape:
    """Rows of which a template makes the same, and what was found in those looked at."""

    def __init__(self) -> None:
        self.codes: frozenset[str] = frozenset()
        self.overhead = 0  # bytes of a rendering that are not of the messages
        self._count = 0
        self._alike = True

    @property
    def settled(self) -> bool:
        """True if rows of this shape need not be looked at any more."""
        return self._alike and self._count >= ALIKE

    def note(self, codes: Iterable[str], overhead: int) -> None:
        """Note the faults of a row that was looked at; one of its own unsettles the shape."""
        found = frozenset(codes) - OF_LENGTH
        same = not self._count or found == self.codes
        self._alike &= same and found <= OF_TEMPLATE
        self.codes = found
        self.overhead = max(self.overhead, overhead)
        self._count += 1


def shape_of(messages: Messages, marks: Sequence[str]) -> tuple[Hashable, str]:
    """Return what messages have in common with others, and their texts in one.

    `marks` is the markup that the template knows. The first is None where messages hold more than
    text, such as calls of tools: of these, templates make many things.
    """
    shape: list[Hashable] = []
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        keys: Hashable = None
        if len(message) > 2 or not isinstance(content, str):
            scalars = all(not v or isinstance(v, SCALARS) for v in message.values())
            if not scalars or (content and not isinstance(content, str)):
                return None, ""
            keys = tuple((key, type(value), bool(value)) for key, value in message.items())
            texts += [v for k, v in message.items() if isinstance(v, str) and k != "content"]
            content = content or ""
        texts.append(content)
        shape += (message["role"], keys, _start(content))
    joined = "\n".join(texts)
    if any([mark in joined for mark in marks]):
        shape.append(tuple(tuple(m for m in marks if m in str(message)) for message in messages))
    return tuple(shape), joined


def _start(text: str) -> str:
    if not text[:1].isspace():
        return text and "text"
    return "space" if text.strip() else "nothing"


class Sample:
    """Says of each row of a form whether it is looked at, and counts."""

    def __init__(self, max_length: float, every_row: bool) -> None:
        self.total = self.passed_over = 0
        self._max_length, self._every_row = max_length, every_row
        self._densest = LEAST
        self._shapes: dict[Hashable, Shape] = defaultdict(Shape)

    def shape(self, key: Hashable) -> Shape:
        """Return the shape of a row; one of too many is new each time, so that memory is flat."""
        if len(self._shapes) >= SHAPES and key not in self._shapes:
            return Shape()
        return self._shapes[key]

    def counted(self, text: str, tokens: int) -> None:
        """Note how many tokens a text became."""
        whole = encoded(text)
        if len(whole) >= MANY:
            odd = len(whole.translate(None, PLAIN))
            self._densest = max(self._densest, (tokens - odd) / max(len(whole) - odd, MANY))

    def looks(self, text: str, shape: Shape | None = None, doubt: bool = False) -> bool:
        """Return whether a row is to be rendered and tokenised, as it is in any case of doubt.

        Texts have no shape.
        """
        self.total += 1
        look = doubt or self._every_row or self.total <= FIRST
        look = look or bool(shape and not shape.settled) or not crc32(b"%d" % self.total) % ONE_IN
        if look:
            return True
        more = SPARE + (shape.overhead if shape else 0)
        short = len(text) + more <= self._max_length and (
            text.isascii() or len(encoded(text)) + more <= self._max_length
        )
        if not short and self._tokens(text) + more > self._max_length:
            return True
        self.passed_over += bool(shape) or not short  # else nothing of it is unknown
        return False

    def _tokens(self, text: str) -> float:
        """Return more tokens than a text should become."""
        whole = encoded(text)
        odd = len(whole.translate(None, PLAIN))
        return min(len(whole), MARGIN * self._densest * (len(whole) - odd) + 2 * odd)


class Ends:
    """Tells from the last word of a prompt and the first of its completion whether tokens join.

    That is so as a rule; where whole texts show that it is not, `trusted` becomes False.
    """

    def __init__(self, tokenise: Callable[[list[str]], list[list[int]]]) -> None:
        self.trusted = True
        self._tokenise = tokenise
        self._apart: set[tuple[str, str]] = set()

    def apart(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Return for each prompt and completion whether no token has characters of both."""
        ends = [_ends(*pair) for pair in pairs]
        if len(self._apart) > KEPT:
            self._apart.clear()
        if new := [*dict.fromkeys(end for end in ends if end not in self._apart)]:
            texts = [tail for tail, _ in new] + [tail + head for tail, head in new]
            tokens = self._tokenise(texts)
            for end, own, both in zip(new, tokens, tokens[len(new) :], strict=False):
                if own == both[: len(own)] and len(both) > len(own):
                    self._apart.add(end)
        return [end in self._apart for end in ends]


def _ends(prompt: str, completion: str) -> tuple[str, str]:
    tail, head = TAIL.search(prompt[-NEAR:]), HEAD.match(completion[:NEAR])
    return tail.group() if tail else "", head.group() if head else ""
