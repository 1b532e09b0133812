"""What all figures share: colours, markers and size.

Used by lessons: all.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

# Okabe and Ito's palette (Color Universal Design, 2008), without its black and its pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


class PlainNumbers(LogFormatter):
    """Labels 0.1, 1, 10, where LogFormatter writes 1e-01 next to 1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis by numbers, those between powers of ten among them.

    Within a power of ten there would be one label at most.
    """
    axis.set_major_formatter(PlainNumbers())
    axis.set_minor_formatter(PlainNumbers(minor_thresholds=(1, 0.4)))


def figure_axes(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the lessons' width, `height` inches high."""
    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    # Closed at once, so that a notebook shows it only where a cell returns it.
    plt.close(figure)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
