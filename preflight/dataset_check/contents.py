"""The faults of what a row says: private data, gaps left open, wrong decoding, answers cut off.

Used by lessons: 01.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import ftfy
from ftfy.badness import is_bad

from preflight.dataset_check.forms import Row
from preflight.dataset_check.near import NearDuplicates
from preflight.dataset_check.private import private_parts
from preflight.dataset_check.report import Collector, Tally
from preflight.dataset_check.rows import Fault
from preflight.dataset_check.tool_calls import tool_faults

GAP = re.compile(
    r"\[(?:insert|enter|add)\b[^\][\n(]{0,40}\](?!\()|<(?:insert|your)[ _-][^<>\n]{1,40}>"
    r"|\{\{ ?[a-z_]+ ?\}\}",
    re.IGNORECASE,
)
# In a question these may be what it is about.
YOURS = re.compile(
    r"\[(?:your|recipient|customer|company|client)\b[^\][\n(]{0,40}\](?!\()", re.IGNORECASE
)
CODE = re.compile(r"```|</|\{%|\\[a-z]+\{|\bdef |\bfunction\b|=>|==|;\n|\\\\u", re.IGNORECASE)
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5});")
ABOUT_MARKUP = re.compile(r"html|xml|entit|escap|encod|<\w|url|&\w+;\s*(?:and|or)\b", re.IGNORECASE)
ESCAPE = re.compile(r"[^\W\d_]\\u00[89a-fA-F][0-9a-fA-F]|\\u[0-9a-fA-F]{4}[^\W\d_]{2}")
ABOUT_CODE = re.compile(r"unicode|json|escap|encod|regex|python|script|[{}=]", re.IGNORECASE)

# Words that no sentence ends in.
OPEN_WORDS = frozenset(
    "the an and or but because its their your our my whose every although whereas".split()
)
SENTENCE = re.compile(r"\w[.!?][\"')]? +[A-Z]")
NO_PROSE = re.compile(r"^\s*(?:[-*+•#>|]|\d+[.)]|[A-Za-z][.)]\s)|[{}();=<>\\|]|https?:|:\s*\S+$")
SHORT, PROSE = 8, 11  # words of a last line that may be a sentence, and of one that is
LONG, SEVERAL = 15, 3  # a single shorter one without a full stop is a slip, several are a limit
TAIL = 6  # words after the last full stop; fewer may be a name, or a greeting
USUAL = 5  # of so many answers, one may end in mid-sentence; more is how these answers are


def texts_of(columns: Row) -> list[tuple[str, str]]:
    """Return the texts of a row, each with the role that says it ("text" for plain text)."""
    roles = {"prompt": "user", "completion": "assistant"}
    texts: list[tuple[str, str]] = []
    for name, value in columns.items():
        if isinstance(value, str):
            texts.append((roles.get(name, "text"), value))
        for message in value if isinstance(value, list) else ():
            if isinstance(message, dict) and isinstance(role := message.get("role"), str):
                content = message.get("content")
                if isinstance(content, str):
                    texts.append((role, content))
                elif isinstance(content, list):
                    texts += [(role, text) for text in _part_texts(content)]
    return texts


def _part_texts(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text


def content_faults(texts: list[tuple[str, str]]) -> list[Fault]:
    """Return what is wrong with the texts of a row; a secret is named, never quoted."""
    # One search of all texts together: most rows hold nothing of the kind.
    joined = "\n\n".join([text for _, text in texts])
    faults: list[Fault] = [(kind.code, kind.name) for kind, *_ in private_parts(joined)]
    if "[" in joined or "{" in joined or "<" in joined:
        faults += _gaps(texts)
    if "&" in joined or "\\" in joined or not joined.isascii():
        faults += [("wrongly_decoded", wrong) for _, t in texts if (wrong := _wrongly_decoded(t))]
    return [*faults, *_repeated_prompts(texts)]


def _gaps(texts: list[tuple[str, str]]) -> Iterator[Fault]:
    for role, text in texts:
        gap = GAP.search(text) or (role == "assistant" and YOURS.search(text))
        if gap and not CODE.search(text):
            yield "placeholder", gap.group()


def _wrongly_decoded(text: str) -> str:
    """Return the place of a text that shows that it was decoded wrongly, or ""."""
    if not text.isascii() and is_bad(text) and ftfy.fix_encoding(text) != text:
        return next((word for word in text.split() if ftfy.fix_encoding(word) != word), text)
    found = ENTITY.search(text)
    if not found or ABOUT_MARKUP.search(text):
        found = None if ABOUT_CODE.search(text) else ESCAPE.search(text)
    return text[max(found.start() - 20, 0) : found.end() + 20] if found else ""


def _repeated_prompts(texts: list[tuple[str, str]]) -> Iterator[Fault]:
    asked = ""
    for role, text in texts:
        if role == "assistant" and asked and _repeats(asked, text):
            yield "prompt_repeated", text
        asked = text if role == "user" else ""


def _repeats(asked: str, answer: str) -> bool:
    """Return whether an answer begins with all of what was asked, and goes on."""
    start = answer.lstrip(" \n\"'")[:10].casefold()
    if start != asked.lstrip(" \n\"'")[:10].casefold():
        return False
    plain = " ".join(asked.removesuffix("Answer:").split()).strip("\"' ").casefold()
    given = " ".join(answer.split()).strip("\"' ").casefold()
    return len(plain) >= 20 and plain.count(" ") >= 3 and given != plain and given.startswith(plain)


def cut_off(answer: str) -> bool | None:
    """Return whether an answer in prose ends in the middle of a sentence; None: not prose.

    It is certain of an open block of code, and of a last word such as "the". Else look at other
    answers, too: some writers set no full stop.
    """
    text = answer.rstrip()
    if not text:
        return None
    if _open_block(text):
        return True
    if text[-1] in ".!?…":
        return False
    line = text.rsplit("\n", 1)[-1]
    words = line.split()
    if not (text[-1].isalpha() or text[-1] == ",") or len(words) < SHORT or NO_PROSE.search(line):
        return None
    if words[-1] in OPEN_WORDS:
        return True
    last = re.split(r"[.!?][\"')]? ", line)[-1].split()
    long = (len(words) >= PROSE and ": " not in line) or SENTENCE.search(text)
    return True if long and len(last) >= TAIL else None


def certainly_cut(answer: str) -> bool:
    """Return whether an answer that is cut off shows it by itself."""
    return _open_block(answer.rstrip()) or answer.split()[-1] in OPEN_WORDS


def _open_block(text: str) -> bool:
    return text.count("```") % 2 == 1 and not text.endswith("```")


class CutOffs:
    """Answers of a split that end in the middle of a sentence, unless that is usual there."""

    def __init__(self, max_rows: int) -> None:
        self._whole = 0
        self._long = False
        self._cut = Tally(max_rows)

    def look(self, number: int, texts: list[tuple[str, str]]) -> Iterator[Fault]:
        """Yield a fault if the answer of this row shows by itself that it was cut off."""
        if not texts or texts[-1][0] != "assistant":
            return
        answer = texts[-1][1]
        cut = cut_off(answer)
        if cut:
            end = f"...{answer.rstrip()[-60:]}"
            if certainly_cut(answer):
                yield "answer_cut_off", end
            else:
                self._cut.add(number, end)
                self._long |= len(answer.split()) >= LONG
        elif cut is False:
            self._whole += 1

    def note(self, found: Collector) -> None:
        """Note the other answers that were cut off, if most end as sentences do."""
        count = self._cut.count
        if (self._long or count >= SEVERAL) and count * USUAL <= count + self._whole:
            found.add_tally("answer_cut_off", self._cut)


class Contents:
    """Looks at what the rows of a split say; what depends on all of them is noted at the end."""

    def __init__(
        self, split: str, sample: Iterable[Row], near: NearDuplicates, max_rows: int
    ) -> None:
        """Begin with a split, of which `sample` holds the first rows in the target form."""
        self._split, self._near = split, near
        self._cut_offs = CutOffs(max_rows)
        near.start([_plain(texts_of(columns)) for columns in sample])

    def faults(self, number: int, columns: Row, tools: Any, came_before: bool) -> list[Fault]:
        """Return the faults of a row; one that came before as it is, is not near another."""
        texts = texts_of(columns)
        if not came_before:
            self._near.look(self._split, number, _plain(texts), _short(tools))
        calls = tool_faults(columns, tools)
        return [*content_faults(texts), *self._cut_offs.look(number, texts), *calls]

    def note(self, found: Collector) -> None:
        """Note what all rows together show."""
        self._near.note(found)
        self._cut_offs.note(found)


def _plain(texts: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in texts]


def _short(tools: Any) -> int:
    """Return a number for the definitions of tools; 0 for none."""
    return crc32(str(tools).encode("utf-8", "replace")) if tools else 0
