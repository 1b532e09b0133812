"""Results: what one depends on, the files they are in, and a table with mean and spread.

Used by lessons: 08.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.utils import cached_file, extract_commit_hash

from course_utils import hardware
from course_utils.compare.experiments import Experiment
from course_utils.compare.rows import load_rows
from course_utils.compare.trainers import reward_files
from course_utils.compare.worker import CURVES, model_path
from course_utils.configs import load_config
from course_utils.display import text_table

SCHEMA = 1
REQUIRED = ("schema", "name", "method", "seed", "key", "experiment", "status")
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes")
# Figures that are columns of the table, in their order, with how each is read from a result.
SIZES = {
    "forgetting": lambda r: r["forgetting"]["rise"],
    "peak MiB": lambda r: r["memory"]["peak"] / 2**20,
    "training s": lambda r: r["training_seconds"],
    "tokens/s": lambda r: r["tokens_per_second"],
    "trainable": lambda r: r["trainable_parameters"],
    "checkpoint MB": lambda r: r["checkpoint_bytes"] / 1e6,
}
# Columns of the printed table, and how each figure is written.
SHOWN = {
    "exact match": "{:.1%}", "exact match, unseen": "{:.1%}", "fields": "{:.1%}",
    "fields, unseen": "{:.1%}",
    "test loss": "{:.3f}", "token accuracy": "{:.1%}",
    "forgetting": "{:.3f}", "peak MiB": "{:.0f}", "training s": "{:.0f}", "trainable": "{:,.0f}",
    "checkpoint MB": "{:.2f}",
}  # fmt: skip


def key(identity: Mapping[str, Any]) -> str:
    """Return the key of a run: a hash of all that its result depends on."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def model_fingerprint(path: str) -> str:
    """Return a hash that changes with the base model: of its files, or its commit on the hub.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `load_config`, if there is no such model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        load_config(path)  # says in plain words what is wrong with a name
        # The cache keeps each commit in a folder of its own, whose name is the commit.
        return f"{path}@{extract_commit_hash(cached_file(path, 'config.json'), None)}"
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Return on what a run is made: the device, and the versions of the libraries."""
    machine = hardware.detect()
    threads = torch.get_num_threads()
    # An Apple GPU stays idle: without CUDA a run is on the CPU (`trainers.config_of`).
    on_cpu = f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
    return {
        "device": machine.name if machine.device == "cuda" else on_cpu,
        "versions": {
            "python": platform.python_version(),
            **{library: metadata.version(library).split("+")[0] for library in LIBRARIES},
        },
    }


class Sources:
    """The rows and base models of comparisons; each is read once and hashed once."""

    def __init__(self) -> None:
        self.rows = functools.cache(load_rows)
        self.model = functools.cache(model_fingerprint)
        self._data: dict[tuple[str | int | None, ...], str] = {}

    def data(self, experiment: Experiment) -> str:
        """Return the hash of the rows of an experiment.

        Raises:
            FileNotFoundError, ValueError: as `load_rows` and `Rows.cut`.
        """
        rows = (experiment.train_rows, experiment.validation_rows, experiment.test_rows)
        chosen = (experiment.data, experiment.pairs, experiment.trainer, *rows)
        if chosen not in self._data:
            found = self.rows(experiment.data).with_pairs(experiment).cut(experiment)
            self._data[chosen] = found.fingerprint()
        return self._data[chosen]


@dataclass(frozen=True)
class Job:
    """One run: an experiment, a seed, and the key of all that its result depends on."""

    experiment: Experiment
    seed: int
    key: str
    identity: dict[str, Any]

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.experiment.name}, seed {self.seed}"

    @property
    def file(self) -> str:
        """The name of the file that its result is in."""
        slug = re.sub(r"[^a-z0-9.]+", "-", self.experiment.name.lower()).strip("-.")[:60]
        return f"{slug}_seed{self.seed}_{self.key[:12]}.json"


def jobs(experiments: Iterable[Experiment], sources: Sources) -> Iterator[Job]:
    """Yield the runs that experiments ask for, in order."""
    here = environment()
    for experiment in experiments:
        described = experiment.to_dict()
        del described["seeds"]
        identity = {
            "schema": SCHEMA,
            "experiment": described,
            "data": sources.data(experiment),
            "model": sources.model(model_path(experiment)),
            **_also(experiment, sources),
            **here,
        }
        for seed in experiment.seeds:
            yield Job(experiment, seed, key({**identity, "seed": seed}), identity)


def _also(experiment: Experiment, sources: Sources) -> dict[str, str]:
    """Return the hashes of what only some experiments have: an adapter, rewards of their own."""
    also = {"adapter": sources.model(experiment.adapter)} if experiment.adapter else {}
    for name, file in reward_files(experiment.rewards).items():
        also[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return also


def usable(path: Path, wanted: str | None = None) -> dict[str, Any] | None:
    """Return the result in a file; None if it is missing, broken, or has another key."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or any(name not in result for name in REQUIRED):
        return None
    if result["schema"] != SCHEMA or wanted not in (None, result["key"]):
        return None
    return result


def load(output_dir: str | Path, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return the results in a folder, by name and seed; with `keys`, only those.

    A file that is no whole result of this version is passed over.

    Raises:
        FileNotFoundError: if the folder is not there or holds no result.
    """
    folder = Path(output_dir)
    found = [usable(path) for path in sorted(folder.glob("*.json"))]
    results = [r for r in found if r is not None and (keys is None or r["key"] in keys)]
    if not results:
        raise FileNotFoundError(
            f"'{folder}' has no results of a comparison. Run one into it: `python -m course_utils "
            f"compare --output {folder}`."
        )
    return sorted(results, key=lambda r: (r["name"], r["seed"]))


def table(output_dir: str | Path, keys: Collection[str] | None = None) -> pd.DataFrame:
    """Return a row per experiment: means over its seeds, and in columns with ± their spread.

    The spread is the sample standard deviation (NaN for one seed). Shares are 0 to 1, losses and
    forgetting in nats per token, `peak MiB` is the meter's peak of one training step. `seeds`
    counts the runs that went well, `failed` says how many did not and why; `device` is where.
    Experiments that were run under one name with other settings, data, devices or versions have a
    row each, told apart by the beginning of a hash.

    Raises:
        FileNotFoundError: if there are no results.
    """
    rows = {label: _row(results) for label, results in _labelled(load(output_dir, keys)).items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "experiment"
    head = ["method", "learning rate", "seeds", "failed"]
    tail = [name for size in SIZES for name in (size, f"{size} ±") if name in frame] + ["device"]
    return frame[[*head, *(name for name in frame if name not in (*head, *tail)), *tail]]


def best(frame: pd.DataFrame, by: str = "validation loss") -> pd.DataFrame:
    """Return, of each method's rows in a table, the one with the lowest figure.

    The default chooses on the validation split, so that the test stays unseen. Rows without the
    figure (all of its runs failed) are never chosen.

    Raises:
        ValueError: if the table has no such column.
    """
    if by not in frame:
        raise ValueError(
            f"The table has no column {by!r}. It has {', '.join(frame.columns)}. Choose one."
        )
    known = frame.dropna(subset=[by])
    return known.loc[known.groupby("method", sort=False)[by].idxmin()]


def shown(frame: pd.DataFrame) -> str:
    """Return the table as text: an experiment a row, what matters most in columns."""
    columns = [name for name in SHOWN if name in frame]
    if "fields, unseen" in frame:  # of data with both kinds of rows, the harder kind says more
        columns.remove("fields")
    headers = ["experiment", "lr", "seeds", *columns, "failed"]
    rows = [
        [
            name,
            "" if pd.isna(row["learning rate"]) else f"{row['learning rate']:g}",
            row["seeds"],
            *(_figure(row, figure) for figure in headers[3:-1]),
            row["failed"],
        ]
        for name, row in frame.iterrows()
    ]
    return text_table(rows, headers)


def reasons(output_dir: str | Path, names: Collection[str]) -> list[str]:
    """Return, for each run of these experiments that failed, its name and why it did."""
    return [
        f"{r['name']}, seed {r['seed']}: {r['status']}: {r['reason']}"
        for r in load(output_dir)
        if r["name"] in names and r["status"] != "ok"
    ]


def curves(
    output_dir: str | Path, kind: str = "loss", keys: Collection[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Return the curves of each experiment, indexed by step; losses of SFT in nats per token.

    A column is a seed. `kind` is "loss", the training's, "validation_loss", "reward" (the mean of
    GRPO's completions) or "margin" (of DPO's rewards, chosen over rejected). Experiments are named
    as the rows of `table` are.

    Raises:
        ValueError: if there is no such kind.
        FileNotFoundError: if there are no results.
    """
    if kind not in CURVES:
        raise ValueError(f"kind={kind!r}. Allowed are {', '.join(CURVES)}. Choose one.")
    lines = {
        label: {f"seed {r['seed']}": pd.Series(dict(r[kind])) for r in results if r.get(kind)}
        for label, results in _labelled(load(output_dir, keys)).items()
    }
    return {label: pd.DataFrame(seeds) for label, seeds in lines.items() if seeds}


def _labelled(results: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return results by experiment; those of one name in different settings are told apart."""
    shared = ("experiment", "data", "model", "device", "versions")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        setting = key({part: result.get(part) for part in shared})
        groups.setdefault((result["name"], setting), []).append(result)
    names = [name for name, _ in groups]
    return {
        name if names.count(name) == 1 else f"{name} [{setting[:6]}]": results
        for (name, setting), results in groups.items()
    }


def _row(results: list[dict[str, Any]]) -> dict[str, Any]:
    good = [result for result in results if result["status"] == "ok"]
    reasons = [result["status"] for result in results if result["status"] != "ok"]
    first = results[0]
    row: dict[str, Any] = {
        "method": first["method"],
        "learning rate": first["experiment"].get("training", {}).get("learning_rate"),
        "seeds": len(good),
        "failed": ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons)),
        "device": first.get("device", ""),
    }
    figures = pd.DataFrame([_figures(result) for result in good])
    for name, spread in figures.std().items():
        row |= {name: figures[name].mean(), f"{name} ±": spread}
    return row


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return all figures of a result that it has."""
    figures = dict(result["metrics"])
    for name, read in SIZES.items():
        try:
            figures[name] = read(result)
        except (KeyError, TypeError):  # no held-out texts, or too few steps for the meter
            continue
    return figures


def _figure(row: pd.Series, name: str) -> str:
    """Return a mean with its spread, as text."""
    form, value, spread = SHOWN[name], row[name], row[f"{name} ±"]
    if pd.isna(value):
        return ""
    return form.format(value) + ("" if pd.isna(spread) else f" ± {form.format(spread)}")
