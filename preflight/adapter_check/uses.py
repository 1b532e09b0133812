"""What goes wrong with an adapter, and where: each of peft's traps that its folder walks into.

Each was measured on peft 0.21.2 and transformers 5.24.0 on 2026-11-30, and on the older versions of
peft that a row names: tests/test_adapter_check.py.

Used by lessons: 09, 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from preflight.adapter_check.folder import AdapterFolder
from preflight.findings import Finding, finding


class Use(NamedTuple):
    """A trap: of which adapters it is one, how bad, what happens, and what to do.

    An error is wrong however it is used. A warning is wrong in one way of loading, and an info in
    something that not everyone does with an adapter.
    """

    code: str
    severity: str
    holds: Callable[[AdapterFolder], object]
    what: str
    fix: str


def _is_dora(folder: AdapterFolder) -> bool:
    return bool(folder.has("lora_magnitude_vector"))


def _mixes_wrong(folder: AdapterFolder) -> list[str]:
    """Return what of a LoRA add_weighted_adapter leaves out, or scales as it should not."""
    parts = {
        "rsLoRA": folder.config.get("use_rslora"),
        "DoRA": _is_dora(folder),
        "lora_bias": folder.has("lora_B.bias"),
        "trained tokens": folder.has("trainable_tokens_delta"),
        "modules_to_save": folder.modules_to_save,
    }
    return [name for name, there in parts.items() if there and folder.kind == "LORA"]


def _stays(folder: AdapterFolder) -> list[str]:
    """Return what unload() leaves in the base."""
    biases = folder.has(".bias") and folder.config.get("bias", "none") != "none"
    return [*folder.modules_to_save, *(["its biases"] if biases else [])]


def _old_lokr(folder: AdapterFolder) -> bool:
    # Its scale came with peft 0.14, as did rank_dropout_scale.
    config = folder.config
    scaled = config.get("alpha") != config.get("r") or config.get("alpha_pattern")
    old = "rank_dropout_scale" not in config
    return folder.kind == "LOKR" and old and bool(scaled or config.get("rank_pattern"))


USES = (
    Use(
        "old_lokr",
        "error",
        _old_lokr,
        "LoKr of a peft below 0.14, which did not multiply by alpha / r ({alpha} / {r}); now it is "
        "multiplied, and the adapter loads as another model without a word.",
        "Write alpha = r into adapter_config.json: then it is exactly the model that was trained.",
    ),
    Use(
        "old_oft",
        "error",
        lambda folder: folder.kind == "OFT" and folder.has(".oft_r"),
        "OFT of a peft below 0.16, which stored other matrices (oft_r): they are left out now, and "
        "what loads is the bare base, with one warning; of one below 0.14 an error.",
        "Load it with the peft that saved it, such as 0.15.2, and ship merge_and_unload().",
    ),
    Use(
        "bone",
        "error",
        lambda folder: folder.kind == "BONE",
        "The type is BONE, which is called MISS now: loading ends in KeyError 'BONE'.",
        "Write MISS as peft_type into adapter_config.json, and in the names of the tensors "
        "miss_block for bone_block: then it is exactly the model that was trained.",
    ),
    Use(
        "dora_loading",
        "warning",
        _is_dora,
        "DoRA: AutoModelForCausalLM.from_pretrained(folder) and model.load_adapter(folder) leave "
        "out the trained magnitudes ({magnitudes} tensors) and keep those of the start, without a "
        "word (transformers 5.24).",
        "Load with PeftModel.from_pretrained(base, folder), or ship merge_and_unload().",
    ),
    Use(
        "dora_as_lora",
        "info",
        _is_dora,
        "DoRA: save_as_lora leaves out the magnitudes, too.",
        "For one who cannot load DoRA, ship merge_and_unload().",
    ),
    Use(
        "weighted_sum",
        "info",
        _mixes_wrong,
        "add_weighted_adapter leaves out, or scales otherwise, what makes this adapter: {mixes}. "
        'With the weights [1, 0] it does not give the adapter back, with "cat" neither.',
        "Do not add it to others; to switch between adapters is exact.",
    ),
    Use(
        "unload",
        "info",
        _stays,
        "unload() leaves {stays} in the base as trained.",
        "For the bare base load it anew; disable_adapter() is exact while the adapter is there.",
    ),
    Use(
        "osf_merge",
        "info",
        lambda folder: folder.kind == "OSF",
        "OSF: merge_adapter() and after it merge_and_unload() merge twice, into another model.",
        "Call merge_and_unload() alone.",
    ),
    Use(
        "local_paths",
        "info",
        lambda folder: [*folder.paths()],
        "Paths of the training machine: {paths}. Nobody else can load the base from there.",
        "Write the base's name on the hub into both before you ship.",
    ),
    Use(
        "pickles",
        "info",
        lambda folder: folder.pickles,
        "{pickles}: pickles, not opened here. Who loads one runs what is in it, and in "
        "training_args.bin stand folders of the training machine.",
        "Leave them out of what you ship; no one needs them to load the adapter.",
    ),
    Use(
        "card",
        "info",
        lambda folder: "huggingface.co/None" in folder.readme,
        'README.md calls the base "None" and links to huggingface.co/None: TRL 1.16 does not know '
        "the base of an adapter.",
        "Write the base's name there, or a card of your own as lesson 09 does.",
    ),
)


def use_findings(folder: AdapterFolder) -> Iterator[Finding]:
    """Yield each trap that an adapter walks into, the worst first."""
    words = {
        "alpha": folder.config.get("alpha"),
        "r": folder.config.get("r"),
        "magnitudes": folder.has("lora_magnitude_vector"),
        "mixes": ", ".join(_mixes_wrong(folder)),
        "stays": " and ".join(_stays(folder)),
        "paths": "; ".join(f"{file} has {text}" for file, text in folder.paths()),
        "pickles": ", ".join(folder.pickles),
    }
    for use in USES:
        if use.holds(folder):
            yield finding(use.code, use.what.format(**words), use.fix, use.severity)
