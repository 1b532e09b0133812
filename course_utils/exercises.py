"""Checks for the "Your turn" cells: each tells the reader what is right, or where to look again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from course_utils.memory import Fits


@dataclass(frozen=True)
class Verdict:
    """The outcome: `status` is "unanswered", "right" or "not yet"; `message` says why."""

    status: str
    message: str

    def __repr__(self) -> str:
        start = {"unanswered": "Not answered yet", "right": "Right", "not yet": "Not yet"}
        return f"{start[self.status]}: {self.message}"


Check = Callable[..., tuple[bool, str]]
_CHECKS: dict[str, Check] = {}


def _exercise(key: str) -> Callable[[Check], Check]:
    """Register the decorated function as the check of one exercise.

    It takes the answer, and as keywords what the lesson's own run measured; it returns whether the
    answer is right, and either why it is right or a hint.
    """

    def register(function: Check) -> Check:
        _CHECKS[key] = function
        return function

    return register


def keys() -> list[str]:
    """Return the keys of all exercises, such as "00-trainable", in the order of the lessons."""
    return sorted(_CHECKS)


def check(key: str, answer: Any, **measured: Any) -> Verdict:
    """Return the verdict on an answer; `...` counts as not answered yet.

    `measured` are values from the lesson that the check compares with, named in the lesson's cell.

    Raises:
        ValueError: if there is no exercise of that key.
    """
    if key not in _CHECKS:
        raise ValueError(
            f"There is no exercise {key!r}. The exercises are: {', '.join(keys())}. "
            "Use the key that stands in the lesson's cell."
        )
    if answer is ...:
        return Verdict("unanswered", "put your answer in place of the three dots and run the cell.")
    try:
        right, message = _CHECKS[key](answer, **measured)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        # An answer of another kind than asked for, such as a word where a number is wanted.
        kind = type(answer).__name__
        return Verdict(
            "not yet", f"the answer is of type {kind}, which does not fit. Read the task again."
        )
    return Verdict("right" if right else "not yet", message)


@_exercise("00-rank")
def _rank(answer: int, trainable: int) -> tuple[bool, str]:
    if answer == 2 * trainable:
        return True, "both matrices grow with the rank, so twice the rank trains twice as many."
    return False, f"r=8 trains {trainable:,} parameters, and both matrices grow with the rank."


@_exercise("00-field")
def _field(answer: str, accuracy: pd.Series) -> tuple[bool, str]:
    if answer in accuracy.index and accuracy[answer] == accuracy.min():
        return True, f"{answer} is right in only {accuracy.min():.1%} of the unseen messages."
    return (
        False,
        f"find the smallest number in the column 'unseen'; fields: {', '.join(accuracy.index)}.",
    )


@_exercise("00-speed")
def _speed(answer: float, metrics: dict[str, float], rows: int) -> tuple[bool, str]:
    seconds = metrics["train_runtime"] / (rows * metrics["epoch"])
    if math.isclose(answer, seconds, rel_tol=0.05):
        return True, f"{seconds * 1000:.1f} milliseconds a row, forward and backward."
    return False, "divide train_runtime, in seconds, by rows times epochs."


@_exercise("01-trained")
def _trained(answer: int, labels: Iterable[int]) -> tuple[bool, str]:
    count = sum(int(label) != -100 for label in labels)
    if answer == count:
        return True, "a label of -100 carries no loss; all others do."
    return False, "count the labels that are not -100."


@_exercise("01-length")
def _length(answer: int, lengths: Sequence[int]) -> tuple[bool, str]:
    longest = int(max(lengths))
    if answer == longest + 1:
        return True, "the longest row and the end-of-text token that the trainer adds."
    if answer == longest:
        return False, "nearly: the trainer adds a token at the end of each row."
    return False, "find the longest row, and think of what the trainer adds."


@_exercise("01-rename")
def _rename(answer: dict[str, str]) -> tuple[bool, str]:
    if answer == {"question": "prompt", "reply": "completion"}:
        return True, "rename_columns takes old names as keys and new names as values."
    return False, "old names are the keys; the trainer knows the names prompt and completion."


@_exercise("02-adamw")
def _adamw(answer: float, per_parameter: dict[str, float]) -> tuple[bool, str]:
    if math.isclose(answer, round(sum(per_parameter.values())), rel_tol=0.02):
        return True, "10⁹ parameters of that many bytes each are that many GB, before any text."
    return False, "add up the three numbers of bytes that were measured for each parameter."


@_exercise("02-largest")
def _largest(answer: str, at_peak: Mapping[str, int]) -> tuple[bool, str]:
    if answer in at_peak and at_peak[answer] == max(at_peak.values()):
        return True, f"{answer} take {at_peak[answer] / sum(at_peak.values()):.0%} of the peak."
    return False, f"find the largest value in step.at_peak; categories: {', '.join(at_peak)}."


@_exercise("02-gpu")
def _gpu(answer: str, where: Fits) -> tuple[bool, str]:
    enough = [row.gpu for row in where.rows if row.method == "lora" and row.fits]
    smallest = min(enough, key=lambda gpu: gpu.memory)
    if answer == smallest.name:
        return True, f"it gives a program {smallest.memory:.1f} GiB."
    return False, "look at the rows of the method lora that fit, and compare the memory they have."


@_exercise("03-bits")
def _bits(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 4 + 8 / 128 + 32 / (128 * 256), abs_tol=5e-4):
        return (
            True,
            "the scales now cost a sixteenth of a bit, and their own scales next to nothing.",
        )
    if math.isclose(answer, 4 + 32 / 128, abs_tol=5e-4):
        return False, "that is without double quantization: the scales have 8 bits each, not 32."
    return False, "add the bits of a code, of a scale over 128 weights, and of a scale of scales."


@_exercise("03-config")
def _config(answer: Any) -> tuple[bool, str]:
    wanted = {
        "load_in_4bit": "True",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": "True",
        "bnb_4bit_compute_dtype": "torch.bfloat16",
    }
    wrong = [name for name, value in wanted.items() if str(getattr(answer, name)) != value]
    if wrong:
        return False, f"look at {', '.join(wrong)}; the table above has the names and their values."
    return True, "all four have to be said: each has another default."


@_exercise("03-levels")
def _levels(answer: str, weights: Any) -> tuple[bool, str]:
    from course_utils import quantization

    entropies = {}
    for kind in ("nf4", "fp4", "int4"):
        codes = quantization.quantize(weights, kind).codes
        shares = codes.long().bincount() / codes.numel()
        entropies[kind] = float(-(shares * shares.clamp(min=1e-12).log2()).sum())
    worth = ", ".join(f"{kind} {bits:.2f}" for kind, bits in entropies.items())
    if answer == max(entropies, key=lambda kind: entropies[kind]):
        return True, f"of their 4 bits the codes are worth: {worth}."
    return False, "count the codes with torch.bincount; the entropy is -sum(share * log2(share))."


@_exercise("04-rank")
def _adapter_parameters(answer: int, config: Any) -> tuple[bool, str]:
    hidden, layers = config.hidden_size, config.num_hidden_layers
    values = config.num_key_value_heads * config.head_dim
    per_rank = layers * ((hidden + hidden) + (hidden + values))
    if answer == 16 * per_rank:
        return True, "r · (inputs + outputs) for each target, times the number of layers."
    if answer == per_rank:
        return False, "that is rank 1. What does the rank do?"
    return (
        False,
        f"q has {hidden:,} inputs and outputs; v has {hidden:,} inputs, {values:,} outputs.",
    )


@_exercise("04-alpha")
def _same_alpha(answer: float) -> tuple[bool, str]:
    if math.isclose(answer, 128):
        return True, "16/√64 = 2 is the scale, and 128/64 is the same."
    return False, "find the scale that rsLoRA applies, then the alpha whose alpha/r gives it."


@_exercise("04-targets")
def _targets(answer: Sequence[str], config: Any) -> tuple[bool, str]:
    from course_utils import modules

    given = {answer} if isinstance(answer, str) else {*answer}
    every = {*modules.suggest(config).target_modules}
    if given == every:
        return True, "two of its four names stand for several matrices that were fused into one."
    if given - every:
        return False, f"the model has no linear layer called {', '.join(sorted(given - every))}."
    return False, f"{len(every - given)} kinds of linear layer are missing."


@_exercise("05-virtual")
def _virtual_tokens(answer: int, config: Any) -> tuple[bool, str]:
    if answer == 20 * config.hidden_size:
        return True, "an embedding for each virtual token, and nothing in the layers."
    if answer == 20 * config.hidden_size * config.num_hidden_layers:
        return False, "prompt tuning puts its virtual tokens below the first layer alone."
    return False, "how many numbers is one embedding in this model?"


@_exercise("05-head")
def _head(answer: Any) -> tuple[bool, str]:
    if getattr(answer.task_type, "value", answer.task_type) != "SEQ_CLS":
        return False, "sorting whole messages into classes has a task type of its own."
    if "classification_head" not in (answer.modules_to_save or []):
        return False, "peft does not know the name of this head, so the config has to say it."
    return True, "the head is trained and saved, whatever its name."


@_exercise("05-merge")
def _unmergeable(answer: Sequence[str], merge: pd.Series) -> tuple[bool, str]:
    wanted = {name for name, outcome in merge.items() if isinstance(outcome, str)}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == wanted:
        return True, "they have no weights that could go into the model's."
    if given - {*merge.index}:
        return False, f"give names from the index of the table: {', '.join(merge.index)}."
    return False, f"{len(wanted - given)} are missing, {len(given - wanted)} can be merged."


@_exercise("06-steps")
def _steps(answer: int) -> tuple[bool, str]:
    batches = math.ceil(1200 / 4)
    if answer == 3 * math.ceil(batches / 8):
        return True, "38 an epoch: what is left at its end makes an update of its own."
    if answer == 3 * (batches // 8):
        return False, "nearly: 300 batches do not divide by 8, and those left over count too."
    return False, "count the batches of an epoch, then the updates that they make, then the epochs."


@_exercise("06-warmup")
def _warmup(answer: int) -> tuple[bool, str]:
    warmup = math.ceil(0.05 * 200)
    if answer == warmup + 1:
        return True, "ten steps of warm-up, of which the first has a learning rate of 0."
    if answer == warmup:
        return False, "nearly: the first step of a warm-up has a learning rate of 0."
    return False, "a warmup_steps below 1 is a share of the steps."


@_exercise("06-translate")
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


@_exercise("07-names")
def _new_names(answer: Mapping[str, str]) -> tuple[bool, str]:
    wanted = {"tokenizer": "processing_class", "max_seq_length": "max_length"}
    if dict(answer) == wanted:
        return True, "the first is the trainer's own, the second belongs to SFTConfig."
    wrong = [old for old in wanted if answer.get(old) != wanted[old]]
    return False, f"look again at {', '.join(wrong) or 'the old names'} in the mended call."


@_exercise("07-cause")
def _cause(answer: Iterable[str], effects: pd.DataFrame) -> tuple[bool, str]:
    same_start = effects["first loss off by"].abs() < 1e-6
    parted = effects["largest difference"] > 1e-6
    given, causes = {answer} if isinstance(answer, str) else {*answer}, {*effects.index}
    if given == {*effects.index[same_start & parted]}:
        return True, "it acts after the first loss, and the others before it or not at all."
    if given - causes:
        return False, "give a set of names from the index of `effects`."
    return False, "which leaves the first loss alone, and changes a later one?"


@_exercise("07-packs")
def _packs(answer: int, documents: Any) -> tuple[bool, str]:
    tokens = sum(map(len, documents[:]["input_ids"]))
    if answer == math.ceil(tokens / 480):
        return True, f"{tokens:,} tokens; only the last row is not full."
    if answer == tokens // 480:
        return False, "nearly: the rest needs a row as well."
    return False, f"there are {tokens:,} tokens, and a row takes 480."


@_exercise("08-fits")
def _fits_here(answer: Iterable[str], planned: pd.DataFrame) -> tuple[bool, str]:
    methods = ["full", "lora", "qlora"]
    fitting = {method for method in methods if planned.loc["8,192 tokens", method] <= 40}
    given = {answer} if isinstance(answer, str) else {*answer}
    if given == fitting:
        return True, "activations alone take most of it; checkpointing would be the next thing."
    return False, "look at the last row of `planned`, in GiB."


@_exercise("08-choice")
def _choice(answer: str, winners: pd.DataFrame) -> tuple[bool, str]:
    peak, quality = winners["peak MiB"], winners["fields, unseen"]
    frugal = peak <= 1.03 * peak.min()
    if answer == quality[frugal].idxmax():
        return (
            True,
            f"{frugal.sum()} of the methods are so frugal, and this one is best.",
        )
    if answer in winners.index and not frugal[answer]:
        return False, f"{answer} takes {peak[answer] / peak.min() - 1:.0%} more than the lowest."
    return False, "first keep the rows with a low enough peak, then take the best of them."


@_exercise("08-peeking")
def _peeking(answer: int, everything: pd.DataFrame) -> tuple[bool, str]:
    groups = everything.groupby("method")
    chosen = (groups["validation loss"].idxmin(), groups["exact match"].idxmax())
    rates = [everything.loc[rows].set_index("method")["learning rate"] for rows in chosen]
    if answer == int((rates[0] != rates[1]).sum()):
        return True, "and their test figures would have been too good: they were chosen by them."
    return False, "of each method take the row with the lowest loss, and that with the best match."
