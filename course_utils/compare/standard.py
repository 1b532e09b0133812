"""The standard comparison: the methods that lesson 08 sets side by side, and their sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils.compare.experiment import Experiment, read
from course_utils.compare.results import best
from course_utils.compare.runner import run

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
STEP = 10**0.5  # between two learning rates of a sweep
FURTHER = 2  # how often a sweep goes on beyond its edge


def _lora(rank: int, targets: str | Sequence[str] = "all-linear", **more: Any) -> dict[str, Any]:
    """Return a LoRA with alpha twice the rank."""
    targets = targets if isinstance(targets, str) else list(targets)
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, **more
    }  # fmt: skip


NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
# What each method is, and the learning rate that its sweep on `tickets` begins with. Half of the
# training rows: with all of them most methods come too near to the top to be told apart.
METHODS: dict[str, Experiment] = {
    experiment.name: dataclasses.replace(experiment, train_rows=600)
    for experiment in (
        Experiment("full", training={"learning_rate": 5e-4}),
        Experiment("lora", _lora(8), training={"learning_rate": 5e-3}),
        Experiment("lora-r32", _lora(32), training={"learning_rate": 5e-3}),
        Experiment("lora-attention", _lora(8, ATTENTION), training={"learning_rate": 5e-3}),
        Experiment("qlora", _lora(8), quantization=NF4, training={"learning_rate": 5e-3}),
        Experiment("dora", _lora(8, use_dora=True), training={"learning_rate": 5e-3}),
        Experiment("ia3", {"peft_type": "IA3"}, training={"learning_rate": 5e-2}),
        Experiment(
            "prompt",
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20},
            training={"learning_rate": 5e-2},
        ),
    )
}


def standard(
    methods: Iterable[str] | None = None, seeds: int = 3, **changes: Any
) -> list[Experiment]:
    """Return the standard experiments of these methods (all, if none are named).

    `seeds` is how many; `changes` replaces fields of every experiment, such as `train_rows`.

    Raises:
        ValueError: if there is no such method, or the number of seeds is below 1.
    """
    names = list(METHODS) if methods is None else list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(
            f"There is no method called {', '.join(map(repr, unknown)) or 'nothing'}. Allowed are "
            f"{', '.join(METHODS)}. Choose from these, or write an experiment of your own."
        )
    if seeds < 1:
        raise ValueError(f"{seeds} seeds were asked for. Allowed is 1 or more; 3 show a spread.")
    changes = {"seeds": tuple(range(seeds)), **changes}
    return [dataclasses.replace(METHODS[name], **changes) for name in dict.fromkeys(names)]


def chosen(
    file: str | Path | None = None,
    methods: Iterable[str] | None = None,
    seeds: int | None = None,
    **changes: Any,
) -> list[Experiment]:
    """Return the experiments that a command line asks for: those of a file, or standard ones.

    What is None stays as it is in the file; of standard experiments the default is 3 seeds.

    Raises:
        ValueError: if both a file and methods are given, or either is wrong.
        FileNotFoundError: if there is no such file.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if file is None:
        return standard(methods, 3 if seeds is None else seeds, **changes)
    if methods:
        raise ValueError(
            f"Both the file '{file}' and the methods {', '.join(methods)} were given. Allowed is "
            "one of them: the file's experiments, or the standard ones. Leave one out."
        )
    if seeds is not None:
        changes["seeds"] = tuple(range(seeds))
    return [dataclasses.replace(experiment, **changes) for experiment in read(file)]


def at_rate(experiment: Experiment, learning_rate: float) -> Experiment:
    """Return a variant at this learning rate, of the same method, under a name that says it."""
    name = f"{experiment.name}, lr {learning_rate:.2g}"
    return dataclasses.replace(experiment.with_training(learning_rate=learning_rate), name=name)


def sweep(
    experiments: Iterable[Experiment], output_dir: str | Path, **options: Any
) -> list[Experiment]:
    """Find each experiment's learning rate and return it at that rate, with its own seeds.

    Three rates, a factor of √10 apart around the experiment's own, are run with its first seed; if
    the best by validation loss is the lowest or the highest of them, the sweep goes on beyond it,
    up to twice. `options` go to `run`. The runs of the sweep stay in `output_dir` as results.

    Raises:
        ValueError: if an experiment has no learning rate, or none of its runs went well.
    """
    experiments = list(experiments)
    first = [_at_rates(experiment, range(-1, 2)) for experiment in experiments]
    run([variant for variants in first for variant in variants], output_dir, **options)
    return [
        at_rate(experiment, _best_rate(experiment, output_dir, options))
        for experiment in experiments
    ]


def _at_rates(experiment: Experiment, steps: Iterable[int]) -> list[Experiment]:
    """Return variants so many steps from the experiment's own rate, with its first seed."""
    start = experiment.training.get("learning_rate")
    if isinstance(start, bool) or not isinstance(start, int | float) or start <= 0:
        raise ValueError(
            f"Experiment {experiment.name!r} has the learning rate {start!r}. A sweep starts at a "
            "number above 0: set it in training."
        )
    one = dataclasses.replace(experiment, seeds=experiment.seeds[:1])
    return [at_rate(one, float(f"{start * STEP**step:.2g}")) for step in steps]


def _best_rate(experiment: Experiment, output_dir: str | Path, options: dict[str, Any]) -> float:
    low, high = -1, 1
    for _ in range(FURTHER + 1):
        variants = _at_rates(experiment, range(low, high + 1))
        winner = _winner(run(variants, output_dir, **options), experiment)
        rates = [variant.training["learning_rate"] for variant in variants]
        if winner == min(rates):
            low -= 1
        elif winner == max(rates):
            high += 1
        else:
            break
    return winner


def _winner(frame: pd.DataFrame, experiment: Experiment) -> float:
    if "validation loss" not in frame or frame["validation loss"].isna().all():
        raise ValueError(
            f"No run of the sweep of {experiment.name!r} has a validation loss: "
            f"{'; '.join(frame['failed']) or 'its data has no validation split'}. Look at the "
            "results' reasons, or give the learning rate yourself."
        )
    return float(best(frame)["learning rate"].iloc[0])
