"""The checks of lesson 10, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math

import pandas as pd


def gpus(answer: int, needed: pd.DataFrame) -> tuple[bool, str]:
    if answer == needed.loc["8B", "full"]:
        return True, "of 16 bytes a parameter the weights are four; gradients and Adam: 12."
    return False, "the row is 8B, the column full."


def bill(answer: float, bill: pd.DataFrame) -> tuple[bool, str]:
    dollars = bill.loc[("8B", "lora"), "dollars"] * 50 / 15
    if math.isclose(answer, dollars, rel_tol=0.02):
        return True, f"{dollars:.2f} dollars; on more GPUs it would be the same, only sooner."
    return False, "the dollars grow in proportion to the tokens: 50 million instead of 15."


def accumulation(answer: int, rows: int) -> tuple[bool, str]:
    if answer * 4 * 2 == rows:
        return True, "four processes, two rows each, twice: 16 rows an update."
    return False, f"processes × rows each × accumulation has to be {rows}."


def row(answer: int) -> tuple[bool, str]:
    if answer == 250 * 2 * 4 * 2:
        return True, "rows 0 to 3,999 were trained on."
    if answer == 250 * 4:
        return False, "nearly: an update takes the rows of both processes, twice."
    return False, "how many rows does one update take? There were 250."
