"""What is compared: experiments as plain data, the standard ones, and files of them.

Used by lessons: 08.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from course_utils.files import write_whole

DTYPES = ("float32", "bfloat16", "float16")
TRAINERS = ("sft", "dpo", "grpo")
SECTIONS = ("defaults", "experiments")


@dataclass(frozen=True)
class Experiment:
    """One way to fine-tune, to be run once for each of its seeds.

    - `name` is unique within a comparison; `method` is what variants share (the name, if empty):
      the runs of a learning-rate sweep have one method and many names.
    - `peft` holds the arguments of a PEFT config with its `peft_type`, such as
      ``{"peft_type": "LORA", "r": 8}``; without it all weights are trained.
    - `quantization` holds the arguments of `BitsAndBytesConfig`.
    - `training` holds arguments of the trainer's config that differ from `trainers.TRAINING`.
    - `data` is "tickets" ("tickets-chat": the same as messages), a JSONL file of your own, or a
      folder with train.jsonl and test.jsonl (validation.jsonl and, for forgetting, heldout.jsonl
      with a column `text` if there are any). The rows are prompt and completion, messages, or text.
    - `trainer` is "sft", "dpo" or "grpo". All are tested on the test rows of `data`, which have to
      be JSON records for the last two.
    - `pairs` is what DPO trains on instead of the training rows of `data`: "preferences", or a
      JSONL file with `prompt`, `chosen` and `rejected`. SFT trains on their chosen answers.
    - `rewards` are GRPO's: "valid_json", "exact" (1 for the right record), or a function of your
      own as "module:function". The prompts are those of `data`.
    - `adapter` is the folder of an adapter to start from and to train on, in place of `peft`. DPO's
      reference is then that adapter as it was.
    - `train_rows`, `validation_rows` and `test_rows` take only so many from the start; None takes
      all.
    - `model` is a folder, smollm2 or a hub name; empty, it is the lessons' base model
      (`COURSE_MODEL`). Its weights are loaded in `dtype`.
    """

    name: str
    peft: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    data: str = "tickets"
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    model: str = ""
    dtype: str = "float32"
    seeds: tuple[int, ...] = (0,)
    method: str = ""
    trainer: str = "sft"
    pairs: str = ""
    rewards: tuple[str, ...] = ()
    adapter: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a value of the wrong kind; what libraries know is checked later."""
        for key in ("name", "data", "model", "method", "pairs", "adapter"):
            self._require(isinstance(getattr(self, key), str), key, "a text")
        for key in ("name", "data"):
            self._require(getattr(self, key).strip(), key, "a text that is not empty")
        self._require(self.dtype in DTYPES, "dtype", " or ".join(DTYPES))
        self._require_trainer()
        for key in ("peft", "quantization"):
            value = getattr(self, key)
            given = value is None or (isinstance(value, Mapping) and value)
            self._require(given, key, "a mapping of arguments, one at least, or nothing")
        self._require(isinstance(self.training, Mapping), "training", "a mapping of arguments")
        for key, value in self.training.items():
            if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value, re.I):
                raise ValueError(
                    f"Experiment {self.name!r}: {key} is the text {value!r}. Allowed is a number. "
                    "In YAML one with an exponent needs a point and a sign: write 5.0e-4 or 1.0e+3."
                )
        for key in ("train_rows", "validation_rows", "test_rows"):
            value = getattr(self, key)
            self._require(value is None or _whole(value, 1), key, "a whole number from 1 on")
        right = isinstance(self.seeds, Sequence) and all(_whole(seed, 0) for seed in self.seeds)
        allowed = "a list of one or more whole numbers from 0 on"
        self._require(right and len(self.seeds), "seeds", allowed)
        self._require(len(set(self.seeds)) == len(self.seeds), "seeds", "a list without repeats")
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "method", self.method or self.name)

    def _require_trainer(self) -> None:
        """Raise ValueError where the trainer and what it trains on do not go together."""
        self._require(self.trainer in TRAINERS, "trainer", " or ".join(TRAINERS))
        listed = isinstance(self.rewards, Sequence) and not isinstance(self.rewards, str)
        texts = listed and all(isinstance(name, str) for name in self.rewards)
        self._require(texts, "rewards", "a list of names, such as [valid_json]")
        object.__setattr__(self, "rewards", tuple(self.rewards))
        dpo, grpo = self.trainer == "dpo", self.trainer == "grpo"
        self._require(self.pairs or not dpo, "pairs", "preferences or a JSONL file, for dpo")
        self._require(not (self.pairs and grpo), "pairs", "nothing for grpo, which has rewards")
        self._require(self.rewards or not grpo, "rewards", "a list of one or more, for grpo")
        self._require(grpo or not self.rewards, "rewards", f"nothing for {self.trainer}")
        alone = not (self.adapter and self.peft)
        self._require(alone, "peft", "nothing next to an adapter, which has a config of its own")

    def _require(self, right: object, key: str, allowed: str) -> None:
        if not right:
            raise ValueError(
                f"Experiment {self.name!r:.80}: {key} is {getattr(self, key)!r:.80}. Allowed is "
                f"{allowed}. Correct it."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment that plain data describes.

        Raises:
            ValueError: if a key is unknown, the name is missing, or a value is of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                f"An experiment is {values!r:.80}. It has to be a mapping such as {{name: lora}}."
            )
        fields = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in fields]
        if unknown or "name" not in values:
            wrong = f"unknown keys {', '.join(unknown)[:200]}" if unknown else "no name"
            raise ValueError(
                f"Experiment {values.get('name', 'without a name')!r:.80} has {wrong}. Allowed "
                f"keys are {', '.join(fields)}; name is required. Correct or remove what is wrong."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` reads it back. What is as if not given is left out."""
        kept = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in ("name", "seeds") or value not in (None, "", {}, ()):
                kept[f.name] = value
        if self.trainer == "sft":
            del kept["trainer"]
        if self.method == self.name:
            del kept["method"]
        return json.loads(json.dumps(kept))

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
        text = path.read_text(encoding="utf-8-sig")
        # YAML would read the number 1e-05 of a JSON file as a text.
        loaded = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        content = json.loads(json.dumps(loaded))  # a result is JSON, which has no dates
    except Exception as error:  # a wrong tag or date raises a dozen kinds in YAML's depths
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"'{path}' is not valid YAML or JSON: {reason}. Correct it at that place."
        ) from None
    if not isinstance(content, dict) or not {"experiments"} <= set(content) <= set(SECTIONS):
        found = ", ".join(map(repr, content)) if isinstance(content, dict) else type(content)
        raise ValueError(
            f"'{path}' has at its top: {str(found)[:300]}. Allowed are the list `experiments`, "
            "which is required, and the mapping `defaults`. Put the experiments under "
            "`experiments:`."
        )
    defaults, listed = content.get("defaults") or {}, content["experiments"]
    if not isinstance(defaults, dict) or not isinstance(listed, list) or not listed:
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


def require_unique(experiments: Sequence[Experiment]) -> None:
    """Raise ValueError if two experiments have one name."""
    names = [experiment.name for experiment in experiments]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"These names are given to several experiments: {', '.join(twice)}. A name has to be "
            "unique, as results are found by it. Rename all but one."
        )


def _merged(defaults: dict[str, Any], values: Any) -> Any:
    if not isinstance(values, dict):
        return values  # from_dict says what is wrong
    both = {**defaults, **values}
    shared, own = defaults.get("training"), values.get("training")
    if isinstance(shared, dict) and isinstance(own, dict):
        both["training"] = {**shared, **own}
    return both


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _lora(rank: int, targets: str | list[str] = "all-linear", **more: Any) -> dict[str, Any]:
    """Return a LoRA with alpha twice the rank."""
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, **more
    }  # fmt: skip


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20}
# Names of architectures that are not like Llama's, for a method that names layers.
ATTENTION_OF_ANY = (
    r".*\.(self_attn|attn|attention|self_attention)\.\w*(proj|attn|query|key|value|dense)"
)
SCALED_OF_ANY = r".*\.(k_proj|v_proj|qkv_proj|query_key_value|down_proj|dense_4h_to_h|fc2)"
OTHER_NAMES: dict[str, dict[str, str]] = {
    "lora-attention": {"target_modules": ATTENTION_OF_ANY},
    "ia3": {
        "target_modules": SCALED_OF_ANY,
        "feedforward_modules": r".*\.(down_proj|dense_4h_to_h|fc2)",
    },
}
# What each method is, and the learning rate that its sweep on `tickets` begins with. Half of the
# training rows: with all of them most methods come too near to the top to be told apart.
METHODS: dict[str, Experiment] = {
    name: Experiment(name, peft, quantization, {"learning_rate": rate}, train_rows=600)
    for name, peft, quantization, rate in (
        ("full", None, None, 5e-4),
        ("lora", _lora(8), None, 5e-3),
        ("lora-r32", _lora(32), None, 5e-3),
        ("lora-attention", _lora(8, ATTENTION), None, 5e-3),
        ("qlora", _lora(8), NF4, 5e-3),
        ("dora", _lora(8, use_dora=True), None, 5e-3),
        ("ia3", {"peft_type": "IA3"}, None, 5e-2),
        ("prompt", PROMPT, None, 5e-2),
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
