"""The faults of prompts with rewards: what GRPOTrainer of TRL 1.16 gives the reward functions.

It takes the column prompt for the model, and all others but two for the rewards.

Used by lessons: 01.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from preflight.dataset_check.contents import texts_of
from preflight.dataset_check.forms import (
    MEDIA,
    SETTINGS,
    Format,
    Row,
    chat_keys,
    first_of,
    mostly,
)
from preflight.dataset_check.report import Collector, Tally
from preflight.dataset_check.rows import Fault

QUESTIONS = "question problem query instruction"
KEPT_BACK = ("completion", "completion_ids")
STOPPING = ("prompts", "completions")
TAKEN = (*STOPPING, "trainer_state", "log_extra", "log_metric", "environments")
# Columns that hold what a reward compares with.
GOLD = frozenset(
    "answer answers solution gold target ground_truth label completion expected response output "
    "reference chosen final_answer".split()
)
JSON_LIKE = 15  # characters of an answer in braces that is not in a prompt by chance


def as_prompts(columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """Return the form of prompts, from which GRPOTrainer makes the answers itself."""
    asked = "prompt" if "prompt" in columns else first_of(QUESTIONS, columns) or "prompt"
    mapping = ""
    if asked != "prompt" and asked in columns:
        mapping = f'dataset = dataset.rename_column({asked!r}, "prompt")'
    chat = mostly(sample, asked, list) and chat_keys(sample, asked) is not None
    return Format("prompts", "prompt", {"prompt": asked}, mapping, chat)


class Rewards:
    """The columns of a split that reward functions see, and those that they do not."""

    def __init__(self, form: Format, columns: Sequence[str], max_rows: int) -> None:
        self._columns, self._max_rows = columns, max_rows
        hidden = {*form.source.values(), *KEPT_BACK, *TAKEN}
        self._passed = [name for name in columns if name not in hidden]
        self._empty = {name: Tally(max_rows) for name in self._passed}
        self._rows = 0

    def of(self, number: int, row: Row, prompt: Any) -> Iterator[Fault]:
        """Yield what is wrong with the prompt of a row and with what stands next to it."""
        self._rows += 1
        if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
            if prompt[-1].get("role") == "assistant":
                yield "prompt_answered", prompt[-1]
        texts = texts_of({"prompt": prompt})
        asked = " ".join(texts[-1][1].split()) if texts else ""
        for name in self._columns:
            value = row.get(name)
            if name in self._empty and value in (None, "", [], {}):
                self._empty[name].add(number, name)
            if name in GOLD and isinstance(value, str) and _holds(asked, " ".join(value.split())):
                yield "answer_in_prompt", {name: value}

    def note(self, found: Collector) -> None:
        """Note what is wrong with the columns as a whole, and which ones rewards can read."""
        for name, empty in self._empty.items():
            if empty.count and 2 * empty.count <= self._rows and name not in SETTINGS:
                found.add_tally("gold_missing", empty)
        for code, names in (
            ("column_not_passed", KEPT_BACK), ("column_clash", TAKEN),
            ("settings_not_passed", SETTINGS),
        ):  # fmt: skip
            if given := [name for name in names if name in self._columns]:
                found.add(code, example=given)
        passed = [name for name in self._passed if name not in MEDIA]
        found.add("reward_columns", example=", ".join(passed) or "none")


def _holds(asked: str, gold: str) -> bool:
    """Return whether a prompt ends in the answer, or holds one that is JSON."""
    if gold[:1] in ("{", "[") and len(gold) >= JSON_LIKE:
        return gold in asked
    before = asked[: -len(gold)] if gold else asked
    return len(gold) > 1 and asked.endswith(gold) and before[-1:] in (" ", ":", "=", "(")
