"""The adapter that a command plans for: named on the command line, or described by a file.

Used by lessons: 09, 12.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from preflight import lora_targets

RANK = 16  # as `predict` has it


def target_names(text: str) -> list[str] | str:
    """Return what a text on the command line is as LoraConfig takes it.

    Names joined by commas, "all-linear", or a regular expression, by the signs that no name has.
    """
    if text.lower() == "all-linear":
        return "all-linear"
    if set(text) & set("*+?()[]|^$\\"):
        return text
    return [name.strip() for name in text.split(",")]


def lora(model: Any, rank: int | None, targets: str) -> LoraConfig:
    """Return a LoRA on the layers of a model that a text names.

    Raises:
        ValueError: if one of the names matches nothing.
    """
    names = target_names(targets)
    rank = RANK if rank is None else rank
    if names != "all-linear":
        wrong = [n for n in lora_targets.check_targets(model, names, rank).names if not n.count]
        if wrong:
            said = ", ".join(
                f"{n.name!r}" + (f" (meant: {n.nearest}?)" if n.nearest else "") for n in wrong
            )
            there = ", ".join(t.name for t in lora_targets.discover(model, rank) if not t.refused)
            raise ValueError(
                f"--targets is {targets!r}, and the model has nothing called {said}. Allowed are "
                f"{there}; joined by commas, or all-linear. Correct the name."
            )
    return LoraConfig(r=rank, target_modules=names, task_type="CAUSAL_LM")


def config_class(method: str, file: str | Path) -> type[PeftConfig]:
    """Return the class of peft's config for a peft_type that stands in a file.

    Raises:
        ValueError: if peft knows no such type.
    """
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(
            f"peft_type is {method!r} in '{file}', which this version of peft does not know. "
            f"Allowed are {', '.join(t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING)}. Correct it, "
            "or install the version of peft that wrote the file."
        )
    return PEFT_TYPE_TO_CONFIG_MAPPING[method]


def from_file(file: str) -> PeftConfig:
    """Return the config of peft that a file describes, for training.

    The file is an adapter's adapter_config.json, or has the arguments of LoraConfig in YAML or
    JSON; `peft_type` names another method.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it describes no config of peft.
    """
    path = Path(file)
    if path.is_dir():
        path /= "adapter_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--peft-config is '{file}', where no file is. Allowed are an adapter_config.json, its "
            "folder, or the arguments of LoraConfig in YAML. Check the path."
        )
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"--peft-config is '{file}', which cannot be read ({' '.join(str(error).split())}). "
            "Allowed is JSON or YAML in UTF-8. Correct the file."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"--peft-config is '{file}', which holds a {type(found).__name__}. Allowed are the "
            "arguments of LoraConfig by their names, such as r: 8. Correct the file."
        )
    kind = config_class(str(found.pop("peft_type", "LORA")), file)
    unknown = found.keys() - kind.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(
            f"'{file}' has {', '.join(sorted(unknown))}, which {kind.__name__} does not take. "
            f"Allowed are {', '.join(kind.__dataclass_fields__)}. Correct the name, or install the "
            "version of peft that wrote the file."
        )
    # An adapter that was saved is set for answering.
    settings = found | {"inference_mode": False, "base_model_name_or_path": None}
    runtime = [name for name, value in settings.items() if not kind.__dataclass_fields__[name].init]
    try:
        return kind(**{name: value for name, value in settings.items() if name not in runtime})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{kind.__name__} refuses what '{file}' says: {error}. Correct the file."
        ) from error
