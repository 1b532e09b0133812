"""The faults of rows that are tokenised already, and of the lengths of all rows.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from preflight.dataset_check.forms import MISSING, Row
from preflight.dataset_check.rows import Fault

IGNORED = -100  # the label that the loss skips


def length_faults(start: int, length: int, max_length: float) -> Iterator[Fault]:
    """Yield faults of a row of `length` tokens whose answer begins at the token `start`."""
    if length <= max_length:
        return
    yield "too_long", {"tokens": length}
    if start:
        cut = "away" if start >= max_length else "partly"
        yield f"completion_cut_{cut}", {"tokens": length, "answer begins at": start}


def ids_faults(row: Row, vocabulary: float, max_length: float) -> Iterator[Fault]:
    """Yield the faults of a row of token ids, of which there are so many in the vocabulary."""
    ids = row["input_ids"]
    given = {n: v for n, v in row.items() if v is not MISSING and (v is not None or v is ids)}
    if not all(_are_ints(v) and len(v) == len(ids) for v in given.values()):
        yield "wrong_type", {name: type(v).__name__ for name, v in given.items()}
        return
    if not ids:
        yield "empty_value", ids
        return
    labels = given.get("labels")
    masks = [given[name] for name in ("completion_mask", "assistant_masks") if name in given]
    if labels is None:
        labels = [i if all(m) else IGNORED for i, *m in zip(ids, *masks, strict=True)]
    if odd := [i for i in ids if not 0 <= i < vocabulary]:
        yield "token_out_of_range", odd[0]
    if odd := [i for i in labels if i != IGNORED and not 0 <= i < vocabulary]:
        yield "label_out_of_range", odd[0]
    learned = [place for place, label in enumerate(labels) if label != IGNORED]
    if not learned:
        yield "fully_masked", labels
    yield from length_faults(learned[0] if learned else 0, len(ids), max_length)


def _are_ints(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
