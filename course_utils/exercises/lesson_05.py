"""The checks of lesson 05, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd


def virtual(answer: int, config: Any) -> tuple[bool, str]:
    if answer == 20 * config.hidden_size:
        return True, "an embedding for each virtual token, and nothing in the layers."
    if answer == 20 * config.hidden_size * config.num_hidden_layers:
        return False, "prompt tuning puts its virtual tokens below the first layer alone."
    return False, "how many numbers is one embedding in this model?"


def head(answer: Any) -> tuple[bool, str]:
    if getattr(answer.task_type, "value", answer.task_type) != "SEQ_CLS":
        return False, "sorting whole messages into classes has a task type of its own."
    saved = answer.modules_to_save or []
    if not isinstance(saved, list):
        return False, "modules_to_save has to be a list: get_peft_model fails with anything else."
    if "classification_head" not in saved:
        return False, "peft does not know the name of this head, so the config has to say it."
    return True, "the head is trained and saved, whatever its name."


def merge(answer: Sequence[str], merge: pd.Series) -> tuple[bool, str]:
    wanted = {name for name, outcome in merge.items() if isinstance(outcome, str)}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == wanted:
        return True, "they have no weights that could go into the model's."
    if given - {*merge.index}:
        return False, f"give names from the index of the table: {', '.join(merge.index)}."
    return False, f"{len(wanted - given)} are missing, {len(given - wanted)} can be merged."


def fails(
    answer: Mapping[str, Sequence[str]], names: Sequence[str], measure: Callable[[str], list[str]]
) -> tuple[bool, str]:
    if not isinstance(answer, Mapping) or {*answer} != {*names}:
        return False, f"give a dict with a list for each of {', '.join(names)}."
    differ = {name: {*answer[name]} ^ {*measure(name)} for name in names}
    if wrong := [name for name in names if differ[name]]:
        count = sum(map(len, differ.values()))
        return False, f"{count} of {4 * len(names)} are otherwise; look again at {wrong[0]}."
    return True, "that is what was measured, and few guess all of it."


def macro(answer: float, accuracy: float, classes: int) -> tuple[bool, str]:
    of_the_named = 2 * accuracy / (1 + accuracy)
    if math.isclose(answer, of_the_named / classes, rel_tol=1e-3):
        return True, "one class has an F1, the others have 0, and the mean is over all of them."
    if math.isclose(answer, of_the_named, rel_tol=1e-3):
        return False, "that is the F1 of the class that is named; the others count as much."
    return False, "find precision and recall of the class that is named, then of one that is not."
