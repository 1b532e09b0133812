"""Ask of every model that transformers knows and that writes text what LoRA adapts in it.

Each type is built from its default configuration, cut to eight layers, on the meta device: shapes,
but no weights. What preflight.lora_targets says of it is compared with what peft really wraps. The
table goes to data/results/target_modules.json; lesson 04 shows it and tests/test_lora_targets.py
makes it again. It stands here, with the scripts that make the course's other data.

python data/build/sweep_targets.py          every type, in two processes
python data/build/sweep_targets.py llama    print the records of some types
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import multiprocessing
import re
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from course_utils.configs import auto_class
from course_utils.files import write_whole
from course_utils.paths import DATA
from preflight import lora_targets
from preflight.lora_targets.adapters import make_adapters
from preflight.lora_targets.layers import find_layers

OUTPUT = DATA / "results" / "target_modules.json"
SCHEMA = 2
LAYERS = 8  # enough for every pattern of layers: no type has a layer that comes first after these
RANK = 8
# The list of many tutorials: without down_proj.
CLASSIC = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
# Of a target in a record, in this order.
COLUMNS = (
    "name",
    "kind",
    "type",
    "count",
    "parameters",
    "adapter",
    "in_default",
    "in_all_linear",
    "as_parameter",
)
LISTS: dict[str, Any] = {"all-linear": "all-linear", "default": None, "classic": CLASSIC}

DEPTHS = re.compile(r"n_layers?|(num_|n_)?((en|de)coder_)?(hidden_)?(layers|blocks)|depth")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
}
# What a default configuration lacks for its model to be built.
EXTRA: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}
    },
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        }
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 11}},
    "diffusion_gemma": {
        "text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704}
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": {"<image>": 100}},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "lfm2_moe": {"num_hidden_layers": LAYERS, "layer_types": ["conv", "full_attention"] * 4},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {"is_decoder": True},
}
# The class for text alone takes the configuration of a part.
PART = {"musicgen": "decoder", "musicgen_melody": "decoder"}


def kinds() -> list[str]:
    """Return the types of model that AutoModelForCausalLM or AutoModelForMultimodalLM knows."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES})


def shorten(config: PretrainedConfig, layers: int = LAYERS) -> None:
    """Cut a configuration, and those inside it, to so many layers; widths stay as they are."""
    old = 0
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shorten(value, layers)
        elif DEPTHS.fullmatch(name) and isinstance(value, int) and value > layers:
            setattr(config, name, layers)
            old = value
    for name, value in list(vars(config).items()):
        if old and isinstance(value, list) and len(value) == old:
            setattr(config, name, value[:layers])


def build(kind: str) -> PreTrainedModel:
    """Return the model of a type, whole where it cannot be cut, on the meta device.

    Raises the error of transformers where neither can be built.
    """
    for cut in (True, False):
        try:
            config = CONFIG_MAPPING[kind](**EXTRA.get(kind, {}))
            if cut:
                shorten(config)
            with torch.device("meta"):
                if kind in PART:
                    return AutoModelForCausalLM._model_mapping[type(config)](
                        getattr(config, PART[kind])
                    )
                return auto_class(config, writes=True).from_config(config)
        except Exception:
            if not cut:
                raise
    raise AssertionError


def wrap(model: PreTrainedModel, target_modules: Any) -> dict[str, tuple[int, int]]:
    """Return the rank and the parameters of each adapter that peft really makes, by whole name.

    Where peft raises there are none. The model is changed.
    """
    config = LoraConfig(r=RANK, target_modules=target_modules)
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    except (ValueError, NotImplementedError):
        return {}
    adapters = {}
    for name, layer in adapted.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            parameter = getattr(layer, "parameter_name", None)  # of a bare parameter's wrapper
            name = name.replace(".base_layer", "")
            own = (p for n, p in layer.named_parameters() if n.startswith("lora_"))
            size = sum(p.numel() for p in own)
            adapters[f"{name}.{parameter}" if parameter else name] = layer.r["default"], size
    return adapters


def record(kind: str) -> dict[str, Any]:
    """Return what there is to say of a type of model: one row of the table."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    try:
        model = build(kind)
    except Exception as error:  # a default configuration can fail in any way
        reason = " ".join(str(error).split()).partition(". ")[0]
        return {"type": kind, "built": False, "reason": f"{type(error).__name__}: {reason[:160]}"}
    table = lora_targets.discover(model, RANK)
    layers = {layer.name: layer for layer in find_layers(model)}
    adapters = {name: make_adapters(model, targets, r=RANK) for name, targets in LISTS.items()}
    agrees = {}
    for name, targets in LISTS.items():
        real = wrap(copy.deepcopy(model), targets)
        found = adapters[name].modules | adapters[name].tensors
        agrees[name] = found == real.keys() and all(
            layers[one.removesuffix(".weight") if one not in layers else one].adapter(r) == size
            for one, (r, size) in real.items()
        )
    agrees["parameters"] = table.parameters == sum(p.numel() for p in model.parameters())
    experts = "+expert" if "expert" in table.kinds else ""
    try:
        suggestion = lora_targets.suggest(model, f"dense-linear{experts}", RANK)
    except ValueError:  # peft raises on every list
        suggestion = {}

    blocks = [target for target in table if target.in_blocks]
    hit = {
        target.name: sum(layer in adapters["classic"] for layer in target.layers)
        for target in blocks
    }
    whole = sum(target.parameters for target in blocks)
    part = sum(t.parameters * hit[t.name] / t.count for t in blocks)
    tensors = [t for t in blocks if t.type == "Parameter" and "expert" in t.kind]
    missed = [t for t in tensors if not t.in_all_linear]
    leaves = {name.rpartition(".")[2] for t in table for name in t.layers}
    return {
        "type": kind,
        "built": True,
        "multimodal": kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        "agrees": agrees,
        "parameters": table.parameters,
        "targets": [[getattr(target, column) for column in COLUMNS] for target in table],
        "default": list(table.default) if isinstance(table.default, tuple) else table.default,
        "default_error": table.default_error,
        "all_linear_error": table.all_linear_error,
        "suggestion": {key: suggestion[key] for key in suggestion.keys()},
        "classic": {
            "names": [name for name in CLASSIC if name in leaves],
            "error": adapters["classic"].error,
            "coverage": coverage(part, whole),
            "share": round(part / whole, 4) if whole else 0.0,
        },
        "experts": {
            "tensors": [t.as_parameter for t in tensors],
            "missed": [t.as_parameter for t in missed],
            "missed_share": round(sum(t.parameters for t in missed) / table.parameters, 4),
        },
        "routers_wrapped": [t.name for t in table if t.kind == "router" and t.in_all_linear],
    }


def coverage(part: float, whole: int) -> str:
    """Return in a word how many of the blocks' matrices a list adapts, by their parameters."""
    if not part:
        return "not at all"
    return "fully" if part == whole else "partly"


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts over all types."""
    built = [r for r in records if r["built"]]
    tensors = [r for r in built if r["experts"]["tensors"]]
    works = [r for r in tensors if not r["all_linear_error"]]
    shares = sorted(r["experts"]["missed_share"] for r in works if r["experts"]["missed"])
    classic = Counter(r["classic"]["coverage"] for r in built)
    return {
        "types": len(records),
        "built": len(built),
        "multimodal": sum(r["multimodal"] for r in built),
        "not_built": [r["type"] for r in records if not r["built"]],
        "agree": sum(all(r["agrees"].values()) for r in built),
        "default": {
            "none": sum(r["default"] is None for r in built),
            "works": sum(r["default"] is not None and not r["default_error"] for r in built),
            "raises": [r["type"] for r in built if r["default"] and r["default_error"]],
        },
        "all_linear_raises": [r["type"] for r in built if r["all_linear_error"]],
        "classic": {word: classic[word] for word in ("fully", "partly", "not at all")},
        "classic_all_six_names": sum(len(r["classic"]["names"]) == len(CLASSIC) for r in built),
        "experts": {
            "types": len(tensors),
            "reached": sum(not r["experts"]["missed"] for r in works),
            "missed": [r["type"] for r in works if r["experts"]["missed"]],
            "missed_share_median": shares[len(shares) // 2] if shares else 0.0,
        },
        "routers_wrapped": [r["type"] for r in built if r["routers_wrapped"]],
    }


def sweep(processes: int = 2) -> list[dict[str, Any]]:
    """Return the records of every type."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(record, kinds(), chunksize=4))


def versions() -> dict[str, str]:
    """Return the versions on which the table depends, without the build for a processor."""
    names = ("transformers", "peft", "torch")
    return {name: metadata.version(name).partition("+")[0] for name in names}


def main() -> None:
    """Write the table, or print the records of the types that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="types to print instead")
    options = parser.parse_args()
    if options.kinds:
        print(json.dumps([record(kind) for kind in options.kinds], indent=2))
        return
    records = sweep()
    table = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "device": "meta",
        "config": {"layers": LAYERS, "rank": RANK, "classic": CLASSIC},
        "summary": summary(records),
        "columns": COLUMNS,
    }
    # A record a line, so that a change of versions shows as the lines of the types that changed.
    lines = ",\n  ".join(json.dumps(one) for one in records)
    head = json.dumps(table, indent=1).removesuffix("\n}")
    write_whole(OUTPUT, f'{head},\n "records": [\n  {lines}\n ]\n}}\n')
    print(json.dumps(table["summary"], indent=2))


if __name__ == "__main__":
    main()
