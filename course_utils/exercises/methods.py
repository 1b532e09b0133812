"""The checks of lessons 05 to 08."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from course_utils.exercises.registry import exercise


@exercise("05-virtual")
def _virtual_tokens(answer: int, config: Any) -> tuple[bool, str]:
    if answer == 20 * config.hidden_size:
        return True, "an embedding for each virtual token, and nothing in the layers."
    if answer == 20 * config.hidden_size * config.num_hidden_layers:
        return False, "prompt tuning puts its virtual tokens below the first layer alone."
    return False, "how many numbers is one embedding in this model?"


@exercise("05-head")
def _head(answer: Any) -> tuple[bool, str]:
    if getattr(answer.task_type, "value", answer.task_type) != "SEQ_CLS":
        return False, "sorting whole messages into classes has a task type of its own."
    saved = answer.modules_to_save or []
    if not isinstance(saved, list):
        return False, "modules_to_save has to be a list: get_peft_model fails with anything else."
    if "classification_head" not in saved:
        return False, "peft does not know the name of this head, so the config has to say it."
    return True, "the head is trained and saved, whatever its name."


@exercise("05-merge")
def _unmergeable(answer: Sequence[str], merge: pd.Series) -> tuple[bool, str]:
    wanted = {name for name, outcome in merge.items() if isinstance(outcome, str)}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == wanted:
        return True, "they have no weights that could go into the model's."
    if given - {*merge.index}:
        return False, f"give names from the index of the table: {', '.join(merge.index)}."
    return False, f"{len(wanted - given)} are missing, {len(given - wanted)} can be merged."


@exercise("05-macro")
def _macro_f1(answer: float, accuracy: float, classes: int) -> tuple[bool, str]:
    of_the_named = 2 * accuracy / (1 + accuracy)
    if math.isclose(answer, of_the_named / classes, rel_tol=1e-3):
        return True, "one class has an F1, the others have 0, and the mean is over all of them."
    if math.isclose(answer, of_the_named, rel_tol=1e-3):
        return False, "that is the F1 of the class that is named; the others count as much."
    return False, "find precision and recall of the class that is named, then of one that is not."


@exercise("06-steps")
def _steps(answer: int) -> tuple[bool, str]:
    batches = math.ceil(1200 / 4)
    if answer == 3 * math.ceil(batches / 8):
        return True, "38 an epoch: what is left at its end makes an update of its own."
    if answer == 3 * (batches // 8):
        return False, "nearly: 300 batches do not divide by 8, and those left over count too."
    return False, "count the batches of an epoch, then the updates that they make, then the epochs."


@exercise("06-warmup")
def _warmup(answer: int) -> tuple[bool, str]:
    warmup = math.ceil(0.05 * 200)
    if answer == warmup + 1:
        return True, "ten steps of warm-up, of which the first has a learning rate of 0."
    if answer == warmup:
        return False, "nearly: the first step of a warm-up has a learning rate of 0."
    return False, "a warmup_steps below 1 is a share of the steps."


@exercise("06-translate")
def _translate(answer: Any) -> tuple[bool, str]:
    wanted = {
        "eval_strategy": "steps",
        "warmup_steps": 0.1,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
    }
    wrong = [name for name, value in wanted.items() if getattr(answer, name) != value]
    if wrong:
        return False, f"look at {', '.join(wrong)}; the table of names has their old ones."
    return True, "four old names, four new ones, and the same training."


@exercise("07-names")
def _new_names(answer: Mapping[str, str]) -> tuple[bool, str]:
    wanted = {"tokenizer": "processing_class", "max_seq_length": "max_length"}
    if dict(answer) == wanted:
        return True, "the first is the trainer's own, the second belongs to SFTConfig."
    wrong = [old for old in wanted if answer.get(old) != wanted[old]]
    return False, f"look again at {', '.join(wrong) or 'the old names'} in the mended call."


@exercise("07-cause")
def _cause(answer: Iterable[str], effects: pd.DataFrame) -> tuple[bool, str]:
    same_start = effects["first loss off by"].abs() < 1e-6
    parted = effects["largest difference"] > 1e-6
    given, causes = {answer} if isinstance(answer, str) else {*answer}, {*effects.index}
    if given == {*effects.index[same_start & parted]}:
        return True, "it acts after the first loss, and the others before it or not at all."
    if given - causes:
        return False, "give a set of names from the index of `effects`."
    return False, "which leaves the first loss alone, and changes a later one?"


@exercise("07-packs")
def _packs(answer: int, documents: Any) -> tuple[bool, str]:
    tokens = sum(map(len, documents[:]["input_ids"]))
    if answer == math.ceil(tokens / 480):
        return True, f"{tokens:,} tokens; only the last row is not full."
    if answer == tokens // 480:
        return False, "nearly: the rest needs a row as well."
    return False, f"there are {tokens:,} tokens, and a row takes 480."


@exercise("08-fits")
def _fits_here(answer: Iterable[str], planned: pd.DataFrame) -> tuple[bool, str]:
    methods = ["full", "lora", "qlora"]
    fitting = {method for method in methods if planned.loc["8,192 tokens", method] <= 16}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == fitting:
        return True, "activations alone take most of it; checkpointing would be the next thing."
    return False, "look at the last row of `planned`, in GiB."


@exercise("08-choice")
def _choice(answer: str, winners: pd.DataFrame) -> tuple[bool, str]:
    right, forgotten = winners["exact match"], winners["forgetting"]
    good = right >= right.max() - 0.02
    if answer == forgotten[good].idxmin():
        return True, f"{good.sum()} of the methods are so good, and this one forgets least."
    if answer in winners.index and not good[answer]:
        behind = 100 * (right.max() - right[answer])
        return False, f"{answer} is {behind:.1f} points below the best."
    return False, "first keep the rows that are good enough, then take the one that forgets least."


@exercise("08-peeking")
def _peeking(answer: int, everything: pd.DataFrame) -> tuple[bool, str]:
    groups = everything.groupby("method")
    chosen = (groups["validation loss"].idxmin(), groups["exact match"].idxmax())
    rates = [everything.loc[rows].set_index("method")["learning rate"] for rows in chosen]
    if answer == int((rates[0] != rates[1]).sum()):
        return True, "and their test figures would have been too good: they were chosen by them."
    return False, "of each method take the row with the lowest loss, and that with the best match."
