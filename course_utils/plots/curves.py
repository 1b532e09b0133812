"""Losses as they fall, sweeps, errors, and plain bars.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from course_utils.plots.style import MARKERS, PALETTE, PlainNumbers, figure_axes, label_plainly

if TYPE_CHECKING:
    from course_utils.quantization import QuantizationReport


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
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(
            curve.index,
            curve.to_numpy(),
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=max(1, len(curve) // 12),
            label=name,
        )
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
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        axes.plot(line.index, line.to_numpy(), color=colour, marker=marker, label=name)
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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.curve = pd.Series(dtype=float, name="loss")
        self._handle = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        if state.is_world_process_zero:
            print(summarise(self.curve))
