"""The faults of two answers to choose between: what makes a pair teach nothing, or another thing.

A pair is looked at as DPOTrainer of TRL 1.16 takes it: without a column of prompts, the prompt is
what both answers begin with; prompt and answer are rendered and tokenised together, cut at
max_length from the start, and a row whose prompt fills that is dropped.

Used by lessons: 01.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from preflight.dataset_check.contents import texts_of
from preflight.dataset_check.forms import Format, Row
from preflight.dataset_check.rendering import Renderer, settings
from preflight.dataset_check.report import Collector
from preflight.dataset_check.rows import Fault, plain, texts_in
from preflight.dataset_check.tokens import ended

SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
SCORES += (("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected"))
THOUGHT = re.compile(r"<think>.*?</think>", re.S)
ENOUGH = 20  # pairs, below which nothing is said of all of them together
# Of 20 fair throws, 18 or more fall alike in one of 2,500 cases; of 100, 90 never do.
ALMOST = 0.9
LONGER = 1.5  # times the characters of the other side, in the mean: a word more is no bias
NEARLY = 0.95
COUNTED = 10_000  # the first pairs, of which the same texts are counted
# Markup that an answer may begin with.
SIGNS: dict[str, Callable[[str], bool]] = {
    "is JSON": lambda text: text[:1] in "{[" and _is_json(text),
    "begins with { or [": lambda text: text[:1] in ("{", "["),
    "begins with a bullet or #": lambda text: text[:1] in ("-", "*", "#", "•"),
    "has several lines": lambda text: "\n" in text,
    "has a block of code": lambda text: "```" in text,
    "ends in . ! or ?": lambda text: text[-1:] in (".", "!", "?"),
    "begins with a capital letter": lambda text: text[:1].isupper(),
}


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it: texts, or lists of messages."""

    prompt: Any
    chosen: Any
    rejected: Any

    @property
    def answers(self) -> tuple[Any, Any]:
        """The two answers, the better one first."""
        return self.chosen, self.rejected

    @property
    def examples(self) -> list[Row]:
        """The rows of prompt and completion that it stands for, in the same order."""
        return [{"prompt": self.prompt, "completion": answer} for answer in self.answers]


def shared_start(chosen: Any, rejected: Any) -> int:
    """Return how long the start is that DPOTrainer takes for the prompt of both.

    The rule of trl.data_utils.extract_prompt, which leaves the last item to equal answers and the
    space before a word to the word.
    """
    shorter = min(len(chosen), len(rejected))
    for place in range(shorter):
        if chosen[place] != rejected[place]:
            return place - 1 if place and chosen[place - 1] == " " else place
    return max(shorter - 1, 0)


def pair_in(form: Format, row: Row) -> Pair | None:
    """Return the pair of a row of preference data; None where a value has another type."""
    better, worse = form.extract(row), form.worse.extract(row)
    if form.target == "prompt-completion":
        pair = Pair(better["prompt"], better["completion"], worse["completion"])
        prompt = pair.prompt
    else:
        chosen, rejected = (next(iter(one.values())) for one in (better, worse))
        if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
            return None
        start = shared_start(chosen, rejected)
        prompt = chosen[:start]
        pair = Pair(prompt, chosen[start:], rejected[start:])
    kinds = {type(one) for one in (prompt, pair.chosen, pair.rejected)}
    return pair if kinds in ({str}, {list}) else None


def as_pairs(form: Format, columns: Sequence[str], sample: Sequence[Row]) -> Format:
    """Return the form that DPOTrainer takes, of that which SFTTrainer would be given."""
    if form.worse is None:
        return Format("no pairs", "unknown", {}, convert=dict)

    def expand(row: Row) -> list[Row]:
        pair = pair_in(form, row)
        if pair is None:  # each answer for itself shows what is wrong with it
            return [form.extract(row), form.worse.extract(row)]
        return pair.examples if pair.prompt else []

    source = {"chosen": answer_column(form), "rejected": answer_column(form.worse)}
    if "prompt" in form.source:
        source = {"prompt": form.source["prompt"], **source}
    mapping, ready = "", "takes these" in form.note[1]
    if not ready and source["chosen"] == "chosen" and form.target != "prompt-completion":
        mapping = 'dataset = dataset.remove_columns("prompt")' if "prompt" in columns else ""
    elif not ready and _only_renamed(form, sample):
        renames = {old: new for new, old in source.items() if old != new}
        mapping = f"dataset = dataset.rename_columns({renames})" if renames else ""
    note = None if ready else ("mapping_needed", form.note[1])
    target = "prompt-completion"
    return replace(
        form, target=target, source=source, mapping=mapping, note=note, expand=expand, paired=True
    )


def _only_renamed(form: Format, sample: Sequence[Row]) -> bool:
    """Return whether only the columns have other names than DPOTrainer takes."""
    sides = [(one, answer_column(one)) for one in (form, form.worse)]
    return form.target == "messages" and all(
        row.get(name) == one.extract(row)["messages"] for row in sample for one, name in sides
    )


def answer_column(form: Format) -> str:
    """Return the column that the answer of a form comes from."""
    return form.source[[*form.source][-1]]


@dataclass
class PairFaults:
    """Looks at the pairs of a split, one after the other, and then at all of them together."""

    form: Format  # that SFTTrainer would take, with the worse answer's next to it
    renderer: Renderer | None
    max_length: int | None
    seen: set[bytes]  # of all splits
    count: int = 0
    longer: float = 0.0  # pairs in which the chosen answer is the longer one; ties are halves
    letters: list[int] = field(default_factory=lambda: [0, 0])
    texts: tuple[Counter[bytes], Counter[bytes]] = field(
        default_factory=lambda: (Counter(), Counter())
    )
    signs: Counter[tuple[str, bool]] = field(default_factory=Counter)
    around: int | None = None  # bytes that the chat template writes around the texts of a row

    def of(self, row: Row) -> Iterator[Fault]:
        """Yield what is wrong with the pair of a row."""
        form = self.form
        yield from score_faults(row)
        better, worse = (row.get(answer_column(one)) for one in (form, form.worse))
        pair = pair_in(form, row)
        if pair is None:
            return
        if better == worse:
            yield "equal_answers", better
            return
        if not pair.prompt and form.target != "prompt-completion":
            yield "no_shared_prompt", {"chosen": pair.chosen[:1], "rejected": pair.rejected[:1]}
            return
        chosen, rejected = said(pair.chosen), said(pair.rejected)
        self._count(chosen, rejected)
        if not rejected.strip() and not texts_in(pair.rejected)[1:] and chosen.strip():
            yield "empty_rejected", pair.rejected
        yield from self._alike(pair, row, chosen, rejected)
        prompt, *answers = (_key(one) for one in (pair.prompt, pair.chosen, pair.rejected))
        if prompt + answers[1] + answers[0] in self.seen and answers[0] != answers[1]:
            yield "reversed_pair", pair.chosen
        self.seen.add(prompt + answers[0] + answers[1])

    def _alike(self, pair: Pair, row: Row, chosen: str, rejected: str) -> Iterator[Fault]:
        near = _plain(texts_in(pair.chosen)) == _plain(texts_in(pair.rejected))
        same = _plain([THOUGHT.sub("", chosen)]) == _plain([THOUGHT.sub("", rejected)])
        tokens = self._tokens(
            pair, row, sure=near or same, start=chosen[: _alike_to(chosen, rejected)]
        )
        if tokens is None:
            if near:
                yield "nearly_equal_answers", pair.chosen
            return
        asked, one, other = tokens
        if one == other:
            yield "equal_rendered", pair.chosen
        elif near:
            yield "nearly_equal_answers", pair.chosen
        elif self.max_length and asked < self.max_length:
            if one[: self.max_length] == other[: self.max_length]:
                yield "equal_truncated", f"{len(one):,} and {len(other):,} tokens"

    def _tokens(
        self, pair: Pair, row: Row, *, sure: bool, start: str
    ) -> tuple[int, list[int], list[int]] | None:
        """Return the prompt's number of tokens and those of both answers, where it matters.

        A token has a byte or more. So answers that part before max_length bytes are not cut alike.
        """
        renderer, chat = self.renderer, isinstance(pair.prompt, list)
        if renderer is None or (chat and not renderer.template):
            return None
        try:
            options = settings(row) if chat else {}
            if chat and self.around is None:
                text = renderer.text(pair.prompt + pair.chosen, options)
                self.around = max(0, len(text) - len("".join(texts_in(pair.prompt + pair.chosen))))
            size = len("".join([*texts_in(pair.prompt), str(options), start]).encode())
            if not sure and size + 2 * (self.around or 0) < (self.max_length or float("inf")):
                return None
            if not chat:
                eos = renderer.tokenizer.eos_token or ""
                texts = [pair.prompt, *(ended(pair.prompt + one, eos) for one in pair.answers)]
                ids = renderer.tokenizer(texts, verbose=False)["input_ids"]
            else:
                asked = renderer.text(pair.prompt, options | {"add_generation_prompt": True})
                whole = [renderer.text(pair.prompt + one, options) for one in pair.answers]
                ids = renderer.tokens([asked, *whole])
        except Exception:  # what a template refuses is a finding of its own
            return None
        return len(ids[0]), ids[1], ids[2]

    def _count(self, chosen: str, rejected: str) -> None:
        self.count += 1
        sizes = len(chosen), len(rejected)
        self.longer += 0.5 * (sizes[0] >= sizes[1]) + 0.5 * (sizes[0] > sizes[1])
        for side, text in enumerate((chosen, rejected)):
            self.letters[side] += sizes[side]
            if self.count <= COUNTED:
                self.texts[side][_digest(text)] += 1
        chosen, rejected = chosen.strip(), rejected.strip()
        for name, has in SIGNS.items():
            sign = has(chosen), has(rejected)
            if sign[0] != sign[1]:
                self.signs[name, sign[0]] += 1

    def note(self, found: Collector) -> None:
        """Note what all pairs of the split show together."""
        if self.count < ENOUGH:
            return
        means = [letters / self.count for letters in self.letters]
        share = max(self.longer, self.count - self.longer) / self.count
        if share >= ALMOST and max(means) >= LONGER * min(means):
            side = "chosen" if means[0] > means[1] else "rejected"
            found.add("length_bias", example=(
                f"{side} is longer in {share:.0%} of {self.count:,} pairs: {means[0]:.0f} "
                f"characters chosen, {means[1]:.0f} rejected in the mean"
            ))  # fmt: skip
        for side, texts in zip(("chosen", "rejected"), self.texts, strict=True):
            most, counted = max(texts.values()), min(self.count, COUNTED)
            if most >= counted / 2:
                found.add("same_answer", example=f"{side}: {most:,} of {counted:,} are one text")
                return  # that it has another form is no news then
        for (name, better), count in self.signs.most_common(1):
            if count >= NEARLY * self.count:
                side = "chosen" if better else "rejected"
                text = f"only the {side} answer {name}: {count:,} of {self.count:,} pairs"
                found.add("told_apart", example=text)


def said(answer: Any) -> str:
    """Return the text of an answer."""
    return "\n".join(text for _, text in texts_of({"completion": answer}))


def score_faults(row: Row) -> Iterator[Fault]:
    """Yield a fault if the scores of a row do not say that the chosen answer is the better one."""
    for better, worse in SCORES:
        scores = row.get(better), row.get(worse)
        if all(type(score) in (int, float) for score in scores):
            if scores[0] < scores[1]:
                yield "scores_reversed", {better: scores[0], worse: scores[1]}
            elif scores[0] == scores[1]:
                yield "scores_equal", {better: scores[0], worse: scores[1]}
            return


def mark_fault(marks: Counter[bool]) -> Iterator[Fault]:
    """Yield a fault if all marks of unpaired data are the same."""
    if sum(marks.values()) >= ENOUGH and len(marks) == 1:
        mark, count = next(iter(marks.items()))
        yield "one_label", f"all {count:,} are {mark}"


def _alike_to(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # halving, since texts are long
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _plain(texts: list[str]) -> bytes:
    return plain([" ".join(texts)])  # however the texts are divided


def _digest(text: str) -> bytes:
    return blake2b(plain([text]), digest_size=8).digest()


def _key(value: Any) -> bytes:
    return _digest("\0".join(texts_in(value)))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
