"""Where a model is wrong: what it said against what was right.

Used by lessons: all.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from course_utils.plots.style import figure_axes


def confusion(table: pd.DataFrame, title: str = "True against predicted") -> Figure:
    """Return a confusion matrix: rows are what was right, columns what the model said.

    `table` holds counts, as `pandas.crosstab(true, predicted)` gives them. A cell's shade is its
    share of the row, its number the count; where both names are the same, the answer was right.

    Raises:
        ValueError: if the table is empty.
    """
    _require_counts(table)
    figure, axes = figure_axes(1.4 + 0.36 * len(table))
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(table.to_numpy()):
        for j, count in enumerate(row):
            if count:
                same = table.index[i] == table.columns[j]
                axes.text(
                    j,
                    i,
                    f"{count}",
                    ha="center",
                    va="center",
                    color="white" if shares[i, j] > 0.6 else "black",
                    weight="normal" if same else "bold",
                )
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
    if table.shape[1] > 6:  # many names, which would run into each other
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    return figure


def summarise_confusion(table: pd.DataFrame) -> str:
    """Return what `confusion` shows in one line of text.

    Raises:
        ValueError: if the table is empty.
    """
    _require_counts(table)
    counts = table.stack()
    same = counts.index.get_level_values(0) == counts.index.get_level_values(1)
    wrong = counts[~same]
    right, total = int(counts[same].sum()), int(counts.sum())
    if not wrong.any():
        return f"{right} of {total} right, none confused."
    true, predicted = wrong.idxmax()
    return (
        f"{right} of {total} right. Most often confused: {true} was called {predicted} "
        f"({wrong.max()} of {int(table.loc[true].sum())})."
    )


def _require_counts(table: pd.DataFrame) -> None:
    if not table.to_numpy().sum():
        raise ValueError(
            "The table has no counts. Pass pandas.crosstab(true, predicted) of at least one answer."
        )
