"""An adapter written again as plain LoRA, so that every engine scales it as peft does.

Used by lessons: 09, 12.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

from course_utils.files import whole, write_whole
from preflight.adapter_check.engines import LLAMA, served_by
from preflight.adapter_check.folder import CONFIG, PREFIX, WEIGHTS, AdapterFolder, read_folder

# What says how an adapter is scaled; all of it goes into lora_B.
SCALES = {"use_rslora": False, "alpha_pattern": {}}


def as_plain_lora(folder: str | Path, output: str | Path) -> Path:
    """Write an adapter as plain LoRA of one alpha, and return the new folder.

    rsLoRA and alpha_pattern are folded into the matrices B: engines that know only alpha / r then
    scale it as peft does, and so does peft. Ranks of their own stay.

    Raises:
        FileNotFoundError: as `check_adapter`.
        ValueError: as `check_adapter`; if llama.cpp would refuse the adapter all the same, or
            answer as another model; or if the output is the folder itself.
    """
    adapter, target = read_folder(folder), Path(output)
    if target.resolve() == adapter.path.resolve():
        raise ValueError(f"'{output}' is the adapter itself. Allowed is another folder. Name one.")
    config = {**adapter.config, **SCALES}
    plain = replace(adapter, config=config)
    verdict = next(one for one in served_by(plain) if one.engine == LLAMA)
    if verdict.effect != "takes":
        raise ValueError(
            f"'{adapter.path}' cannot be plain LoRA for {verdict}. Allowed are LoRA's two matrices "
            "alone, with any alpha and rank. Merge it into its base instead (merge_and_unload), "
            "and convert the merged model."
        )
    _write(adapter, config, target)
    return target


def _write(adapter: AdapterFolder, config: dict[str, Any], target: Path) -> None:
    from safetensors.torch import load_file, save_file  # numpy has no bfloat16

    tensors = load_file(adapter.path / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith(".lora_B.weight"):
            module = name.removeprefix(PREFIX).removesuffix(".lora_B.weight")
            factor = _scale(adapter.config, module) / _scale(config, module)
            tensors[name] = tensor * factor
    with whole(target / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_whole(target / CONFIG, json.dumps(config, indent=2) + "\n")


def _scale(config: dict[str, Any], module: str) -> float:
    """Return what peft multiplies A and B of a module by: update_layer, tuners/lora/layer.py."""
    rank = _own(config.get("rank_pattern"), module, config["r"])
    alpha = _own(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _own(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """Return a module's own value, as peft looks it up; the default if it has none."""
    from peft.utils.other import get_pattern_key

    named = pattern or {}
    return named.get(get_pattern_key(named.keys(), module), default)
