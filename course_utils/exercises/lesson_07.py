"""The checks of lesson 07, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def names(answer: Mapping[str, str]) -> tuple[bool, str]:
    wanted = {"tokenizer": "processing_class", "max_seq_length": "max_length"}
    if dict(answer) == wanted:
        return True, "the first is the trainer's own, the second belongs to SFTConfig."
    wrong = [old for old in wanted if answer.get(old) != wanted[old]]
    return False, f"look again at {', '.join(wrong) or 'the old names'} in the fixed call."


def cause(answer: Iterable[str], effects: pd.DataFrame) -> tuple[bool, str]:
    same_start = effects["first loss off by"].abs() < 1e-6
    parted = effects["largest difference"] > 1e-6
    given, causes = {answer} if isinstance(answer, str) else {*answer}, {*effects.index}
    if given == {*effects.index[same_start & parted]}:
        return True, "it acts after the first loss, and the others before it or not at all."
    if given - causes:
        return False, "give a set of names from the index of `effects`."
    return False, "which leaves the first loss alone, and changes a later one?"


def packs(answer: int, documents: Any) -> tuple[bool, str]:
    tokens = sum(map(len, documents[:]["input_ids"]))
    if answer == math.ceil(tokens / 480):
        return True, f"{tokens:,} tokens; only the last row is not full."
    if answer == tokens // 480:
        return False, "nearly: the rest needs a row as well."
    return False, f"there are {tokens:,} tokens, and a row takes 480."
