"""Secrets and personal data in a text, by their patterns; what is found is never shown.

Patterns that have a check digit are held to it; a key has to look like chance, so that the example
keys of documentation are none.

Used by lessons: 01.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

DIGITS = b"0123456789"
FEW = 9  # digits; a text with fewer has no number that says who someone is
EXAMPLES = ("1234567890", "11234567890", "123456789", "0123456789")  # of telephone numbers


def _random(match: re.Match[str]) -> bool:
    """Return whether a key looks like chance rather than like an example or a name."""
    key = match.group()
    example = re.search(r"(?i)example|your|xxx|(.)\1{3}", key)
    mixed = re.search(r"\d", key) and re.search(r"[A-Za-z]", key)
    return not example and bool(mixed) and len({*key}) >= 10


def _card(match: re.Match[str]) -> bool:
    digits = [int(d) for d in match.group() if d.isdecimal()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len({*digits}) > 1


def _iban(match: re.Match[str]) -> bool:
    text = re.sub(r"\s", "", match.group())
    number = "".join(str(int(c, 36)) for c in text[4:] + text[:4])
    return 15 <= len(text) <= 34 and int(number) % 97 == 1


def _phone(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return 9 <= len(digits) <= 15 and len({*digits}) > 2 and digits not in EXAMPLES


# Addresses of nobody, and of whole offices.
EXAMPLE = re.compile(r"example|\btest\b|domain|yourcompany|\bcompany\.|\.(?:invalid|local)$")
OFFICE = re.compile(
    r"(?:info|support|contact|admin|sales|help|hello|git|no-?reply|your|user|name|email|example"
    r"|test)\b"
)


def _email(match: re.Match[str]) -> bool:
    name, _, domain = match.group().lower().partition("@")
    message_id = not re.search("[a-z]", name)
    return not message_id and not EXAMPLE.search(domain) and not OFFICE.match(name)


def _always(match: re.Match[str]) -> bool:
    return True


class Kind(NamedTuple):
    """A kind of private text: its rule, its name, its pattern and what a match has to fulfil."""

    code: str
    name: str
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], bool] = _always


# What keys begin with, by a character that is in each of them ("": no such character).
KEY_STARTS = {
    "_": ("ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "hf_", "k_live_", "npm_"),
    "-": ("sk-", "xox", "glpat-"),
    "": ("AKIA", "AIza", "eyJ"),
}
KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{40,}|hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|xox[abps]-[A-Za-z0-9-]{20,}|glpat-[A-Za-z0-9_-]{18,}|[sr]k_live_[A-Za-z0-9]{20,}"
    r"|npm_[A-Za-z0-9]{30,}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
)
PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END|\Z)")
# Four groups of four, or 15 and 16 digits in one where a card is spoken of.
CARD = re.compile(
    r"(?<![\d.-])(?:[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -])\d{6}\2\d{5}"
    r"|(?i:(?<=card )|(?<=card: )|(?<=number )|(?<=number: )|(?<=visa )|(?<=is ))"
    r"(?:[4-6]\d{15}|3[47]\d{13}))(?![\d.-]?\d)"
)
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ -.]?)?(?:\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
    r"|(?<![\w.+-])\+[1-9]\d{0,2}[ -](?:\(?\d{1,4}\)?[ -]?){1,3}\d{4,8}(?!\w)"
    r"|(?i:\b(?:phone|call|tel|mobile|cell|telephone|whatsapp|fax)(?: number)?\W{1,3}"
    r"(?:(?:me|us|is|at|on|number)\W+){0,3})\+?\d[\d ()/.-]{7,16}\d(?!\w)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
EMAIL = re.compile(
    r"(?<![\w.+/:-])[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
)

PRIVATE_KEY = Kind("secret", "private key", PEM)
API_KEY = Kind("secret", "API key", KEY, _random)
ADDRESS = Kind("personal_data", "e-mail address", EMAIL, _email)
NUMBERS = (
    Kind("personal_data", "card number", CARD, _card),
    Kind("personal_data", "IBAN", IBAN, _iban),
    Kind("personal_data", "phone number", PHONE, _phone),
    Kind("personal_data", "social security number", SSN),
)
# A number is looked for around such a run, with what stands before it: most texts have none.
RUN = re.compile(r"[0-9][0-9 ()./-]{6,}[0-9]")
BEFORE, AFTER = 40, 8  # characters

Part = tuple[Kind, int, int]  # what it is, and where it begins and ends


def private_parts(text: str) -> list[Part]:
    """Return the private parts of a text, in their order."""
    parts: list[Part] = []
    plain = text.encode("utf-8", "replace")
    digits = len(plain) - len(plain.translate(None, DIGITS))
    if "@" in text:
        parts += _matches(ADDRESS, text)
    if not digits:
        return parts
    if "-" in text and "PRIVATE KEY-----" in text:
        parts += _matches(PRIVATE_KEY, text)
    starts = [start for sign, known in KEY_STARTS.items() if sign in text for start in known]
    if any([start in text for start in starts]):
        parts += _matches(API_KEY, text)
    if digits >= FEW:
        for run in RUN.finditer(text):
            around = max(run.start() - BEFORE, 0), run.end() + AFTER
            parts += [p for kind in NUMBERS for p in _matches(kind, text, *around)]
    return sorted({*parts}, key=lambda part: part[1:])


def _matches(kind: Kind, text: str, start: int = 0, end: int | None = None) -> list[Part]:
    found = kind.pattern.finditer(text, start, len(text) if end is None else end)
    return [(kind, *match.span()) for match in found if kind.holds(match)]


def redacted(text: str) -> str:
    """Return a text in which each private part is replaced by the name of its kind."""
    shown, place = "", 0
    for kind, start, end in private_parts(text):
        if start >= place:
            shown += f"{text[place:start]}[{kind.name}]"
        place = max(place, end)
    return shown + text[place:]
