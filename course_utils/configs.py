"""A model's config by name, file, folder or hub id, and the model without its weights.

Used by lessons: all.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from course_utils.paths import CONFIGS, is_path, located

# transformers' classes by head, with the configs of each. A model that sees or hears (whose config
# can stand with the causal ones too, for its text part alone) comes whole.
SEQ2SEQ = (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
MASKED = (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING)
MULTIMODAL = (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING)
CAUSAL = (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
HEADLESS = (AutoModel, MODEL_MAPPING)
WRITES = (MULTIMODAL, CAUSAL)  # those that write text from left to right


def shipped() -> list[str]:
    """Return the names of the configs that the course ships, which `load_config` takes."""
    return sorted(file.stem for file in CONFIGS.glob("*.json"))


def load_config(model: str | Path | PretrainedConfig) -> PretrainedConfig:
    """Return a model's config; only the config is read, and no code of its repository is run.

    `model` is one of the names in `shipped()` (in upper or lower case), "smollm2", a config.json, a
    folder that holds one, or a model's name on the Hugging Face Hub; a config is returned as it is.
    A folder that has the name of a shipped config is reached as "./name".

    Raises:
        FileNotFoundError: if the file or folder is missing, or holds no config.json.
        ValueError: if it is an adapter, or cannot be read as a model's config.
        RuntimeError: if the hub cannot be asked, does not know it, or wants an access token.
    """
    if isinstance(model, PretrainedConfig):
        return model
    if not isinstance(model, str | Path) or not str(model).strip():
        raise ValueError(f"{model!r} was given as a model. {_allowed()}")
    name = located(str(model).strip())
    source, path = name, Path(name).expanduser()
    if name.lower() in shipped():
        source = str(CONFIGS / f"{name.lower()}.json")
    elif path.is_dir():
        check_folder(path, repr(name), _allowed())
        source = str(path)
    elif path.is_file():
        if path.suffix != ".json":
            raise ValueError(
                f"{name!r} is a file, but not a config. {_allowed()} Give the folder it is in."
            )
        source = str(path)
    elif is_path(name) or path.suffix == ".json":
        raise FileNotFoundError(f"{name!r} does not exist. {_allowed()} Check the path.")
    return read_config(source, repr(name), _allowed())


def check_folder(
    folder: Path, given: str, allowed: str, way_out: str = "", *, weights: bool = False
) -> None:
    """Refuse a folder without a model's config or, where `weights` are needed, without these.

    `given`, `allowed` and `way_out` are as in `read_config`.

    Raises:
        FileNotFoundError: if there is no config.json, or there are no weights in safetensors.
        ValueError: if it is the folder of an adapter.
    """
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            where = "it stands in adapter_config.json as base_model_name_or_path"
            base = f" ({where}), or merge the two first." if weights else f": {where}."
            raise ValueError(
                f"{given} is an adapter, not a model. Give the model that it was trained on{base} "
                f"{way_out}".rstrip()
            )
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"{given} is a folder without a config.json (it holds {found}). {allowed} "
            f"{way_out}".rstrip()
        )
    if weights and not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{given} has a config.json but no weights in safetensors. Save the model again with "
            f"model.save_pretrained(folder). {way_out}".rstrip()
        )


def read_config(source: str, given: str, allowed: str, way_out: str = "") -> PretrainedConfig:
    """Return the config of a file, folder or hub id; an error says what is wrong.

    `given` says in an error what the reader gave, `allowed` what is allowed, and `way_out` what
    else there is to do.

    Raises:
        ValueError, RuntimeError: as `load_config`.
    """
    try:
        # Without an explicit False, transformers would ask the learner and run what the answer is.
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a broken config can fail in any way
        raise _explain(error, source, given, allowed, way_out) from error


def build_empty(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model that a config describes on the meta device: shapes, but no weights.

    The model has the head of its kind: sequence-to-sequence, masked, image- or audio-to-text or
    causal language modelling, else none. Nothing is downloaded and next to no memory taken.

    Raises:
        ValueError: if transformers has no model for the config, or cannot build one from it.
    """
    kind = auto_class(config)
    try:
        # transformers warns that BERT as a decoder was not trained as one, and the like.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_config(config, trust_remote_code=False)
    except ImportError as error:
        raise ValueError(
            f"The model of type {config.model_type!r} needs a package that is not installed here: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:  # a config can be inconsistent in any way
        raise ValueError(
            f"The config of type {config.model_type!r} describes no model that transformers can "
            f"build ({type(error).__name__}: {_first_line(error)}). Check its sizes: hidden_size, "
            "the number of heads and head_dim have to fit."
        ) from error


def auto_class(config: PretrainedConfig, *, writes: bool = False) -> Any:
    """Return the class of transformers, such as AutoModelForCausalLM, that builds a config's model.

    With `writes` only those count whose models write text from left to right, BERT's as well.

    Raises:
        ValueError: if there is none.
    """
    if writes:
        kinds = WRITES
    elif getattr(config, "is_decoder", False):  # BERT as a decoder, say
        kinds = (CAUSAL, HEADLESS)
    elif getattr(config, "is_encoder_decoder", False):
        kinds = (SEQ2SEQ, MASKED, *WRITES, HEADLESS)
    else:
        kinds = (MASKED, *WRITES, HEADLESS)
    kind = next((auto for auto, configs in kinds if type(config) in configs), None)
    if kind is None:
        what = "model that writes text from left to right" if writes else "model"
        raise ValueError(
            f"transformers has no {what} for a config of type {config.model_type!r}. Give the "
            "config of a language model, such as one of AutoModelForCausalLM's."
        )
    return kind


def is_multimodal(config: PretrainedConfig) -> bool:
    """Return whether a config is that of a model which sees or hears, and writes."""
    return type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING


def _allowed() -> str:
    names = ", ".join(shipped())
    return (
        "Allowed are a config that the course ships" + (f" ({names})" if names else "") + ", a "
        "config.json, a folder that holds one, or a model's name on the Hugging Face Hub (such as "
        "Qwen/Qwen3-0.6B-Base)."
    )


def _explain(error: Exception, source: str, given: str, allowed: str, way_out: str) -> Exception:
    """Return the error to raise: what was given, what is allowed, what to do."""
    # transformers raises OSError for all that the hub says; the hub's own error is its cause.
    cause = error.__cause__
    reason, kind = _first_line(error), RuntimeError
    if isinstance(error, ValueError) and (code := _needs_code(source)):
        kind, problem = ValueError, code
    elif Path(source).exists() or not isinstance(error, OSError):
        kind = ValueError
        problem = (
            f"cannot be read as a model's config ({reason}). It has to be JSON with a model_type "
            "that transformers knows. Check the file, or the installed version."
        )
    elif isinstance(cause, HFValidationError):
        kind, problem = ValueError, f"is neither a path nor a name that the hub allows. {allowed}"
    elif isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
        problem = (
            f"is not on the hub, or it is private. {allowed} Check the spelling; for a private "
            "model set the environment variable HF_TOKEN."
        )
    elif isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
        problem = (
            "needs permission: the hub says that it is gated, or that the access token is not "
            "valid. Accept the model's licence on its page and set the environment variable "
            "HF_TOKEN to a token of yours, or choose an open model such as Qwen/Qwen3-0.6B-Base."
        )
    else:
        problem = (
            f"could not be fetched, and no copy of it is on this machine ({reason}). {allowed} "
            "Check the spelling and the connection, and that HF_HUB_OFFLINE is not set."
        )
    return kind(f"{given} {problem} {way_out}".rstrip())


def _needs_code(source: str) -> str:
    """Return what to say of a model that only code of its own repository can build; "" of others.

    It has a type that transformers does not know, and an `auto_map` that says where the code is.
    """
    try:
        plain, _ = PretrainedConfig.get_config_dict(source)
    except Exception:  # it is not there, or no JSON: that is said elsewhere
        return ""
    if not isinstance(plain, dict):
        return ""
    kind = plain.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not plain.get("auto_map") or known:
        return ""
    what = f"a model of type {kind!r}" if kind else "a model without a model_type"
    problem = (
        f"is {what}: transformers {transformers.__version__} has no code for it, the model's "
        "repository has its own (auto_map). The course never runs code of a repository, so nothing "
        "can be said of this model. Give one that transformers knows."
    )
    named = plain.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    twin = getattr(getattr(transformers, name, None), "config_class", None)
    if twin is None:
        return problem
    return (
        f"{problem} Or, as its architectures name {name}, which transformers has: if the model is "
        f"such a one, give a copy of its config.json with the model_type {twin.model_type!r} and "
        "without the auto_map."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
