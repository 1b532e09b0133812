"""The checks of lesson 09, by the names of its exercises.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def confused(answer: Sequence[str], table: pd.DataFrame) -> tuple[bool, str]:
    true, predicted = answer
    if true not in table.index or predicted not in table.columns:
        names = ", ".join(table.index)
        return False, f"give the true mood, then the predicted one. The true ones are: {names}."
    if true == predicted:
        return False, "those are the right answers; look next to the diagonal."
    most = max(table.loc[row, column] for row in table.index for column in table if row != column)
    count = table.loc[true, predicted]
    if count == most:
        return True, f"{count} of the {table.loc[true].sum()} messages that are {true}."
    return False, f"that happened {count} times, another confusion {most} times."


def paired(answer: int) -> tuple[bool, str]:
    if answer == 8:
        return True, "all of them: 2 in 256 by chance, and seven of eight are 18 in 256."
    if answer == 7:
        return False, "nearly: chance gives 7 or 8 of 8, to either side, in 18 of 256 cases."
    return False, "try mcnemar(5, 3), mcnemar(6, 2) and so on."


def rank(answer: int) -> tuple[bool, str]:
    if answer == 8 + 32:
        return True, "nothing is lost, and the file is as large as the two together."
    return False, "the thin matrices of both are put side by side; look at the ranks in the lesson."


def messages(
    answer: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase, prompt: str
) -> tuple[bool, str]:
    if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict):
        return False, "give a list with one dictionary, which has a role and a content."
    if answer[0].get("role") != "user" or not isinstance(answer[0].get("content"), str):
        return False, 'the role is "user", and the content is a text.'
    written = tokenizer.apply_chat_template(answer, tokenize=False, add_generation_prompt=True)
    if written == prompt:
        return True, "the prompt of the training, letter by letter."
    return False, f"the model would see {written[:60]!r}…, and should see {prompt[:60]!r}…"
