"""What is compared: an experiment is plain data, read from and written to YAML and JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# How large parts of an experiment file are shared by its experiments.
DTYPES = ("float32", "bfloat16", "float16")
SECTIONS = ("defaults", "experiments")


@dataclass(frozen=True)
class Experiment:
    """One way to fine-tune, to be run once for each of its seeds.

    - `name` is unique within a comparison; `method` is what variants share (the name, if empty):
      the runs of a learning-rate sweep have one method and many names.
    - `peft` holds the arguments of a PEFT config with its `peft_type`, such as
      ``{"peft_type": "LORA", "r": 8}``; without it all weights are trained.
    - `quantization` holds the arguments of `BitsAndBytesConfig`.
    - `training` holds arguments of `SFTConfig` that differ from `build.TRAINING`.
    - `data` is "tickets", or a folder with train.jsonl and test.jsonl in prompt-completion form
      (validation.jsonl and, for forgetting, heldout.jsonl with a column `text` if there are any).
    - `train_rows` and `test_rows` take only so many rows from the start; None takes all.
    - `model` is a hub name or a folder; empty, it is the lessons' base model (`COURSE_MODEL`). Its
      weights are loaded in `dtype`.
    """

    name: str
    peft: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    data: str = "tickets"
    train_rows: int | None = None
    test_rows: int | None = None
    model: str = ""
    dtype: str = "float32"
    seeds: tuple[int, ...] = (0,)
    method: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a value of the wrong kind; what libraries know is checked later."""
        for key in ("name", "data", "model", "method", "dtype"):
            self._require(isinstance(getattr(self, key), str), key, "a text")
        self._require(self.dtype in DTYPES, "dtype", " or ".join(DTYPES))
        self._require(bool(self.name.strip()), "name", "a text that is not empty")
        for key in ("peft", "quantization"):
            value = getattr(self, key)
            self._require(value is None or _named(value), key, "a mapping of arguments, or nothing")
        self._require(_named(self.training), "training", "a mapping of arguments")
        for key, value in self.training.items():
            if isinstance(value, str) and _is_number(value):
                raise ValueError(
                    f"Experiment {self.name!r}: {key} is the text {value!r}. Allowed is a number. "
                    "In YAML one with an exponent needs a point: write 5.0e-4, not 5e-4."
                )
        for key in ("train_rows", "test_rows"):
            value = getattr(self, key)
            self._require(value is None or _whole(value, 1), key, "a whole number from 1 on")
        listed = isinstance(self.seeds, Sequence) and not isinstance(self.seeds, str)
        self._require(
            listed and bool(self.seeds) and all(_whole(seed, 0) for seed in self.seeds),
            "seeds",
            "a list of one or more whole numbers from 0 on",
        )
        object.__setattr__(self, "seeds", tuple(self.seeds))
        self._require(len(set(self.seeds)) == len(self.seeds), "seeds", "a list without repeats")
        if not self.method:
            object.__setattr__(self, "method", self.name)

    def _require(self, right: bool, key: str, allowed: str) -> None:
        if not right:
            raise ValueError(
                f"Experiment {self.name!r}: {key} is {getattr(self, key)!r}. Allowed is {allowed}. "
                "Correct it."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment that plain data describes.

        Raises:
            ValueError: if a key is unknown, the name is missing, or a value is of the wrong kind.
        """
        if not _named(values):
            raise ValueError(
                f"An experiment is {values!r}. It has to be a mapping such as {{name: lora}}."
            )
        fields = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in fields]
        name = values.get("name", "without a name")
        if unknown or "name" not in values:
            said = f"unknown keys {', '.join(unknown)}" if unknown else "no name"
            raise ValueError(
                f"Experiment {name!r} has {said}. Allowed keys are {', '.join(fields)}; name is "
                "required. Correct or remove what is wrong."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` reads it back. What is as if not given is left out."""
        kept = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("name", "seeds") or value not in (None, "", {}):
                kept[f.name] = value
        if self.method == self.name:
            del kept["method"]
        return json.loads(json.dumps(kept | {"seeds": list(self.seeds)}))

    def with_training(self, **arguments: Any) -> Experiment:
        """Return a copy with these arguments of `SFTConfig` added or replaced."""
        return dataclasses.replace(self, training={**self.training, **arguments})


def read(path: str | Path) -> list[Experiment]:
    """Return the experiments of a YAML or JSON file.

    The file has a list `experiments` and, if wanted, a mapping `defaults` of keys that hold for
    each experiment that does not say otherwise (`training` is merged key by key)::

        defaults: {seeds: [0, 1, 2], training: {num_train_epochs: 1}}
        experiments:
          - name: full
            training: {learning_rate: 5.0e-4}
          - name: lora
            peft: {peft_type: LORA, r: 8, target_modules: all-linear, task_type: CAUSAL_LM}
            training: {learning_rate: 5.0e-3}

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no valid YAML or JSON, or an experiment in it is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' is not a file. Allowed is a YAML or JSON file of experiments; `python -m "
            "course_utils compare --write FILE` makes one to begin with."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"'{path}' is not valid YAML or JSON: {reason}. Correct it at that place."
        ) from None
    if not _named(content) or set(content) - set(SECTIONS) or "experiments" not in content:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise ValueError(
            f"'{path}' has at its top: {found}. Allowed are the list `experiments`, which is "
            "required, and the mapping `defaults`. Put the experiments under `experiments:`."
        )
    defaults, listed = content.get("defaults") or {}, content["experiments"]
    if not _named(defaults) or not isinstance(listed, list) or not listed:
        raise ValueError(
            f"In '{path}' defaults has to be a mapping and experiments a list of one or more. "
            "Begin each experiment with `- name:`."
        )
    experiments = [Experiment.from_dict(_merged(defaults, values)) for values in listed]
    require_unique(experiments)
    return experiments


def write(path: str | Path, experiments: Iterable[Experiment]) -> None:
    """Write experiments to a file that `read` takes: JSON if it ends so, else YAML."""
    path = Path(path)
    content = {"experiments": [experiment.to_dict() for experiment in experiments]}
    if path.suffix == ".json":
        text = json.dumps(content, indent=2) + "\n"
    else:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def require_unique(experiments: Sequence[Experiment]) -> None:
    """Raise ValueError if two experiments have one name."""
    names = [experiment.name for experiment in experiments]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"These names are given to several experiments: {', '.join(twice)}. A name has to be "
            "unique, as results are found by it. Rename all but one."
        )


def _merged(defaults: Mapping[str, Any], values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values  # from_dict says what is wrong
    both = {**defaults, **values}
    shared, own = defaults.get("training"), values.get("training")
    if isinstance(shared, Mapping) and isinstance(own, Mapping):
        both["training"] = {**shared, **own}
    return both


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
