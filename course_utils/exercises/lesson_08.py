"""The checks of lesson 08, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd


def fits(answer: Iterable[str], planned: pd.DataFrame) -> tuple[bool, str]:
    methods = ["full", "lora", "qlora"]
    fitting = {method for method in methods if planned.loc["8,192 tokens", method] <= 16}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == fitting:
        return True, "activations alone take most of it; checkpointing would be the next thing."
    return False, "look at the last row of `planned`, in GiB."


def choice(answer: str, winners: pd.DataFrame) -> tuple[bool, str]:
    right, forgotten = winners["exact match"], winners["forgetting"]
    good = right >= right.max() - 0.02
    if answer == forgotten[good].idxmin():
        return True, f"{good.sum()} of the methods are so good, and this one forgets least."
    if answer in winners.index and not good[answer]:
        behind = 100 * (right.max() - right[answer])
        return False, f"{answer} is {behind:.1f} points below the best."
    return False, "first keep the rows that are good enough, then take the one that forgets least."


def peeking(answer: int, everything: pd.DataFrame) -> tuple[bool, str]:
    groups = everything.groupby("method")
    chosen = (groups["validation loss"].idxmin(), groups["exact match"].idxmax())
    rates = [everything.loc[rows].set_index("method")["learning rate"] for rows in chosen]
    if answer == int((rates[0] != rates[1]).sum()):
        return True, "and their test figures would have been too good: they were chosen by them."
    return False, "of each method take the row with the lowest loss, and that with the best match."
