"""A few completions of a GRPOTrainer's model, made as the trainer makes them and without a trace.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from preflight.findings import Finding, finding
from preflight.training_check.probing import no_trace


@dataclass
class Group:
    """A prompt's completions, as reward functions are given them, and what making them took."""

    row: dict[str, Any]
    completions: list[Any]
    ids: list[list[int]]
    ended: int
    seconds: float


def can_generate(trainer: Trainer) -> bool:
    """Return whether the model is whole here and answers by itself, with nothing but text."""
    weight = next(trainer.model.parameters())
    shared = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or weight.is_meta
    own = (getattr(trainer, name, None) for name in ("rollout_func", "environment_factories"))
    pictures = {"image", "images"} & {*trainer.train_dataset.column_names}
    engine = trainer.use_vllm or trainer.args.use_transformers_continuous_batching
    return not (shared or engine or pictures or trainer.tools or any(own))


def generated(trainer: Trainer, place: int) -> Group:
    """Return a group of completions of a row's prompt, made as the trainer makes them."""
    row = trainer.train_dataset.with_format(None)[place]
    prompt, tokenizer = row["prompt"], trainer.processing_class
    if isinstance(prompt, list):
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True,
            chat_template=trainer.chat_template, **trainer.chat_template_kwargs,
        )["input_ids"]  # fmt: skip
    else:
        ids = tokenizer(text=prompt)["input_ids"]
    device = next(trainer.model.parameters()).device
    given = torch.tensor([ids] * trainer.num_generations, device=device)
    ends, begun = {*trainer.eos_token_ids}, time.perf_counter()
    with no_trace(trainer), other_numbers():
        torch.rand(1_000 * place, device=device)  # each group has random numbers of its own
        made = trainer.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            generation_config=copy.deepcopy(trainer.generation_config),
        )
    seconds = time.perf_counter() - begun
    cut, ended = [], 0
    for one in made[:, given.shape[1] :].tolist():
        end = next((n for n, token in enumerate(one) if token in ends), None)
        ended += end is not None
        cut.append(one if end is None else one[: end + 1])
    texts = tokenizer.batch_decode(cut, skip_special_tokens=True)
    return Group(row, [as_completion(text, prompt) for text in texts], cut, ended, seconds)


def as_completion(text: str, prompt: Any) -> Any:
    """Return a text as reward functions are given it, by the form of its prompt."""
    return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text


@contextmanager
def other_numbers() -> Iterator[None]:
    """Keep the random numbers of Python and NumPy, which reward functions may draw."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def ending_findings(trainer: Trainer, groups: list[Group]) -> Iterator[Finding]:
    """Yield a finding if no completion ends before it is cut off."""
    count = sum(len(group.ids) for group in groups)
    if any(group.ended for group in groups):
        return
    masked = trainer.args.mask_truncated_completions
    yield finding(
        "never_ends",
        f"None of {count} completions ends within max_completion_length="
        f"{trainer.max_completion_length} ({cost(groups)}): all are cut off. "
        + (
            "mask_truncated_completions=True leaves such out of the loss: nothing is learned."
            if masked
            else "The reward judges halves of answers, and none is rewarded for its end."
        ),
        "Raise max_completion_length; or train first with SFT, with the end-of-sequence token in "
        "the rows.",
        "error" if masked else "warning",
    )


def cost(groups: list[Group]) -> str:
    """Return what making completions took, in words."""
    tokens = sum(len(ids) for group in groups for ids in group.ids)
    return f"{tokens:,} tokens in {sum(group.seconds for group in groups):.1f} s"
