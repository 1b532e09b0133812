"""Figures for the lessons: readable at notebook width, colours safe for the colour-blind.

Each takes a table that another module returns and gives a matplotlib `Figure`; the function named
after it with `summarise` says in a line of text what it shows.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, NullLocator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from course_utils.memory import StepMemory
    from course_utils.quantization import QuantizationReport

# Okabe and Ito's palette (Color Universal Design, 2008), without its black and its pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
# What the numbers of a column are, where its name does not say so.
UNITS = {
    "exact match": "share of messages",
    "fields, unseen": "share that is right",
    "forgetting": "nats per token",
    "loss": "nats per token",
    "trainable": "parameters",
}


class PlainNumbers(LogFormatter):
    """Labels 0.1, 1, 10, where LogFormatter writes 1e-01 next to 1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis by numbers, also between powers of ten."""
    axis.set_major_formatter(PlainNumbers())
    axis.set_minor_formatter(PlainNumbers(minor_thresholds=(1, 0.4)))


def figure_axes(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the lessons' width, `height` inches high."""
    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    # Closed at once, so that a notebook shows it only where a cell returns it.
    plt.close(figure)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(i: int) -> dict[str, str]:
    """Return the colour of the i-th line and a marker that no other line of that colour has."""
    marker = MARKERS[(i + i // len(PALETTE)) % len(MARKERS)]
    return {"color": PALETTE[i % len(PALETTE)], "marker": marker}


def loss_curves(
    curves: Mapping[str, pd.Series],
    title: str = "Training loss",
    ylabel: str = "loss (nats per token)",
) -> Figure:
    """Return a figure with one line per curve.

    Each curve is a series of losses in nats per token, or of what `ylabel` says, indexed by the
    training step. Lines differ in colour and in marker, and each is named at its end.
    """
    figure, axes = figure_axes(3.2)
    for i, (name, curve) in enumerate(curves.items()):
        every = max(1, len(curve) // 12)
        axes.plot(curve.index, curve, **_line(i), markersize=4, markevery=every, label=name)
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    if len(curves) > 4:  # inside, so many names would cover lines
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    elif len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def bars(values: Mapping[str, float], title: str, xlabel: str, form: str = "{:.2f}") -> Figure:
    """Return horizontal bars, each with its value written next to it in the given format."""
    figure, axes = figure_axes(0.9 + 0.45 * len(values))
    drawn = axes.barh(list(values), list(values.values()), color=PALETTE[0], height=0.6)
    axes.bar_label(drawn, labels=[form.format(v) for v in values.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=title, xlabel=xlabel)
    return figure


def sweep(
    lines: Mapping[str, pd.Series],
    title: str,
    xlabel: str,
    ylabel: str = "validation loss (nats per token)",
    log: str = "xy",
    noise: tuple[float, float] | None = None,
) -> Figure:
    """Return a quality against a setting that was swept, one line for each series.

    A series holds the quality, indexed by the setting. `log` names the logarithmic axes: "xy", "x",
    "y" or "". `noise` is shaded: the lowest and highest value that one setting gave by seed alone.

    Raises:
        ValueError: if there is nothing to draw, or `log` names another axis.
    """
    if not any(len(line) for line in lines.values()) or log not in ("xy", "x", "y", ""):
        raise ValueError(
            f"{len(lines)} lines were given, and log={log!r}. There has to be a line with a point, "
            'and log is one of "xy", "x", "y" and "". Pass a series for each line.'
        )
    figure, axes = figure_axes(3.4)
    for i, (name, line) in enumerate(lines.items()):
        axes.plot(line.index, line, **_line(i), label=name)
    if noise:
        axes.axhspan(*noise, color="#999999", alpha=0.3, linewidth=0, label="seeds alone")
    settings = sorted({x for line in lines.values() for x in line.index})
    if "x" in log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PlainNumbers())
    if "y" in log:
        axes.set_yscale("log")
        label_plainly(axes.yaxis)
    if len(settings) <= 8:  # as they were set, instead of powers of ten
        axes.set_xticks(settings, [f"{x:g}" for x in settings])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(lines) > 1 or noise:
        axes.legend(frameon=False)
    return figure


def summarise_sweep(lines: Mapping[str, pd.Series]) -> str:
    """Return what `sweep` shows in one line of text."""
    return " ".join(
        f"{name}: lowest {line.min():.4f} at {line.idxmin():g}, highest {line.max():.4f} at "
        f"{line.idxmax():g}."
        for name, line in lines.items()
    )


def quantization_errors(
    reports: Sequence[QuantizationReport], title: str = "Rounding errors"
) -> Figure:
    """Return how the errors of each quantization are spread, one outline per report.

    Lines differ in colour and in dashes; the legend has each one's bits per parameter.

    Raises:
        ValueError: if there is no report.
    """
    if not reports:
        raise ValueError("No reports were given. Pass a list of what quantization.explore returns.")
    figure, axes = figure_axes(3.2)
    for i, report in enumerate(reports):
        width = report.edges[1] - report.edges[0]
        density = [count / report.parameters / width for count in report.counts]
        axes.stairs(
            density,
            report.edges,
            color=PALETTE[i % len(PALETTE)],
            linestyle=("-", "--", "-.", ":")[i % 4],
            linewidth=1.8,
            label=f"{report.name}: {report.bits_per_parameter:.3g} bits",
        )
    axes.set(title=title, xlabel="error (in units of the weights)", ylabel="density")
    # Two long labels do not fit side by side.
    columns = 2 if max(len(report.name) for report in reports) < 25 else 1
    figure.legend(loc="outside lower center", ncols=min(len(reports), columns), frameon=False)
    return figure


def summarise_errors(reports: Sequence[QuantizationReport]) -> str:
    """Return what `quantization_errors` shows in one line of text."""
    parts = [
        f"{report.name} {report.relative:.2%} at {report.bits_per_parameter:.3g} bits"
        for report in sorted(reports, key=lambda report: report.relative)
    ]
    return f"RMS error in relation to the weights: {'; '.join(parts)}."


def summarise(curve: pd.Series) -> str:
    """Return a loss curve in one line of text, for those who do not see the figure."""
    if curve.empty:
        return "No loss was logged."
    first, last = curve.iloc[0], curve.iloc[-1]
    word = "fell" if last < first else "did not fall"
    start, end = curve.index[0], curve.index[-1]
    return f"Loss {word} from {first:.3f} (step {start}) to {last:.3f} (step {end})."


class LiveLoss(TrainerCallback):
    """Draws the training loss while a trainer of transformers runs.

    In a notebook it is one figure that grows; elsewhere one line of text each time the loss is
    logged. The curve stays in `curve`, a series of losses indexed by step.
    """

    def __init__(self, title: str = "Training loss") -> None:
        self.title = title
        self.curve = pd.Series(dtype=float, name="loss")
        self._handle: DisplayHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.curve = pd.Series(dtype=float, name="loss")
        self._handle = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" not in logs or not state.is_world_process_zero:
            return
        self.curve.loc[state.global_step] = float(logs["loss"])
        if get_ipython() is None:
            print(f"step {state.global_step} of {state.max_steps}: loss {self.curve.iloc[-1]:.3f}")
            return
        figure = loss_curves({self.title: self.curve}, self.title)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            print(summarise(self.curve))


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
        point, look = (row[cost], row[quality]), _line(i)
        spread = {"xerr": _spread(row, cost), "yerr": _spread(row, quality)}
        axes.errorbar(*point, **spread, color=look["color"], capsize=2, elinewidth=1, zorder=1)
        axes.plot(*point, **look, markersize=7, linestyle="none", label=name)
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
        look, low, high = _line(i), seeds.min(axis=1), seeds.max(axis=1)
        axes.fill_between(seeds.index, low, high, color=look["color"], alpha=0.2)
        axes.plot(seeds.index, seeds.mean(axis=1), **look, markersize=4, label=name)
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
                colour = "white" if shares[i, j] > 0.6 else "black"
                weight = "normal" if table.index[i] == table.columns[j] else "bold"
                axes.text(j, i, f"{count}", ha="center", va="center", color=colour, weight=weight)
    # Many names would run into each other.
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    turned = slanted if table.shape[1] > 6 else {}
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns], **turned)
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
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


def memory_bars(
    predicted: Mapping[str, StepMemory],
    measured: Mapping[str, StepMemory] | None = None,
    title: str = "Memory at the peak of a training step",
) -> Figure:
    """Return a bar for each named step, divided by category, with the measured one below it.

    Categories differ in colour and in hatching, parts that are wide enough carry their size, and
    every bar ends with its sum. A measured step needs the name of a predicted one.

    Raises:
        ValueError: if there is no step, or a measured one has no predicted counterpart.
    """
    measured = measured or {}
    if not predicted or set(measured) - set(predicted):
        raise ValueError(
            f"Predicted are {list(predicted) or 'none'}, measured {list(measured)}. Each measured "
            "step needs a predicted one of the same name. Pass both under one name."
        )
    bars = []
    for name, step in predicted.items():
        bars.append((f"{name}\npredicted" if measured else name, step))
        if name in measured:
            bars.append((f"{name}\nmeasured", measured[name]))
    peak = max(step.peak for _, step in bars)
    unit, size = _unit(peak)
    figure, axes = figure_axes(1.4 + 0.5 * len(bars))
    for row, (_, step) in enumerate(bars):
        left = 0.0
        for i, held in enumerate(step.at_peak.values()):
            part = axes.barh(row, held / size, left=left, height=0.7, **_look(i))
            if held > 0.09 * peak:
                words = [f"{held / size:.1f}"]
                axes.bar_label(part, words, label_type="center", fontsize=8, bbox=label_box())
            left += held / size
        axes.text(left + 0.01 * peak / size, row, f"{left:.1f} {unit}", va="center")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit, xlim=(0, 1.15 * peak / size))
    _category_legend(figure, [step.at_peak for _, step in bars])
    return figure


def memory_over_step(step: StepMemory, title: str = "Memory over a training step") -> Figure:
    """Return the life of a step's memory as stacked areas by category, its phases marked."""
    unit, size = _unit(step.peak)
    figure, axes = figure_axes(3.6)
    samples = [sample for sample in step.timeline if sample.phase != "load"]
    for i, category in enumerate(step.at_peak):
        look, below = _look(i), [sum(list(s.bytes.values())[:i]) / size for s in samples]
        above = [low + s.bytes[category] / size for low, s in zip(below, samples, strict=True)]
        axes.fill_between(range(len(samples)), below, above, linewidth=0, **look)
    phases = [sample.phase for sample in samples]
    for phase in dict.fromkeys(phases):
        start, width = phases.index(phase), phases.count(phase)
        if start:
            axes.axvline(start, color="black", linewidth=1, linestyle="--")
        height = 1.02 if width > 0.1 * len(phases) else 1.08  # a narrow one above its neighbours
        place = axes.get_xaxis_transform()
        axes.text(start + width / 2, height, phase, ha="center", transform=place)
    axes.set_title(title, pad=30)
    axes.set(xlabel="operations, in order", ylabel=unit, xlim=(0, len(phases) - 1))
    axes.set_ylim(bottom=0)
    _category_legend(figure, [sample.bytes for sample in step.timeline])
    return figure


def summarise_memory(
    predicted: Mapping[str, StepMemory], measured: Mapping[str, StepMemory] | None = None
) -> str:
    """Return what `memory_bars` shows in one line of text."""
    parts = []
    for name, step in predicted.items():
        part = f"{name} {_size(step.peak)}"
        if measured and name in measured:
            off = step.peak / measured[name].peak - 1
            part += f" (measured {_size(measured[name].peak)}, {off:+.1%})"
        parts.append(part)
    return f"Peak: {', '.join(parts)}."


def summarise_step(step: StepMemory) -> str:
    """Return what `memory_over_step` shows in one line of text."""
    phases = ", ".join(f"{phase} {_size(step.total(phase))}" for phase in step.phases)
    category = max(step.at_peak, key=lambda name: step.at_peak[name])
    return (
        f"Largest in the {step.peak_phase} phase, mostly {category} "
        f"({step.at_peak[category] / step.peak:.0%}). Peaks: {phases}."
    )


def _look(i: int) -> dict[str, str]:
    """Return the colour and the hatching of the i-th category."""
    colours = (*PALETTE, "#999999")
    hatches = ("", "////", "....", "\\\\\\\\", "xxxx", "++", "oo")
    return {"facecolor": colours[i % 7], "hatch": hatches[i % 7], "edgecolor": "white"}


def label_box(colour: str = "white") -> dict[str, object]:
    """Return the background of a label that lies on hatching."""
    return {"boxstyle": "round,pad=0.15", "facecolor": colour, "linewidth": 0}


def _category_legend(figure: Figure, moments: Sequence[Mapping[str, int]]) -> None:
    """Name the categories that occur, below the figure."""
    used = [
        (i, name) for i, name in enumerate(moments[0]) if any(moment[name] for moment in moments)
    ]
    handles = [Patch(label=name, **_look(i)) for i, name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _unit(largest: int) -> tuple[str, int]:
    """Return the unit in which the largest number of bytes reads well, and its size."""
    return ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)


def _size(count: int) -> str:
    unit, size = _unit(count)
    return f"{count / size:.2f} {unit}"
