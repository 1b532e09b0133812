"""What holds of each of peft's adapter types, measured: data/results/adapter_types.json.

    OMP_NUM_THREADS=1 python benchmarks/adapter_types.py      half a minute of one core

A tiny random model gets an adapter of each type, whose trained weights are moved at random until
some logit has moved by 1 or more. Then five questions are asked of the libraries as they are, each
answered by the largest difference of a logit; TOLERANCE, a thousandth of that move, is none. What a
type does not do has its reason in REASONS, found by reading peft. AdaMSS is left out where
scikit-learn is missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import generation
from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT

RESULTS = COURSE_ROOT / "data" / "results" / "adapter_types.json"
SCHEMA = 1
TOLERANCE = 1e-3
QUESTIONS = {
    "merged": "`merge_and_unload()` gives the model with the adapter",
    "off": "with `disable_adapter()` it is the base model",
    "batched": "`generate()` in a batch padded on the left, as alone",
    "cached": "`generate()` with its cache, as the forward pass says of the text so far",
    "reloaded": "saved and loaded onto a fresh base it is the trained model",
}
LIBRARIES = ("torch", "transformers", "peft", "scikit-learn")

LINEAR: dict[str, object] = {"target_modules": "all-linear"}
# What a type needs besides its defaults: all linear layers, where nothing else is said.
SETTINGS: dict[str, dict[str, object]] = {
    "ADALORA": LINEAR | {"init_r": 12, "tinit": 2, "tfinal": 2, "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 8, "adapter_layers": 2},
    "BOFT": LINEAR | {"boft_block_size": 4},
    "C3A": LINEAR | {"block_size": 64},
    "CARTRIDGE": {"num_virtual_tokens": 8},
    "CPT": {},
    "FROD": LINEAR | {"progressbar": False},
    "IA3": {},
    "LN_TUNING": {},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 8, "num_tasks": 2},
    "OFT": LINEAR | {"oft_block_size": 32},
    "POLY": LINEAR | {"n_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 8},
    "PROMPT_TUNING": {"num_virtual_tokens": 8},
    "P_TUNING": {"num_virtual_tokens": 8},
    "SHADOW": {},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3]},
    "VBLORA": {"target_modules": ["q_proj", "o_proj"], "num_vectors": 16, "vector_length": 64},
}
VARIANTS: dict[str, dict[str, object]] = {
    "LORA (DoRA)": {"use_dora": True},
    "LORA (PiSSA)": {"init_lora_weights": "pissa"},
    "LORA (OLoRA)": {"init_lora_weights": "olora"},
}
BY_TASK = ("MULTITASK_PROMPT_TUNING", "POLY")  # a row says which task it is of

PROMPTS = "CPT", "MULTITASK_PROMPT_TUNING", "PROMPT_TUNING", "P_TUNING"
PREFIXES = "CARTRIDGE", "PREFIX_TUNING"
RENAMED = "transformers 5.24 hands the cache on as `cache`; peft 0.21.2 looks for `past_key_values`"
AVERAGED = "each layer mixes its experts by the mean over all tokens of the batch, padding included"
STARTS = "the start is taken out of the base weights, and switching off does not put it back"
REASONS: dict[str, dict[tuple[str, ...], str]] = {
    "merged": {
        (*PROMPTS, *PREFIXES): "virtual tokens are no weights: there is nothing to merge them into",
        ("ADAPTION_PROMPT",): "what it adds to the attention depends on the text",
        ("BEFT",): "it trains biases, and the layers of this model have none to merge them into",
        ("LILY",): "its matrix depends on the text",
        ("POLY",): "its matrix depends on the row's task",
        ("SHADOW",): "what it adds comes from a second, smaller model",
        ("XLORA",): "each LoRA is merged whole, without the share that the classifier gives it",
    },
    "off": {("LORA (PiSSA)", "LORA (OLoRA)"): STARTS},
    "batched": {
        PROMPTS: "the padding comes to lie between virtual tokens and text, and positions count it",
        PREFIXES: f"{RENAMED}, so the prefix is missing and the mask is shifted by its length",
        ("LILY",): AVERAGED,
        ("SHADOW",): f"{RENAMED}, so the second model sees the last token alone",
    },
    "cached": {
        PROMPTS: f"{RENAMED}, finds none, and puts the virtual tokens in again before each token",
        PREFIXES: f"{RENAMED}, so the prefix is missing: it is the base model that writes",
        ("LILY",): f"{AVERAGED}; with a cache that is the last token alone",
        ("SHADOW",): f"{RENAMED}, so the second model sees the last token alone",
    },
    "reloaded": {},
}


def names() -> list[str]:
    """Return all that can be measured: peft's types, and variants of LoRA."""
    return sorted([*(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING), *VARIANTS])


def base() -> LlamaForCausalLM:
    """Return the base model, the same each time; its logits reach about 5."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=256, initializer_range=0.1,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rows() -> list[torch.Tensor]:
    """Return two texts of unlike length; both have the tokens that TRAINABLE_TOKENS trains."""
    generator = torch.Generator().manual_seed(0)
    texts = (torch.randint(4, 96, (length,), generator=generator) for length in (9, 3))
    return [torch.cat([torch.tensor([1, 2, 3]), text]) for text in texts]


def adapted(name: str, folder: Path) -> PeftModel:
    """Return the base model with an adapter whose trained weights are not those of its start."""
    kind = name.partition(" ")[0]
    model = base()
    settings = VARIANTS.get(name, {}) | SETTINGS.get(kind, LINEAR)
    if kind == "XLORA":  # a mixture of adapters that are there already
        model.config.use_cache = False
        settings = {"hidden_size": model.config.hidden_size, "adapters": {}}
        for place in ("0", "1"):
            lora = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LINEAR)
            get_peft_model(base(), lora).save_pretrained(folder / place)
            settings["adapters"][place] = str(folder / place)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type="CAUSAL_LM", **settings)
    return get_peft_model(model, config).eval()


@torch.no_grad()
def disturb(model: PeftModel, ask: Callable[[], float]) -> float:
    """Move the trained weights at random, the more the less comes of it; return what came of it."""
    for std in (0.1, 0.3, 1, 3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn_like(parameter)
        if (effect := ask()) >= 1:
            break
    return effect


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """Return what one type of adapter does, or why it could not be tried."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = adapted(name, Path(place))
        except ImportError as error:
            return {"untried": str(error)}
        return _answers(name, model, Path(place))


def _answers(name: str, model: PeftModel, folder: Path) -> dict[str, Any]:
    long, short = rows()

    def task(count: int) -> dict[str, torch.Tensor]:
        return {"task_ids": torch.ones(count, dtype=torch.long)} if name in BY_TASK else {}

    def logits(model: Any, text: torch.Tensor = long, **more: Any) -> torch.Tensor:
        ids = text[None]
        return model(input_ids=ids, attention_mask=ids**0, **more).logits[0, -len(text) :]

    def write(*texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the four tokens that generate() writes after each text, and their logits."""
        ids, mask = generation.padded([text.tolist() for text in texts], 0, model.device)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            output_logits=True, return_dict_in_generate=True, **task(len(texts)),
        )  # fmt: skip
        return out.sequences[:, -4:], torch.stack(out.logits, 1)

    plain = logits(base())
    effect = disturb(model, lambda: _apart(logits(model, **task(1)), plain))
    trained = logits(model, **task(1))

    def off() -> float:
        with model.disable_adapter():
            return _apart(logits(model, **task(1)), plain)

    def batched() -> float:
        return _apart(write(long, short)[1], torch.cat([write(long)[1], write(short)[1]]))

    def cached() -> float:
        (tokens,), (said,) = write(long)
        texts = [torch.cat([long, tokens[:place]]) for place in range(4)]
        return _apart(said, torch.stack([logits(model, text, **task(1))[-1] for text in texts]))

    def reloaded() -> float:
        model.save_pretrained(folder / "saved")
        fresh = base()
        fresh.config.use_cache = model.config.use_cache
        torch.manual_seed(1)  # another session has other random numbers
        return _apart(
            logits(PeftModel.from_pretrained(fresh, folder / "saved"), **task(1)), trained
        )

    def merged() -> float:  # the last one, since it takes the model apart
        return _apart(logits(model.merge_and_unload()), trained)

    found = {"off": off, "batched": batched, "cached": cached, "reloaded": reloaded}
    answers = {question: _answer(name, question, ask) for question, ask in found.items()}
    if name not in BY_TASK:
        way = generation.way_of(model, long.tolist(), short.tolist(), 0, 4)
        answers["course"] = generation.WAYS[way]
    return {"effect": round(effect, 2), "merged": _answer(name, "merged", merged), **answers}


def _answer(name: str, question: str, ask: Callable[[], float]) -> dict[str, Any]:
    """Return whether a question is answered by yes, with the figure, else with the reason."""
    try:
        difference = ask()
    except (AttributeError, NotImplementedError, ValueError) as error:
        answer = {"holds": False, "error": type(error).__name__}
    else:
        answer = {"holds": difference <= TOLERANCE, "difference": float(f"{difference:.1e}")}
    if answer["holds"]:
        return answer
    there = (text for kinds, text in REASONS[question].items() if name in kinds)
    return answer | {"reason": next(there, "")}


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def record() -> dict[str, Any]:
    """Return the whole record; all of it runs on one core."""
    types, started = {}, time.process_time()
    for name in names():
        types[name] = measure(name)
        print(f"{name}: {_line(types[name])}")
    seconds = time.process_time() - started
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "model": "Llama of two layers, 128 wide, with random weights in float32 on a CPU",
        "processor_seconds": round(seconds, 1),
        "tolerance": TOLERANCE,
        "questions": QUESTIONS,
        "types": types,
    }


def _line(found: dict[str, Any]) -> str:
    no = [question for question in QUESTIONS if not found.get(question, {}).get("holds")]
    return found.get("untried") or (f"not {', '.join(no)}" if no else "all")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Measure all types and write the record."""
    torch.set_num_threads(1)
    write_whole(RESULTS, json.dumps(record(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
