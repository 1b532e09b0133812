"""What is wrong with the rows that a trainer is given.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datasets import Dataset
from torch import nn

from preflight.findings import Finding, finding

IGNORED = -100  # the label that the loss skips
NAMED = 5  # rows that a finding names


def row_findings(rows: object, model: nn.Module) -> Iterator[Finding]:
    if not isinstance(rows, Dataset):  # what streams is not read in advance
        return
    if not len(rows):
        yield finding(
            "no_rows",
            "train_dataset has 0 rows. Allowed is 1 or more; SFTTrainer drops rows of which "
            "max_length leaves no answer.",
            "Raise max_length; dataset_check.check(dataset, tokenizer) names the rows.",
        )
    if "labels" in rows.column_names:
        # A causal model predicts from the second token on.
        first = int(type(model).__name__.endswith("ForCausalLM"))
        empty = [
            place
            for place, labels in enumerate(rows.with_format(None)["labels"])
            if isinstance(labels, list) and all(label == IGNORED for label in labels[first:])
        ]
        if empty:
            what = (
                "Rows in which no token is predicted: each label is masked (-100), or there is one "
                "token alone. They teach nothing, and a batch of them logs a loss of 0.0."
            )
            fix = "Raise max_length, fix the column that masks them, or drop the rows."
            yield row_finding("no_labels", what, fix, empty)


def row_finding(code: str, what: str, fix: str, places: Sequence[int]) -> Finding:
    """Return an error in rows of the training set, with the numbers of the first ones."""
    return Finding("error", code, what, len(places), tuple(places[:NAMED]), fix, "train")
