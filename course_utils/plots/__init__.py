"""Figures for the lessons: readable at notebook width, colours safe for the colour-blind.

Each takes a table that another module returns and gives a matplotlib `Figure`; the function named
after it with `summarise` says in a line of text what it shows.

Used by lessons: all.
"""

from course_utils.plots.comparison import (
    loss_bands,
    pareto_front,
    summarise_bands,
    summarise_trade_off,
    trade_off,
)
from course_utils.plots.curves import (
    LiveLoss,
    bars,
    loss_curves,
    quantization_errors,
    summarise,
    summarise_errors,
    summarise_sweep,
    sweep,
)
from course_utils.plots.errors import confusion, summarise_confusion
from course_utils.plots.memory import (
    memory_bars,
    memory_over_step,
    summarise_memory,
    summarise_step,
)
from course_utils.plots.style import MARKERS, PALETTE

__all__ = [
    "MARKERS",
    "PALETTE",
    "LiveLoss",
    "bars",
    "confusion",
    "loss_bands",
    "loss_curves",
    "memory_bars",
    "memory_over_step",
    "pareto_front",
    "quantization_errors",
    "summarise",
    "summarise_bands",
    "summarise_confusion",
    "summarise_errors",
    "summarise_memory",
    "summarise_step",
    "summarise_sweep",
    "summarise_trade_off",
    "sweep",
    "trade_off",
]
