"""A training step's memory: by category, and over the step.

Used by lessons: all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from course_utils.plots.style import PALETTE, figure_axes

if TYPE_CHECKING:
    from course_utils.memory import StepMemory


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
    kinds = ("predicted", "measured") if measured else ("",)
    bars = [
        (f"{name}\n{kind}" if kind else name, (measured if kind == "measured" else predicted)[name])
        for name in predicted
        for kind in kinds
        if kind != "measured" or name in measured
    ]
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
    """Return the life of a step's memory as stacked areas by category, its phases marked.

    Raises:
        ValueError: if the step has no timeline.
    """
    if not step.timeline:
        raise ValueError(
            "This step has no timeline (one read from a file has none). Allowed are the results of "
            "predict and of a meter. Make it anew."
        )
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
