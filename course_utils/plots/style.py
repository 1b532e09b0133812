"""What all figures share: colours, markers and size."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008), without its black and its pale yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def figure_axes(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the lessons' width, `height` inches high."""
    figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
    # Closed at once, so that a notebook shows it only where a cell returns it.
    plt.close(figure)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
