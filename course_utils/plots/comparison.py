"""What a comparison costs and gives: trade-offs, their Pareto front, loss curves over seeds.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from course_utils.plots.style import MARKERS, PALETTE, figure_axes, label_plainly

# What the numbers of a column are, where its name does not say so.
UNITS = {
    "exact match": "share of messages",
    "fields, unseen": "share that is right",
    "forgetting": "nats per token",
    "loss": "nats per token",
    "trainable": "parameters",
}


def pareto_front(
    table: pd.DataFrame, cost: str, quality: str = "exact match", lower_is_better: bool = False
) -> list[str]:
    """Return the rows that no other row beats, by rising cost.

    A row is beaten by one that costs no more and is at least as good, and better in one of the two.

    Raises:
        ValueError: if the table lacks a column.
    """
    _require_columns(table, cost, quality)
    sign = -1.0 if lower_is_better else 1.0
    known = table[[cost, quality]].dropna()
    rows = [(name, row[cost], sign * row[quality]) for name, row in known.iterrows()]
    front = [
        (name, price)
        for name, price, good in rows
        if not any(p <= price and g >= good and (p < price or g > good) for _, p, g in rows)
    ]
    return [name for name, _ in sorted(front, key=lambda pair: pair[1])]


def trade_off(
    table: pd.DataFrame,
    cost: str,
    quality: str = "exact match",
    title: str = "",
    log: bool = False,
    lower_is_better: bool = False,
) -> Figure:
    """Return a quality over a cost, a point per row of a comparison's table.

    Bars show the spread over seeds (columns with ±); a line joins the Pareto front, the rows that
    no other beats, if it has more than one. `log` makes the cost's axis logarithmic;
    `lower_is_better` is for a loss or a forgetting in the place of the quality.

    Raises:
        ValueError: if the table lacks a column, or no row has both figures.
    """
    _require_columns(table, cost, quality)
    known = table.dropna(subset=[cost, quality])
    if known.empty:
        raise ValueError(
            f"No row has both {cost!r} and {quality!r}: every run failed. The table's "
            "column 'failed' says how."
        )
    front = pareto_front(known, cost, quality, lower_is_better)
    figure, axes = figure_axes(4.0)
    line = known.loc[front]
    if len(front) > 1:
        axes.plot(line[cost], line[quality], color="#999999", zorder=0, label="Pareto front")
    for i, (name, row) in enumerate(known.iterrows()):
        colour = PALETTE[i % len(PALETTE)]
        axes.errorbar(
            row[cost],
            row[quality],
            xerr=_spread(row, cost),
            yerr=_spread(row, quality),
            color=colour,
            capsize=2,
            elinewidth=1,
            zorder=1,
        )
        axes.plot(
            row[cost],
            row[quality],
            color=colour,
            marker=_marker(i),
            markersize=7,
            linestyle="none",
            label=name,
        )
    if log:
        axes.set_xscale("log")
    axes.margins(0.08)
    axes.set(title=title or f"{quality} and {cost}", xlabel=_label(cost), ylabel=_label(quality))
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def summarise_trade_off(
    table: pd.DataFrame, cost: str, quality: str = "exact match", lower_is_better: bool = False
) -> str:
    """Return what `trade_off` shows in one line of text."""
    front = pareto_front(table, cost, quality, lower_is_better)
    points = "; ".join(
        f"{name} ({quality} {table.loc[name, quality]:.3g} at {cost} {table.loc[name, cost]:,.4g})"
        for name in front
    )
    return f"Not beaten by any other, from the least {cost} on: {points}."


def loss_bands(curves: Mapping[str, pd.DataFrame], title: str = "Loss", log: bool = True) -> Figure:
    """Return a line per experiment, its mean over seeds, in a band from the lowest to the highest.

    Each table has losses in nats per token, a column per seed, indexed by step, as `compare.curves`
    gives them.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("No curves were given. Pass what compare.curves returns.")
    figure, axes = figure_axes(3.6)
    for i, (name, seeds) in enumerate(curves.items()):
        colour = PALETTE[i % len(PALETTE)]
        axes.fill_between(
            seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.2
        )
        axes.plot(
            seeds.index,
            seeds.mean(axis=1),
            color=colour,
            marker=_marker(i),
            markersize=4,
            label=name,
        )
    if log:
        axes.set_yscale("log")
        label_plainly(axes.yaxis)
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def summarise_bands(curves: Mapping[str, pd.DataFrame]) -> str:
    """Return what `loss_bands` shows in one line of text."""
    ends = [
        f"{name} {last.mean():.4f} ({last.min():.4f} to {last.max():.4f})"
        for name, last in ((name, seeds.iloc[-1]) for name, seeds in curves.items())
    ]
    return f"At the end, mean over seeds and range: {'; '.join(ends)}."


def _label(column: str) -> str:
    return f"{column} ({UNITS[column]})" if column in UNITS else column


def _marker(number: int) -> str:
    """Return a marker that no other row of the same colour has."""
    return MARKERS[(number + number // len(PALETTE)) % len(MARKERS)]


def _spread(row: pd.Series, name: str) -> float:
    spread = row.get(f"{name} ±", 0.0)
    return 0.0 if pd.isna(spread) else float(spread)


def _require_columns(table: pd.DataFrame, *names: str) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"The table has no column {', '.join(map(repr, missing))}. It has "
            f"{', '.join(table.columns)}. Choose from these."
        )
