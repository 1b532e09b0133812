"""Customers, their cases and their messages, with the place of every value in the text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import forms
import lexicon

FIELDS = ("name", "item", "colour", "day", "city", "problem", "mood")
SPAN_FIELDS = (
    "name",
    "item",
    "colour",
    "day",
    "city",
)  # the fields that stand in the text word for word
REGISTERS = ("polite", "curt", "rambling")


@dataclass(frozen=True)
class Case:
    """What a customer writes about: the seven fields of a ticket."""

    name: str
    item: str
    colour: str
    day: str
    city: str
    problem: str
    mood: str

    def record(self) -> dict[str, str]:
        """Return the fields in the order in which a ticket's record has them."""
        return asdict(self)


@dataclass(frozen=True)
class Message:
    """A message, the case behind it and where its values stand.

    ``spans`` holds ``(start, end, field)`` in characters; ``kind`` is "seen" or "unseen".
    """

    text: str
    case: Case
    spans: tuple[tuple[int, int, str], ...]
    kind: str


def _half(words: Sequence[str], kind: str) -> list[str]:
    """Return the values of one kind: as with the forms, every eighth one is kept unseen."""
    seen, unseen = forms.seen_and_unseen(list(words))
    return unseen if kind == "unseen" else seen


def ticket_case(rng: random.Random, kind: str = "seen") -> Case:
    """Return a case for the `tickets` dataset; "unseen": with values that no training row has."""
    # Composed words could be in both halves by chance, so the unseen half does without them.
    composed = 0.0 if kind == "unseen" else 0.15
    first = rng.choice(_half(lexicon.FIRST_NAMES, kind))
    if rng.random() < composed:
        first = lexicon.first_name(rng, open_share=1.0)
    name = f"{first} {lexicon.last_name(rng)}" if rng.random() < 0.3 else first
    city = rng.choice(_half(lexicon.CITIES, kind))
    if rng.random() < composed:
        city = lexicon.city(rng, open_share=1.0)
    item = rng.choice(_half(lexicon.ITEM_NOUNS, kind))
    if rng.random() < 0.3:
        item = f"{rng.choice(lexicon.ITEM_KINDS)} {item}"
    colour = rng.choice(_half(lexicon.BASE_COLOURS, kind))
    if rng.random() < 0.3:
        colour = f"{rng.choice(lexicon.SHADES)} {colour}"
    return Case(
        name, item, colour, rng.choice(lexicon.DAYS), city,
        rng.choice(lexicon.PROBLEMS), rng.choice(lexicon.MOODS),
    )  # fmt: skip


def corpus_case(rng: random.Random) -> Case:
    """Return a case for the pretraining corpus: all words, and a long open tail."""
    item, colour = lexicon.item(rng), lexicon.colour(rng)
    # Invented goods and colours now and then, so that guessing a common one does not pay.
    if rng.random() < 0.2:
        item = lexicon.nonsense_word(rng)
    if rng.random() < 0.2:
        colour = lexicon.nonsense_word(rng)
    return Case(
        lexicon.person(rng), item, colour, rng.choice(lexicon.DAYS), lexicon.city(rng),
        rng.choice(lexicon.PROBLEMS), rng.choice(lexicon.MOODS),
    )  # fmt: skip


def misspell(text: str, rng: random.Random, rate: float = 0.12) -> str:
    """Return `text` with slips of the finger in about `rate` of its longer words."""

    def slip(match: re.Match[str]) -> str:
        word = match.group()
        if rng.random() > rate:
            return word
        i = rng.randrange(1, len(word) - 1)
        kind = rng.randrange(3)
        if kind == 0:  # two letters swapped
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        if kind == 1:  # one letter left out
            return word[:i] + word[i + 1 :]
        return word[:i] + word[i] + word[i:]  # one letter twice

    return re.sub(r"[A-Za-z]{4,}", slip, text)


def _segments(form: str, case: Case) -> list[tuple[str, str | None]]:
    """Split a form into literal text and values: ``[(text, field or None), ...]``."""
    parts = re.split(r"\{(\w+)\}", form)
    segments: list[tuple[str, str | None]] = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            segments.append((part, None))
        elif part == "a":  # the article agrees with the value that follows
            following = getattr(case, parts[i + 2])
            segments.append(("an" if following[0].lower() in "aeiou" else "a", None))
        else:
            segments.append((getattr(case, part), part))
    return [s for s in segments if s[0]]


def _pick(options: list[str], kind: str, rng: random.Random) -> str:
    """Return a seen form; where the kind is "unseen", in half of the cases an unseen one."""
    seen, unseen = forms.seen_and_unseen(options)
    return rng.choice(unseen if kind == "unseen" and unseen and rng.random() < 0.5 else seen)


def _outline(register: str, case: Case, kind: str, rng: random.Random) -> list[str]:
    """Return the sentence forms of one message, in order."""

    def pick(options: list[str]) -> str:
        return _pick(options, kind, rng)

    # The first of them that says who writes; the others leave the name or the town to the end.
    opening, closing = [], []
    where_it_stands = rng.randrange(4)
    if where_it_stands == 0:
        opening = [pick(forms.WHO_AND_WHERE)]
        closing = [pick(forms.SIGNATURES)] if rng.random() < 0.3 else []
    elif where_it_stands == 1:
        opening = [pick(forms.WHO)]
    elif where_it_stands == 2:
        closing = [pick(forms.SIGNATURES)]
    else:
        closing = [pick(forms.SIGNATURES_WITH_TOWN)]

    order = pick(forms.ORDERS[register])
    problem = pick(forms.PROBLEM_FORMS[case.problem])
    extras = [pick(forms.MOOD_FORMS[case.mood])]
    if rng.random() < 0.3:
        extras.append(pick(forms.MOOD_FORMS[case.mood]))
    if where_it_stands in (1, 2):
        extras.append(pick(forms.WHERE))
    if rng.random() < 0.5:
        extras.append(pick(forms.ASKS[register]))
    fillers = {"polite": rng.randint(0, 1), "curt": 0, "rambling": rng.randint(1, 3)}[register]
    extras += [pick(forms.FILLERS) for _ in range(fillers)]
    rng.shuffle(extras)

    before = rng.randint(0, 1) if len(extras) > 1 else 0
    body = [*extras[:before], order, problem, *extras[before:]]
    if register == "rambling" and len(extras) > 1:
        body = [order, extras[0], problem, *extras[1:]]
    greeting = [pick(forms.GREETINGS[register])] if rng.random() < 0.75 else []
    return [*greeting, *opening, *body, *closing]


def write_message(case: Case, rng: random.Random, kind: str = "seen") -> Message:
    """Return a message about `case`: in a register of its own, one in four with typos."""
    register = rng.choice(REGISTERS)
    typos = rng.random() < 0.25
    text, spans = "", []
    for form in dict.fromkeys(_outline(register, case, kind, rng)):
        if text:
            text += " "
        for part, field in _segments(form, case):
            if field is None and typos:
                part = misspell(part, rng)
                part = part[0].lower() + part[1:]
            if field is not None:
                spans.append((len(text), len(text) + len(part), field))
            text += part
    return Message(text, case, tuple(spans), kind)


def unique_messages(
    count: int, rng: random.Random, kind: str, taken: set[str],
    make_case: Callable[[random.Random, str], Case] = ticket_case,
) -> list[Message]:  # fmt: skip
    """Return `count` messages whose texts are not in `taken`; their texts are added to it."""
    messages: list[Message] = []
    while len(messages) < count:
        message = write_message(make_case(rng, kind), rng, kind)
        if message.text not in taken:
            taken.add(message.text)
            messages.append(message)
    return messages
