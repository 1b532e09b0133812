"""Where an adapter can be served: what three programs take of it, as their source has it.

Each fact was read in the source of the version named, or measured, on 2026-11-30. What hangs on the
base (which of its layers an engine has LoRA for) is not looked at.

Used by lessons: 09, 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from preflight.adapter_check.folder import AdapterFolder
from preflight.adapter_check.uses import USES

VLLM, LLAMA = "vLLM 0.33.0", "llama.cpp (in llama-cpp-python 0.3.36)"
TRANSFORMERS = "transformers 5.24.0, from_pretrained(folder)"
HELPER, NAMES = "vllm/lora/peft_helper.py", "vllm/lora/utils.py"
CONVERT, APPLY = "convert_lora_to_gguf.py", "src/llama-adapter.h"
INJECT = "peft/mapping.py"
OLD_PEFT = "peft below 0.14"  # measured with 0.12.0 and 0.13.2; 0.14.0 loads the same folder

# What each reads of the tensors, by their names.
VLLM_READS = (
    r"\.lora_[AB]\.weight$|\.lora_embedding_[AB]$|\.(score|classifier)\.(weight|bias)$"
    r"|\.(embed_tokens|lm_head)\.base_layer\.weight$"
)
LLAMA_READS = r"\.lora_[AB]\.weight|\.lora_embedding_[AB]|\.base_layer\.weight|_layernorm|\.norm"
LLAMA_NORMS = r"(_layernorm|\.norm)[^.]*\.(weight|bias)$"  # converted, and skipped when loaded
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py; 16 is the default
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # they leave the base as it is
# Settings of LoRA that change what it computes, and that none was tried with.
UNUSUAL = (
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "arrow_config",
    "monteclora_config",
    "kasa_config",
)
ONE_ALPHA = "it has one alpha for all layers; as_plain_lora puts the others into the matrices"
# Of these peft makes a model only by get_peft_model: tests/test_adapter_check.py asks peft.
NOT_INJECTED = (
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "FROD", "MULTITASK_PROMPT_TUNING", "P_TUNING",
    "PREFIX_TUNING", "PROMPT_TUNING", "PVERA", "SHADOW", "TINYLORA", "UNILORA", "VBLORA", "VERA",
)  # fmt: skip


class Fact(NamedTuple):
    """What an engine does: "refuses", "changes" (takes, as another model), "needs" an option.

    `of` returns what in the adapter it is about, "" if nothing is.
    """

    engine: str
    effect: str
    of: Callable[[AdapterFolder], str]
    source: str


@dataclass(frozen=True)
class Served:
    """What an engine makes of an adapter: "takes", "needs", "changes", "refuses" or "not known"."""

    engine: str
    effect: str
    why: str = ""
    source: str = ""

    def __str__(self) -> str:
        why = f": {self.why} ({self.source})" if self.why else ""
        return f"{self.engine}: {WORDS[self.effect]}{why}"


WORDS = {
    "takes": "takes it",
    "needs": "takes it with an option",
    "changes": "takes it and answers as another model",
    "refuses": "refuses it",
    "not known": "not known",
}


def served_by(folder: AdapterFolder) -> tuple[Served, ...]:
    """Return what each engine makes of an adapter: the worst that holds, with the reasons."""
    # Versions that are no longer installed anew are named only where they refuse.
    named = (VLLM, LLAMA, TRANSFORMERS, *([OLD_PEFT] if _unknown_to_old(folder) else []))
    return tuple(_verdict(engine, folder) for engine in named)


def _verdict(engine: str, folder: AdapterFolder) -> Served:
    facts = [fact for fact in FACTS if fact.engine == engine]
    found = [(f.effect, text, f.source) for f in facts if (text := f.of(folder))]
    for effect in ("refuses", "changes", "not known", "needs"):
        reasons = [(text, source) for kind, text, source in found if kind == effect]
        if reasons:
            texts, sources = zip(*reasons, strict=True)
            return Served(engine, effect, "; ".join(texts), ", ".join(dict.fromkeys(sources)))
    return Served(engine, "takes")


def _setting(name: str, says: str = "") -> Callable[[AdapterFolder], str]:
    """Return what says whether a setting of the config is on."""
    return lambda folder: (says or name) if folder.config.get(name) else ""


def _unread(known: str) -> Callable[[AdapterFolder], str]:
    """Return what names the tensors that an engine does not read, by the ends of their names."""

    def text(folder: AdapterFolder) -> str:
        ends = {".".join(name.split(".")[-2:]) for name in folder.others(known)}
        shown = sorted(ends)[:3]
        more = f" and {len(ends) - len(shown)} more" if len(ends) > len(shown) else ""
        return f"tensors that it does not read ({', '.join(shown)}{more})" if ends else ""

    return text


def _saved_whole(folder: AdapterFolder) -> str:
    names = [name for name in folder.modules_to_save if name not in ("classifier", "score")]
    return f"modules_to_save ({', '.join(names)})" if names else ""


def _missing_fields(folder: AdapterFolder) -> str:
    missing = [name for name in ("r", "lora_alpha", "target_modules") if name not in folder.config]
    return f"the type {folder.kind} (its config has no {', '.join(missing)})" if missing else ""


def _start(folder: AdapterFolder) -> str:
    """Return a start of LoRA that changes the base when it is loaded, in peft alone."""
    start = folder.config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        return f"init_lora_weights={start!r}, which changes the base"
    return ""


def _max_rank(folder: AdapterFolder) -> str:
    allowed = next((one for one in MAX_RANKS if one >= folder.rank), None)
    if folder.rank <= 16 or allowed is None:
        return ""
    return f"rank {folder.rank} needs --max-lora-rank {allowed} (default: 16)"


def _above_all_ranks(folder: AdapterFolder) -> str:
    return f"rank {folder.rank} is above {MAX_RANKS[-1]}" if folder.rank > MAX_RANKS[-1] else ""


def _bias(folder: AdapterFolder) -> str:
    bias = folder.config.get("bias", "none")
    return f"bias={bias!r}" if bias != "none" else ""


def _rslora(folder: AdapterFolder) -> str:
    if not folder.config.get("use_rslora"):
        return ""
    factor = sqrt(folder.rank)
    return (
        f"rsLoRA: it scales by alpha / r, {factor:.1f} times too little; as_plain_lora puts that "
        f"into the matrices (or, with one rank, --lora-scaled FILE:{factor:.4g} makes up for it)"
    )


def _norms(folder: AdapterFolder) -> str:
    count = len(folder.tensors) - len(folder.others(LLAMA_NORMS))
    return f"it skips the {count} trained norms when it loads them" if count else ""


def _of_tied(folder: AdapterFolder) -> str:
    """Return what llama.cpp takes on untied embeddings alone; it takes no tied ones."""
    parts = {"lora_embedding_": "the embedding", "lm_head.lora_": "the output layer"}
    names = [text for part, text in parts.items() if folder.has(part)]
    return f"LoRA on {' and '.join(names)}, but not where both are tied" if names else ""


def _unusual(folder: AdapterFolder) -> str:
    return ", ".join(name for name in UNUSUAL if folder.config.get(name))


def _unknown_to_old(folder: AdapterFolder) -> str:
    newer = folder.kind == "LORA" and "peft_version" in folder.config
    return "a TypeError, for settings that it does not know" if newer else ""


def _not_injected(folder: AdapterFolder) -> str:
    return f"the type {folder.kind}" if folder.kind in NOT_INJECTED else ""


def _old(folder: AdapterFolder) -> str:
    wrong = [use for use in USES if use.severity == "error" and use.holds(folder)]
    return f"{wrong[0].code}, as said above" if wrong else ""


def _dora(folder: AdapterFolder) -> str:
    return "DoRA's magnitudes stay as at the start" if folder.config.get("use_dora") else ""


FACTS = (
    Fact(VLLM, "refuses", _missing_fields, HELPER),
    Fact(VLLM, "refuses", _saved_whole, HELPER),
    Fact(VLLM, "refuses", _setting("use_dora", "DoRA"), HELPER),
    Fact(VLLM, "refuses", _setting("lora_bias"), HELPER),
    Fact(VLLM, "refuses", _bias, HELPER),
    Fact(VLLM, "refuses", _start, HELPER),
    Fact(VLLM, "refuses", _setting("alora_invocation_tokens", "aLoRA"), HELPER),
    Fact(VLLM, "refuses", _setting("layer_replication"), HELPER),
    Fact(VLLM, "refuses", _setting("use_bdlora", "BD-LoRA"), HELPER),
    Fact(VLLM, "refuses", _setting("use_qalora", "QALoRA"), HELPER),
    Fact(VLLM, "refuses", _unread(VLLM_READS), NAMES),
    Fact(VLLM, "refuses", _above_all_ranks, "vllm/config/lora.py"),
    Fact(VLLM, "needs", _max_rank, "vllm/config/lora.py"),
    Fact(LLAMA, "refuses", _missing_fields, CONVERT),
    Fact(LLAMA, "refuses", _unread(LLAMA_READS), CONVERT),
    Fact(LLAMA, "refuses", _setting("layer_replication"), "src/llama-adapter.cpp"),
    Fact(LLAMA, "changes", _rslora, APPLY),
    Fact(LLAMA, "changes", _setting("alpha_pattern", ONE_ALPHA), APPLY),
    Fact(LLAMA, "changes", _start, CONVERT),
    Fact(LLAMA, "changes", _norms, "src/llama-adapter.cpp"),
    Fact(LLAMA, "not known", _of_tied, "measured with xllamacpp 2026.10.11549"),
    Fact(LLAMA, "not known", _unusual, "not tried"),
    Fact(VLLM, "not known", _unusual, "not tried"),
    Fact(TRANSFORMERS, "refuses", _not_injected, INJECT),
    Fact(TRANSFORMERS, "refuses", lambda folder: "BONE" * (folder.kind == "BONE"), INJECT),
    Fact(TRANSFORMERS, "changes", _old, "measured"),
    Fact(TRANSFORMERS, "changes", _dora, "measured"),
    Fact(OLD_PEFT, "refuses", _unknown_to_old, "measured"),
)


def engine_rows(served: tuple[Served, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a table: engine, what it does, why, and the source."""
    for one in served:
        yield one.engine, WORDS[one.effect], one.why, one.source
