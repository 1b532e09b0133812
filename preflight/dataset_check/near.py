"""Rows that are nearly the same as one before: other punctuation, a word more or less.

The library rensa keeps 64 hashes of each row, from its runs of three words. Runs that many rows
share, such as the wording of a prompt, say nothing and are left out.

Used by lessons: 01.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rensa import RMinHash, RMinHashLSH

from preflight.dataset_check.report import Collector, Tally

ROWS = 10_000  # the first rows, which are compared with each other
HASHES, BANDS = 64, 16
ALIKE = 0.75  # of the runs of two rows, the share that both have
ENOUGH = 12  # runs of its own that a row needs to be compared
MANY, USUAL = 20, 4  # of so many rows, a quarter may be alike; more, and one pattern made them
WORDS = 100  # in rows of more words, the runs that begin with some letters stand for all
WORD = re.compile(r"\w+")
LETTERS = frozenset("stm")


def runs(texts: Iterable[str]) -> set[str]:
    """Return runs of three words, without case and punctuation."""
    text = " ".join(texts).casefold()
    if text.count(" ") > WORDS:
        words = text.split()
        places = [n for n, word in enumerate(words) if word[0] in LETTERS]
        return {" ".join(words[n : n + 3]) for n in places}
    words = WORD.findall(text)
    return {" ".join(words[n : n + 3]) for n in range(len(words) - 2)}


class NearDuplicates:
    """Finds rows that are nearly the same as one that came before, in any split."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._seen = RMinHashLSH(threshold=ALIKE, num_perm=HASHES, num_bands=BANDS)
        self._hashes: list[RMinHash] = []
        self._rows: list[str] = []
        self._common: set[str] = set()

    def start(self, sample: Iterable[Sequence[str]]) -> None:
        """Begin with a split, of which `sample` holds the texts of the first rows."""
        known = [runs(texts) for texts in sample]
        counts = Counter(run for one in known for run in one)
        self._common |= {run for run, n in counts.items() if n > max(4, len(known) / 20)}
        self._looked = 0
        self._near = Tally(self._max_rows)

    def look(self, split: str, number: int, texts: Sequence[str], tools: Any = None) -> None:
        """Compare a row with those before that have the same tools."""
        if self._looked >= ROWS:
            return
        self._looked += 1
        own = runs(texts) - self._common
        if len(own) < ENOUGH:
            return
        hashed = RMinHash(num_perm=HASHES, seed=1)
        hashed.update([f"{tools} {run}" for run in own] if tools else [*own])
        near = [n for n in self._seen.query(hashed) if hashed.jaccard(self._hashes[n]) >= ALIKE]
        if near:
            self._near.add(number, f"row {number} is like {self._rows[min(near)]}")
        self._seen.insert(len(self._rows), hashed)
        self._rows.append(f"row {number} of {split}")
        self._hashes.append(hashed)

    def note(self, found: Collector) -> None:
        """Note the rows of the split, unless so many are alike that one pattern made them."""
        pattern = self._looked >= MANY and self._near.count * USUAL > self._looked
        if self._near.count and not pattern:
            found.add_tally("near_duplicate", self._near)
