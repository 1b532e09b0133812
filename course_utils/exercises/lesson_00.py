"""The checks of lesson 00, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math

import pandas as pd


def rank(answer: int, trainable: int) -> tuple[bool, str]:
    if answer == 2 * trainable:
        return True, "both matrices grow with the rank, so twice the rank trains twice as many."
    return False, f"r=8 trains {trainable:,} parameters, and both matrices grow with the rank."


def field(answer: str, accuracy: pd.Series) -> tuple[bool, str]:
    if answer in accuracy.index and accuracy[answer] == accuracy.min():
        return True, f"{answer} is right in only {accuracy.min():.1%} of the unseen messages."
    return (
        False,
        f"find the smallest number in the column 'unseen'; fields: {', '.join(accuracy.index)}.",
    )


def speed(answer: float, metrics: dict[str, float], rows: int) -> tuple[bool, str]:
    seconds = metrics["train_runtime"] / (rows * metrics["epoch"])
    if math.isclose(answer, seconds, rel_tol=0.05):
        return True, f"{seconds * 1000:.1f} milliseconds a row, forward and backward."
    return False, "divide train_runtime, in seconds, by rows times epochs."
