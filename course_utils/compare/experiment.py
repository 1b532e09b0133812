"""What is compared: an experiment is plain data, read from and written to YAML and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from course_utils.files import write_whole

# How large parts of an experiment file are shared by its experiments.
DTYPES = ("float32", "bfloat16", "float16")
SECTIONS = ("defaults", "experiments")
DEPTH = 20  # levels of lists and mappings in each other
PLAIN = (
    "a mapping whose values are texts, numbers of 64 bits, true, false, nothing, or lists and "
    f"mappings of these, {DEPTH} in each other at most (no dates, no objects)"
)


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
            value = getattr(self, key)
            self._require(isinstance(value, str) and _plain(value), key, "a text")
        self._require(self.dtype in DTYPES, "dtype", " or ".join(DTYPES))
        for key in ("name", "data"):
            self._require(bool(getattr(self, key).strip()), key, "a text that is not empty")
        for key in ("peft", "quantization"):
            value = getattr(self, key)
            given = value is None or (_named(value) and bool(value))
            self._require(given, key, "a mapping of arguments, one at least, or nothing")
        self._require(_named(self.training), "training", "a mapping of arguments")
        for key in ("peft", "quantization", "training"):
            self._require(_plain(getattr(self, key)), key, PLAIN)
        for key, value in self.training.items():
            if isinstance(value, str) and _is_number(value):
                raise ValueError(
                    f"Experiment {self.name!r}: {key} is the text {value!r}. Allowed is a number. "
                    "In YAML one with an exponent needs a point and a sign: write 5.0e-4 or 1.0e+3."
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
                f"Experiment {_said(self.name)}: {key} is {_said(getattr(self, key))}. Allowed is "
                f"{allowed}. Correct it."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment that plain data describes.

        Raises:
            ValueError: if a key is unknown, the name is missing, or a value is of the wrong kind.
        """
        if not _named(values):
            raise ValueError(
                f"An experiment is {_said(values)}. It has to be a mapping such as {{name: lora}}."
            )
        fields = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in fields]
        name = values.get("name", "without a name")
        if unknown or "name" not in values:
            said = f"unknown keys {', '.join(unknown)[:200]}" if unknown else "no name"
            raise ValueError(
                f"Experiment {_said(name)} has {said}. Allowed keys are {', '.join(fields)}; name "
                "is required. Correct or remove what is wrong."
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
    written = path.read_bytes()
    try:
        content = _parsed(written.decode("utf-8-sig"))
    except Exception as error:  # a wrong tag or date raises a dozen kinds in YAML's depths
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"'{path}' is not valid YAML or JSON: {reason}. Correct it at that place."
        ) from None
    if not _named(content) or set(content) - set(SECTIONS) or "experiments" not in content:
        found = ", ".join(map(_said, content)) if isinstance(content, Mapping) else type(content)
        raise ValueError(
            f"'{path}' has at its top: {str(found)[:300]}. Allowed are the list `experiments`, "
            "which is required, and the mapping `defaults`. Put the experiments under "
            "`experiments:`."
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


class _Dumper(yaml.SafeDumper):
    """Escapes characters that YAML would read as another: it has line breaks of its own."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def write(path: str | Path, experiments: Iterable[Experiment]) -> None:
    """Write experiments to a file that `read` takes: JSON if it ends so, else YAML."""
    path = Path(path)
    content = {"experiments": [experiment.to_dict() for experiment in experiments]}
    if path.suffix == ".json":
        text = json.dumps(content, indent=2) + "\n"
    else:
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_whole(path, text)


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


def _parsed(text: str) -> Any:
    """Return what a text says in JSON or, if it is none, in YAML."""
    try:
        # YAML would read the number 1e-05 of a JSON file as a text, and an escaped pair as two.
        return json.loads(text)
    except ValueError:
        pass
    # A file of a few lines whose aliases name each other unfolds to more than fits in memory.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it has an alias such as *name; what several share goes into defaults")
    return yaml.safe_load(text)


def _plain(value: Any, levels: int = DEPTH) -> bool:
    """Return whether a value is the same after it was written to a file and read again."""
    if isinstance(value, Mapping):
        return _named(value) and _plain([*value, *value.values()], levels)
    if isinstance(value, list | tuple):
        return levels > 0 and all(_plain(item, levels - 1) for item in value)
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)  # halves of characters, which no file holds
    return value is None or isinstance(value, bool | float) or _whole(value, -(2**63))


def _said(value: Any) -> str:
    """Return a short `repr`, whatever the value is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(value).__name__} too large to show"


def _named(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
