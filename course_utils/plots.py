"""Figures for the lessons: readable at notebook width, colours safe for the colour-blind."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Okabe and Ito's palette (Color Universal Design, 2008), without its black and its pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def loss_curves(curves: Mapping[str, pd.Series], title: str = "Training loss") -> Figure:
    """Return a figure with one line per curve.

    Each curve is a series of losses in nats per token, indexed by the training step. Lines differ
    in colour and in marker, and each is named at its end.
    """
    figure, axes = _figure(3.2)
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
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def bars(values: Mapping[str, float], title: str, xlabel: str, form: str = "{:.2f}") -> Figure:
    """Return horizontal bars, each with its value written beside it in the given format."""
    figure, axes = _figure(0.9 + 0.45 * len(values))
    drawn = axes.barh(list(values), list(values.values()), color=PALETTE[0], height=0.6)
    axes.bar_label(drawn, labels=[form.format(v) for v in values.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title=title, xlabel=xlabel)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the lessons' width, `height` inches high."""
    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    # Closed at once, so that a notebook shows it only where a cell returns it.
    plt.close(figure)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


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
