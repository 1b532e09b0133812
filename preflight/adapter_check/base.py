"""Whether an adapter fits its base: names and shapes, held against what peft makes on the base.

Used by lessons: 09, 12.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from transformers import PretrainedConfig, PreTrainedModel

from course_utils.configs import build_empty, load_config
from preflight.adapter_check.folder import PREFIX, AdapterFolder
from preflight.findings import Finding, finding
from preflight.training_check.adapter_rules import empty_adapter, rule_findings

Shapes = dict[str, tuple[int, ...]]

# The class of transformers for a task of peft; of others, configs.build_empty chooses one.
CLASSES = {
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}


def fit(folder: AdapterFolder, base: str | Path | PretrainedConfig) -> tuple[str, list[Finding]]:
    """Return what the base is, in a line, and what of the adapter does not fit it.

    The base is built from its config, without weights.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `configs.load_config` and `build_empty`.
    """
    config = load_config(base)
    model = _empty(config, folder.config.get("task_type"))
    text = config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    tied = "tied" if getattr(text, "tie_word_embeddings", False) else "not tied"
    about = f"held against {type(model).__name__}: vocabulary {vocabulary}, embeddings {tied}"
    try:
        peft_config = PeftConfig.from_peft_type(**folder.config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Peft refuses the config in '{folder.path}': {error}. Allowed is what peft writes. "
            "Correct it, or save the adapter again."
        ) from error
    found, shapes, refusals = [*_tokens(peft_config, vocabulary)], None, []
    if not found:
        try:
            model = empty_adapter(peft_config, model)
            shapes = _shapes(model)
        except NotImplementedError:  # SHiRA and others choose by the weights, which are not here
            about += "; names and shapes are not: this type makes them from the base's weights"
        except ValueError as error:
            refusals = [_refusal(folder, error)]
    found += [*rule_findings(peft_config, model), *refusals]
    if shapes:
        found += _differences(folder, *shapes, vocabulary)
    return about, found


def _empty(config: PretrainedConfig, task: str | None) -> PreTrainedModel:
    kind = CLASSES.get(task or "")
    if kind is None or type(config) not in kind._model_mapping:
        return build_empty(config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_config(config, trust_remote_code=False)


def _tokens(config: PeftConfig, vocabulary: int | None) -> Iterator[Finding]:
    """Yield a finding if a token is trained that the base does not have."""
    given = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", [])
    numbers = given.values() if isinstance(given, dict) else [given]
    highest = max((n for some in numbers for n in some), default=-1)
    if vocabulary is not None and highest >= vocabulary:
        yield _grown(highest + 1, vocabulary, "a trained token")


def _grown(rows: int, vocabulary: int, what: str) -> Finding:
    return finding(
        "vocabulary",
        f"The adapter has {rows:,} tokens ({what}), and the base {vocabulary:,}: loading it ends "
        "in an error.",
        f"First base.resize_token_embeddings({rows}), or len(tokenizer) of the tokenizer that was "
        "trained with: ship that one in the folder.",
    )


def _refusal(folder: AdapterFolder, error: ValueError) -> Finding:
    reason = " ".join(str(error).split())
    return finding(
        "base",
        f"Peft cannot make this adapter on the base: {reason[:200]}",
        f"Give the base that it was trained on; its config names {folder.base or 'none'} as that.",
    )


def _differences(
    folder: AdapterFolder, wanted: Shapes, there: Shapes, vocabulary: int | None
) -> Iterator[Finding]:
    saved = {name: one.shape for name, one in folder.tensors.items()}
    known = there | wanted
    # The size of a head is that of the training's labels, and stands in no base.
    labels = folder.config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS")
    heads = tuple(f".{name}." for name in folder.modules_to_save) if labels else ()
    other = {
        name: shape
        for name, shape in saved.items()
        if name in known and shape != known[name] and not any(head in name for head in heads)
    }
    grown = {n: rows for n, shape in other.items() if (rows := _rows(shape, known[n], vocabulary))}
    if grown:
        name, rows = next(iter(grown.items()))
        yield _grown(rows, vocabulary, name.removeprefix(PREFIX))
    if wrong := [name for name in other if name not in grown]:
        name = wrong[0]
        yield finding(
            "shapes",
            f"{len(wrong)} of {len(saved)} tensors have another shape than the base wants, such as "
            f"{name.removeprefix(PREFIX)}: {list(saved[name])}, where {list(known[name])} is "
            "wanted: loading ends in an error. Allowed is the base that it was trained on.",
            "Give that one. If it is, the config is not that of these weights: save both again.",
        )
    lacking = [name for name in wanted if name not in saved]
    left = [name for name in saved if name not in known]
    if lacking or left:
        name = (lacking or left)[0]
        layers = {one.rpartition(".")[0] for one in wanted}
        # A layer's part that a newer peft computes anew, such as boft_P, does no harm.
        harmless = not lacking and layers.issuperset(one.rpartition(".")[0] for one in left)
        yield finding(
            "names",
            f"Peft looks for {len(wanted)} tensors on this base: {len(lacking)} of them are not in "
            f"the folder and stay as at the start, and {len(left)} that are in it have no place "
            f"and are left out, with a warning at most. The first: {name.removeprefix(PREFIX)}.",
            "Give the base that the adapter was trained on, and load it with the peft that saved "
            f"it ({folder.config.get('peft_version') or 'below 0.18'}).",
            "warning" if harmless else "error",
        )


def _rows(shape: tuple[int, ...], wanted: tuple[int, ...], vocabulary: int | None) -> int:
    """Return how many tokens a tensor is for, if that alone is other than wanted; else 0."""
    if len(shape) != len(wanted):
        return 0
    other = [(a, b) for a, b in zip(shape, wanted, strict=True) if a != b]
    return other[0][0] if len(other) == 1 and other[0][1] == vocabulary else 0


def _shapes(adapted: PeftModel) -> tuple[Shapes, Shapes]:
    """Return the shapes of what peft saves of an adapter, and of all that is in its model."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # they are meant for a model that is used
        # "auto" asks the hub whether the vocabulary has grown.
        state: dict[str, Any] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        # Where the vocabulary has grown, it saves all that is in the embeddings, some of it twice.
        grown = get_peft_model_state_dict(adapted, save_embedding_layers=True)
    there = {n: tuple(one.shape) for n, one in (adapted.state_dict() | grown).items()}
    return {name: tuple(one.shape) for name, one in state.items()}, there
