"""Which GPUs have the memory, as a figure.

Used by lessons: 02.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course_utils.plots import PALETTE, figure_axes, label_box
from preflight.memory_plan.gpu_fit import GPUFitTable


def plot_fits(fits: GPUFitTable, title: str = "What fits where") -> Figure:
    """Return a grid of GPUs and methods: the memory needed, and whether the GPU has it."""
    methods = list(dict.fromkeys(row.method for row in fits.rows))
    gpus = list(dict.fromkeys(row.gpu for row in fits.rows))
    figure, axes = figure_axes(0.9 + 0.32 * len(gpus))
    for row in fits.rows:
        x, y = methods.index(row.method), gpus.index(row.gpu)
        look = {"facecolor": PALETTE[5]} if row.fits else {"facecolor": "white", "hatch": "////"}
        axes.add_patch(Rectangle((x, y), 1, 1, edgecolor="grey", **look))
        words = f"{row.needed / 2**30:.1f} GiB: " + ("fits" if row.fits else "too large")
        box = label_box(look["facecolor"])
        axes.text(x + 0.5, y + 0.5, words, ha="center", va="center", fontsize=9, bbox=box)
    axes.set_xticks([i + 0.5 for i in range(len(methods))], methods)
    names = [f"{gpu.name} ({gpu.memory:.1f} GiB)" for gpu in gpus]
    axes.set_yticks([i + 0.5 for i in range(len(gpus))], names)
    axes.set(xlim=(0, len(methods)), ylim=(len(gpus), 0), title=title)
    axes.tick_params(length=0)
    return figure


def summarise_fits(fits: GPUFitTable) -> str:
    """Return what `plot_fits` shows in one line of text."""
    parts = []
    for method in dict.fromkeys(row.method for row in fits.rows):
        rows = [row for row in fits.rows if row.method == method]
        enough = sorted((row for row in rows if row.fits), key=lambda row: row.gpu.memory)
        smallest = f"smallest {enough[0].gpu.name}" if enough else "none is large enough"
        parts.append(f"{method} on {len(enough)} of {len(rows)} ({smallest})")
    return f"Fits: {', '.join(parts)}."
