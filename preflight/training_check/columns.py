"""Columns of the rows that SFTTrainer drops, overrules or cuts without a word.

trl 1.16 keeps the columns that it was given next to those it makes; packed rows have lost them.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer

from preflight.findings import Finding, finding
from preflight.training_check.probing import is_a
from preflight.training_check.rows import IGNORED, row_finding


def column_findings(trainer: Trainer) -> Iterator[Finding]:
    rows = trainer.train_dataset
    if not is_a(trainer, "SFTTrainer") or not isinstance(rows, Dataset) or not len(rows):
        return
    rows = rows.with_format(None)
    names, field = {*rows.column_names}, trainer.args.dataset_text_field
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if trainer.args.remove_unused_columns and {"attention_mask", "labels"} <= names:
        yield from _padding(rows)
    taken = {"messages", "prompt", *({field} - {"text"})} & names
    formatted = getattr(trainer, "_formatting_func", None) is not None and "text" in names
    if formatted and taken:
        yield finding(
            "formatting_func",
            "formatting_func was run and its text is not used: the tokens were made from the "
            f"column {min(taken)!r}. SFTTrainer takes messages, prompt and completion, and "
            "dataset_text_field before that text.",
            f"Give rows without the column {min(taken)!r}, or do without formatting_func.",
            "warning",
        )
    elif {field, "completion"} <= names:
        yield from _unended(rows, field, tokenizer)
    if trainer.args.packing and trainer.args.packing_strategy == "bfd" and "seq_lengths" in names:
        yield from _cut(rows, trainer.args.max_length, tokenizer)


def _padding(rows: Dataset) -> Iterator[Finding]:
    places = [
        place
        for place, (mask, labels) in enumerate(
            zip(rows["attention_mask"], rows["labels"], strict=True)
        )
        if 0 in mask and _harmful(mask, labels)
    ]
    if places:
        yield row_finding(
            "padded_rows",
            "Rows are padded already, and SFTTrainer drops their attention_mask: the padding is "
            "attended to like text, and learned where its label is not -100.",
            "Give rows without padding: SFTTrainer pads each batch itself.",
            places,
        )


def _harmful(mask: Sequence[int], labels: Sequence[int]) -> bool:
    """Return whether padding is learned, or stands before the text, which sees it then."""
    learned = any(not seen and label != IGNORED for seen, label in zip(mask, labels, strict=False))
    return learned or any(mask[mask.index(0) :])


def _unended(rows: Dataset, field: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    end = tokenizer.eos_token
    places = [
        place
        for place, text in enumerate(rows["completion"])
        if isinstance(text, str) and end and not text.endswith(end)
    ]
    if places:
        yield row_finding(
            "completion_end",
            f"Completions end without {end}: next to prompt and completion stands a column "
            f"{field!r}, and SFTTrainer adds the token there. A model trained so does not learn "
            "to stop.",
            f"Drop the column: dataset.remove_columns({field!r}).",
            places,
        )


def _cut(rows: Dataset, length: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    last: list[tuple[int, int]] = []  # of each text in the packs: its length, its last token
    for ids, sizes in zip(rows["input_ids"], rows["seq_lengths"], strict=True):
        place = 0
        for size in sizes:
            place += size
            last.append((size, ids[place - 1]))
    ends = {tokenizer.eos_token_id, *(token for size, token in last if size < length)}
    cut = sum(size == length and token not in ends for size, token in last)
    if cut:
        yield finding(
            "packing_cut",
            f"packing_strategy='bfd' cuts each text above max_length={length}, its end included, "
            f"and says nothing: {cut:,} of {len(last):,} texts are of that length exactly and do "
            "not end as a text does.",
            'Raise max_length, or keep all tokens with packing_strategy="bfd_split".',
            "warning",
        )
