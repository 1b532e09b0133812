"""Compare ways of fine-tuning: experiments in, one JSON file per run out, and a table of them.

Each run has a process of its own, so its memory is its own; a comparison that was stopped goes on
with what is missing.

Used by lessons: 08.
"""

from course_utils.compare.experiments import METHODS, Experiment, chosen, read, standard, write
from course_utils.compare.results import Sources, best, curves, load, reasons, shown, table
from course_utils.compare.runner import fitted, run, sweep, within

__all__ = [
    "METHODS",
    "Experiment",
    "Sources",
    "best",
    "chosen",
    "curves",
    "fitted",
    "load",
    "read",
    "reasons",
    "run",
    "shown",
    "standard",
    "sweep",
    "table",
    "within",
    "write",
]
