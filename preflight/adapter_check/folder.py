"""An adapter's folder as it lies on the disk: its config, and the header of its weights.

Used by lessons: 09, 12.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl")  # whoever loads one runs what is in it
ALLOWED = (
    f"Allowed is a folder with {CONFIG} and {WEIGHTS}, as model.save_pretrained(folder) writes it."
)
PREFIX = "base_model.model."  # before a module's name in a saved tensor's


@dataclass(frozen=True)
class Tensor:
    """What the header says of a saved tensor: its type, such as BF16, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that was saved. No weight of it is read, and no pickle opened."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[str, ...]
    readme: str

    @property
    def kind(self) -> str:
        """Peft's name of the type, such as LORA."""
        return self.config["peft_type"]

    @property
    def base(self) -> str:
        """The base model that the config names; "" if none."""
        return self.config.get("base_model_name_or_path") or ""

    @property
    def rank(self) -> int:
        """The largest rank, 0 of a type that has none."""
        named = self.config.get("r") or 0, *(self.config.get("rank_pattern") or {}).values()
        return max(one for one in named if isinstance(one, int))

    @property
    def pickles(self) -> tuple[str, ...]:
        """The names of the pickles."""
        return tuple(name for name in self.files if name.endswith(PICKLES))

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """The names of the modules that are saved whole."""
        return tuple(self.config.get("modules_to_save") or ())

    def has(self, part: str) -> int:
        """Return of how many tensors the name holds a part."""
        return sum(part in name for name in self.tensors)

    def others(self, known: str) -> tuple[str, ...]:
        """Return the names of the tensors that a regular expression finds nothing in."""
        return tuple(name for name in self.tensors if not re.search(known, name))

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield a file and a path of the training machine that stands in it."""
        found = [(name, text) for name, text in self.config.items() if _is_absolute(text)]
        yield from ((CONFIG, f"{name}: {text}") for name, text in found)
        named = re.findall(r"^base_model: (.+)$", self.readme, re.M)
        yield from (("README.md", f"base_model: {text}") for text in named if _is_absolute(text))

    def __str__(self) -> str:
        config, numbers = self.config, sum(prod(one.shape) for one in self.tensors.values())
        targets = config.get("target_modules") or config.get("target_parameters")
        if isinstance(targets, list):
            targets = ", ".join(sorted(targets))
        alpha = config.get("lora_alpha", config.get("alpha"))
        about = [
            self.kind,
            f"rank {self.rank}" if self.rank else "",
            f"alpha {alpha}" if alpha else "",
            f"on {targets}" if targets else "",
            f"of {self.base or 'a base that the config does not name'}",
        ]
        version = config.get("peft_version")
        dtypes = ", ".join(sorted({one.dtype for one in self.tensors.values()}))
        size = (self.path / WEIGHTS).stat().st_size / 1e6
        weights = f"{len(self.tensors)} tensors, {numbers:,} numbers in {dtypes}, {size:,.2f} MB"
        saved = f"saved by peft {version}" if version else "saved by a peft below 0.18"
        lines = [f"{' '.join(filter(None, about))}; {weights}; {saved}"]
        beyond = [f"modules_to_save {', '.join(self.modules_to_save)}"] * bool(self.modules_to_save)
        for part, what in BEYOND.items():
            if count := self.has(part):
                beyond.append(f"{what} ({count} tensors)")
        if config.get("bias", "none") != "none":
            beyond.append(f"bias {config['bias']!r}")
        if beyond:
            lines.append(f"beyond its matrices: {'; '.join(beyond)}")
        return "\n".join(lines)


# What is read of a config, by its kind.
KINDS: dict[str, tuple[type, ...]] = {
    "base_model_name_or_path": (str,), "r": (int,), "lora_alpha": (int, float), "bias": (str,),
    "target_modules": (list, str), "target_parameters": (list,), "modules_to_save": (list,),
    "rank_pattern": (dict,), "alpha_pattern": (dict,), "peft_version": (str,),
}  # fmt: skip
# Parts of the names of tensors that tell what else an adapter holds.
BEYOND = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_B.bias": "lora_bias",
    "trainable_tokens_delta": "trained tokens",
    "lora_embedding_A": "LoRA on embeddings",
    "embed_tokens.weight": "a whole embedding",
}


def _is_absolute(text: object) -> bool:
    return isinstance(text, str) and (
        PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    )


def read_folder(folder: str | Path) -> AdapterFolder:
    """Return an adapter's folder; its config is read, and the header of its weights.

    Raises:
        FileNotFoundError: if there is no such folder, no adapter in it, or none in safetensors.
        ValueError: if it holds a model, or its config or header cannot be read.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"'{folder}' is not a folder. {ALLOWED} Check the path.")
    files = tuple(sorted(one.name for one in path.iterdir() if one.is_file()))
    if CONFIG not in files:
        raise _no_adapter(path, files)
    config = _read_config(path / CONFIG)
    if WEIGHTS not in files:
        if "adapter_model.bin" not in files:
            raise FileNotFoundError(f"'{path}' has no {WEIGHTS}. {ALLOWED} Save the adapter again.")
        raise FileNotFoundError(
            f"'{path}' has its weights in adapter_model.bin: a pickle, which may run code and is "
            f"not opened. {ALLOWED} Where you trust the file, load it with "
            "PeftModel.from_pretrained and save it again."
        )
    readme = path / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return AdapterFolder(path, config, _read_header(path / WEIGHTS), files, text)


def _no_adapter(path: Path, files: tuple[str, ...]) -> Exception:
    if "config.json" in files:
        return ValueError(
            f"'{path}' is a model, not an adapter: it has a config.json and no {CONFIG}. {ALLOWED} "
            "Give the adapter's folder, and the model as its base."
        )
    below = sorted(one.parent.name for one in path.glob(f"*/{CONFIG}"))
    found = f"folders with one: {', '.join(below)}" if below else ", ".join(files[:5])
    return FileNotFoundError(
        f"'{path}' has no {CONFIG} (it holds {found or 'nothing'}). {ALLOWED} Check the path."
    )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"'{file}' cannot be read ({error}). Allowed is JSON as peft writes it. Copy the file "
            "again, or save the adapter again."
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise ValueError(
            f"'{file}' names no peft_type. Allowed is one of peft's, such as LORA. Copy the file "
            "again, or save the adapter again."
        )
    for name, kinds in KINDS.items():
        value = config.get(name)
        if value is not None and not isinstance(value, kinds):
            raise ValueError(
                f"'{file}' has {value!r} as {name}. Allowed is {kinds[0].__name__}, as peft writes "
                "it. Correct it, or save the adapter again."
            )
    return config


def _read_header(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: Tensor(one.get_dtype(), tuple(one.get_shape()))
                for name, one in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(
            f"'{file}' is no whole file of safetensors ({error}). Allowed is one as peft writes "
            "it. Copy it again, with `git lfs pull` if it is in git-lfs, or save the adapter again."
        ) from error
