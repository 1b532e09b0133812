"""Which base model this run of the lessons uses.

Used by lessons: all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from course_utils.configs import check_folder, read_config
from course_utils.paths import POCKET_MODEL, is_path, located

VARIABLE = "COURSE_MODEL"
ALLOWED = (
    "Allowed are a causal language model's name on the Hugging Face Hub (such as "
    "Qwen/Qwen3-0.6B-Base), a folder with its config.json and weights, or smollm2, which `make "
    "real` fetches."
)
WAY_OUT = f"Or unset {VARIABLE} to use the pocket model that the course ships."


@dataclass(frozen=True)
class BaseModel:
    """The base model of a run: `path` is what `from_pretrained` takes, `name` is for people."""

    path: str
    name: str
    is_pocket: bool


def chosen_name() -> str:
    """Return what the environment variable COURSE_MODEL names; nothing means the pocket model."""
    return os.environ.get(VARIABLE, "").strip()


def base_model() -> BaseModel:
    """Return the model named in the environment variable COURSE_MODEL, else the pocket model.

    Only its config is read, so this is quick, and what cannot work is refused before anything
    large is loaded. Code from a model's repository is never run.

    Raises:
        FileNotFoundError: if the name is a folder that is missing or holds no model.
        ValueError: if it is an adapter, or not a causal language model.
        RuntimeError: if the hub cannot be asked, or wants an access token.
    """
    name = chosen_name()
    if not name:
        return BaseModel(str(POCKET_MODEL), POCKET_MODEL.name, is_pocket=True)
    given = f"{VARIABLE}={name!r}"
    folder = Path(located(name)).expanduser()
    if folder.is_dir():
        check_folder(folder, given, ALLOWED, WAY_OUT, weights=True)
        _check_kind(read_config(str(folder), given, ALLOWED, WAY_OUT), given)
        return BaseModel(str(folder), folder.resolve().name, is_pocket=False)
    if folder.is_file():
        raise ValueError(f"{given} is a file. {ALLOWED} Give the folder it is in. {WAY_OUT}")
    if is_path(name):
        raise FileNotFoundError(f"{given} is a folder that does not exist. {ALLOWED} {WAY_OUT}")
    _check_kind(read_config(name, given, ALLOWED, WAY_OUT), given)
    return BaseModel(name, name.split("/")[-1], is_pocket=False)


def _check_kind(config: PretrainedConfig, given: str) -> None:
    """Refuse what does not write text from left to right.

    The library gives BERT and BART a causal head as well, but one that was never trained.
    """
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    pair = getattr(config, "is_encoder_decoder", False)
    if encoder or pair or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{given} is a model of type {config.model_type!r}, which does not write text from "
            f"left to right. {ALLOWED} {WAY_OUT}"
        )
