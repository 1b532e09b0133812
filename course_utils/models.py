"""Which base model this run of the lessons uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from course_utils.paths import POCKET_MODEL

VARIABLE = "COURSE_MODEL"
ALLOWED = (
    "Allowed are a causal language model's name on the Hugging Face Hub (such as "
    "Qwen/Qwen3-0.6B-Base) or a folder with its config.json and weights."
)
WAY_OUT = f"Or unset {VARIABLE} to use the pocket model that the course ships."


@dataclass(frozen=True)
class BaseModel:
    """The base model of a run: `path` is what `from_pretrained` takes, `name` is for people."""

    path: str
    name: str
    is_pocket: bool


def base_model() -> BaseModel:
    """Return the model named in the environment variable COURSE_MODEL, else the pocket model.

    Only its config is read, so this is quick, and what cannot work is said before anything large is
    loaded.

    Raises:
        FileNotFoundError: if the name is a folder that is missing or holds no model.
        ValueError: if it is an adapter, or not a causal language model.
        RuntimeError: if the hub cannot be asked, or wants an access token.
    """
    name = os.environ.get(VARIABLE, "").strip()
    if not name:
        return BaseModel(str(POCKET_MODEL), POCKET_MODEL.name, is_pocket=True)
    given = f"{VARIABLE}={name!r}"
    if Path(name).is_dir():
        _check_folder(Path(name), given)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(f"{given} is a folder that does not exist. {ALLOWED} {WAY_OUT}")
    model_type = _model_type(name, given)
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{given} is a model of type {model_type!r}, which does not write text from left to "
            f"right. {ALLOWED} {WAY_OUT}"
        )
    return BaseModel(name, Path(name).name, is_pocket=False)


def _check_folder(folder: Path, given: str) -> None:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ValueError(
            f"{given} is an adapter, not a model. Give the model that it was trained on (it stands "
            f"in adapter_config.json as base_model_name_or_path), or merge the two first. {WAY_OUT}"
        )
    if not (folder / "config.json").exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"{given} is a folder without a config.json (it holds {found}). {ALLOWED} {WAY_OUT}"
        )
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{given} has a config.json but no weights in safetensors. Save the model again with "
            f"model.save_pretrained(folder). {WAY_OUT}"
        )


def _model_type(name: str, given: str) -> str:
    """Return the type in a model's config; what goes wrong on the way is said in plain words."""
    try:
        return AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        text = f"{error} {error.__cause__ or ''}"
        reason = str(error).splitlines()[0]
        if "gated" in text.lower() or "401" in text or "403" in text:
            raise RuntimeError(
                f"{given} needs permission: the hub says that it is gated or private. Accept its "
                "licence on its page and set the environment variable HF_TOKEN, or choose an open "
                f"model such as Qwen/Qwen3-0.6B-Base. {WAY_OUT}"
            ) from error
        if not Path(name).is_dir() and isinstance(error, OSError):
            raise RuntimeError(
                f"{given} could not be fetched, and no copy of it is on this machine ({reason}). "
                f"Check the spelling and the connection, and that HF_HUB_OFFLINE is not set. "
                f"{ALLOWED} {WAY_OUT}"
            ) from error
        raise ValueError(
            f"{given} cannot be read as a model ({reason}). {ALLOWED} {WAY_OUT}"
        ) from error
