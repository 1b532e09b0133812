"""What GRPOTrainer's reward functions see and say: they are called on a few real completions.

Read off trl 1.16. A group is all completions of one prompt; where its rewards are equal, its
advantages are 0, and there is no gradient.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer

from preflight.findings import Finding, finding
from preflight.training_check.completions import (
    Group,
    as_completion,
    can_generate,
    cost,
    ending_findings,
    generated,
    other_numbers,
)
from preflight.training_check.probing import is_a

GROUPS = 4  # at most, each of another prompt, until one has rewards that differ
TEXTS = ("", "the", "{", '{"a": [1, {"b": null}]}', "```json\n1\n```")  # what a model may write
OWN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
HIDDEN = ("prompt", "completion", "completion_ids")  # columns that no reward gets
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
TOLERANCE = 1e-6


def reward_findings(trainer: Trainer) -> Iterator[Finding]:
    if not is_a(trainer, "GRPOTrainer"):
        return
    args, rows = trainer.args, trainer.train_dataset
    options = args.generation_kwargs or {}
    if args.top_k == 1 or options.get("do_sample") is False:
        yield finding(
            "no_sampling",
            "Completions are not sampled (do_sample=False or top_k=1): all of a group are the "
            "same, so are their rewards, and there is no gradient. Allowed is sampling at a "
            "temperature above 0.",
            "Leave do_sample and top_k out; temperature=1.0 is the default.",
        )
    if not isinstance(rows, Dataset) or not len(rows):
        return
    needed = args.generation_batch_size // trainer.num_generations
    if len(rows) < needed:
        yield finding(
            "too_few_prompts",
            f"There are {len(rows)} prompts, and a batch takes {needed} (generation_batch_size="
            f"{args.generation_batch_size} by num_generations={trainer.num_generations}): "
            "GRPOTrainer leaves out a batch that is not full, so it makes no step, and logs a "
            "train_loss of 0.0.",
            f"Give {needed} prompts or more, a smaller batch, or a larger num_generations.",
        )
    if "prompt" not in rows.column_names:
        yield finding(
            "no_prompt",
            f"There is no column 'prompt' in {rows.column_names}: the first step raises KeyError.",
            "Rename the column: dataset.rename_column('question', 'prompt').",
        )
        return
    functions = [*_functions(trainer)]
    wrong = [one for name, call in functions for one in _argument_findings(trainer, name, call)]
    yield from wrong
    told = {one.example for one in wrong if one.severity == "error"}
    callable_ones = [(name, call) for name, call in functions if name not in told]
    if callable_ones and can_generate(trainer):
        yield from _measured(trainer, callable_ones, whole=len(functions) == len(callable_ones))


def _functions(trainer: Trainer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the reward functions that can be called here: no models, no coroutines."""
    for name, one in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True):
        if not isinstance(one, nn.Module) and not inspect.iscoroutinefunction(one):
            yield name, one


def _columns(trainer: Trainer) -> list[str]:
    """Return the columns of the rows that reach a reward function."""
    if trainer.args.remove_unused_columns:
        return [name for name in ("image", "images") if name in trainer.train_dataset.column_names]
    return [name for name in trainer.train_dataset.column_names if name not in HIDDEN]


def _argument_findings(trainer: Trainer, name: str, call: Callable[..., Any]) -> Iterator[Finding]:
    """Hold what a function takes against what it is given. A finding's example is its name."""
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):  # one made in C has none
        return
    passed = [*OWN, *_columns(trainer)]
    takes = [one for one, parameter in parameters.items() if parameter.kind in NAMED]
    absent = [one for one in takes if one not in passed]
    required = [one for one in absent if parameters[one].default is inspect.Parameter.empty]
    there = trainer.train_dataset.column_names
    removed = [one for one in absent if one in there and one not in HIDDEN]
    if required or removed:
        why = ""
        if removed:
            why = " remove_unused_columns=True drops all columns but prompt."
        elif {*absent} & {*HIDDEN}:
            why = " Columns named completion and completion_ids are kept from rewards."
        names = ", ".join(required or removed)
        yield _about(
            name, "reward_column",
            f"The reward function {name} takes {names}, and no such column reaches it."
            f"{why} " + ("The first step raises TypeError." if required else
            "It takes its default for each row, and nothing says so."),
            "Leave remove_unused_columns out (False is GRPOConfig's default), and give the column "
            "the name of the argument.",
            "error" if required else "warning",
        )  # fmt: skip
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    refused = [one for one in passed if one not in takes]
    if not open_ended and refused:
        yield _about(
            name, "reward_arguments",
            f"The reward function {name} does not take {', '.join(refused)}, which GRPOTrainer "
            "gives each of them: the first step raises TypeError (got an unexpected keyword "
            "argument).",
            f"Take the rest, too: def {name}(completions, **kwargs).",
        )  # fmt: skip


def _about(name: str, code: str, what: str, fix: str, severity: str = "error") -> Finding:
    return Finding(severity, code, what, 0, (), fix, example=name)


def _measured(
    trainer: Trainer, functions: list[tuple[str, Callable[..., Any]]], *, whole: bool
) -> Iterator[Finding]:
    """Call the functions on groups of completions, until the rewards of one differ."""
    groups: list[Group] = []
    table: dict[str, list[list[float]]] = {name: [] for name, _ in functions}
    chat = isinstance(trainer.train_dataset.with_format(None)[0]["prompt"], list)
    told: set[str] = set()
    for place in range(min(GROUPS, len(trainer.train_dataset))):
        try:
            groups.append(generated(trainer, place))
        except Exception as error:  # what generate() refuses, the first step would raise
            yield finding(
                "generation",
                f"The model cannot answer the prompt of row {place}: {_said(error)}",
                "Do what the error asks before you train.",
            )
            return
        for name, call in functions:
            if name in told:
                continue
            rewards, problem = _called(trainer, name, call, groups[-1], chat)
            if problem:
                told.add(name)
                yield problem
            else:
                table[name].append(rewards)
        if told or any(_differ(one[-1]) for one in table.values()):
            break
    yield from ending_findings(trainer, groups)
    if not told and whole:
        yield from _equal_findings(trainer, groups, table, chat)
    for name, call in functions:
        if name not in told and (problem := _on_any_text(trainer, name, call, groups[0], chat)):
            yield problem


def _called(
    trainer: Trainer, name: str, call: Callable[..., Any], group: Group, chat: bool
) -> tuple[list[float], Finding | None]:
    """Return the rewards of a group, None for those left out; or what is wrong with them."""
    count = len(group.completions)
    hint = (
        " Completions are lists of messages here: the text is completion[0]['content']."
        if chat
        else ""
    )
    try:
        rewards = _rewards(trainer, call, group)
    except Exception as error:  # a function of the user's may raise anything
        return [], _about(
            name, "reward_fails",
            f"The reward function {name} raises on the model's completions: {_said(error)} "
            f"First completion: {group.completions[0]!r:.80}.{hint}",
            "Catch it, and return 0.0 for such a completion.",
        )  # fmt: skip
    if len(rewards) != count:
        return [], _about(
            name, "reward_length",
            f"The reward function {name} returned {len(rewards)} rewards for {count} completions. "
            "Allowed is one for each; the first step raises ValueError.",
            "return [score(one) for one in completions].",
        )  # fmt: skip
    if any(reward is not None and math.isinf(reward) for reward in rewards):
        return [], _about(
            name, "reward_infinite",
            f"The reward function {name} returned {rewards}: with an infinite one the advantages "
            "of its group are not numbers. Allowed are finite numbers, and None for a completion "
            "that it does not judge.",
            "Bound the reward, such as with min(score, 1.0).",
        )  # fmt: skip
    if all(reward is None or math.isnan(reward) for reward in rewards):
        if len(trainer.reward_funcs) == 1:
            return [], _about(
                name, "reward_none",
                f"The reward function {name} returned None or NaN for all {count} completions: "
                "such are left out, so there is no gradient. The loss is 0, with a line in the "
                "log.",
                "Return a number for each completion that it can judge.",
            )  # fmt: skip
    return [math.nan if reward is None else reward for reward in rewards], None


def _rewards(trainer: Trainer, call: Callable[..., Any], group: Group) -> list[float | None]:
    """Return what a function gives a group, as numbers. Raises what the function does."""
    count = len(group.completions)
    rows = {name: [copy.deepcopy(group.row[name]) for _ in range(count)]
            for name in _columns(trainer)}  # fmt: skip
    with other_numbers(), torch.random.fork_rng(devices=[]):
        given = call(
            prompts=[copy.deepcopy(group.row["prompt"]) for _ in range(count)],
            completions=copy.deepcopy(group.completions),
            completion_ids=copy.deepcopy(group.ids),
            trainer_state=copy.deepcopy(trainer.state),
            log_extra=lambda column, values: None,
            log_metric=lambda name, value: None,
            **rows,
        )
    return [None if reward is None else float(reward) for reward in given]


def _on_any_text(
    trainer: Trainer, name: str, call: Callable[..., Any], group: Group, chat: bool
) -> Finding | None:
    """Return a finding if a function raises at a text that a model may well write."""
    for text in TEXTS:
        # One of a group, since a function may compare the completions of a batch.
        texts = [as_completion(text, group.row["prompt"]), *group.completions[1:]]
        one = Group(group.row, texts, group.ids, group.ended, group.seconds)
        try:
            _rewards(trainer, call, one)
        except Exception as error:  # a function of the user's may raise anything
            return _about(
                name, "reward_raises",
                f"The reward function {name} raises where a completion is {text!r}: "
                f"{_said(error)} A model writes such sooner or later, and the training stops.",
                "Catch it, and return 0.0 for such a completion.",
            )  # fmt: skip
    return None


def _differ(rewards: list[float]) -> bool:
    known = [reward for reward in rewards if not math.isnan(reward)]
    return bool(known) and max(known) - min(known) > TOLERANCE


def _equal_findings(
    trainer: Trainer, groups: list[Group], table: dict[str, list[list[float]]], chat: bool
) -> Iterator[Finding]:
    if any(_differ(rewards) for one in table.values() for rewards in one):
        return
    said = ", ".join(
        f"{name} {_values([reward for rewards in one for reward in rewards])}"
        for name, one in table.items()
    )
    same = all(len({str(one) for one in group.completions}) == 1 for group in groups)
    hint = " Completions are lists of messages here, not text." if chat else ""
    yield finding(
        "equal_groups",
        f"In {len(groups)} groups of {trainer.num_generations} completions ({cost(groups)}) all "
        f"rewards of a group are equal: {said}. Their advantages are 0, so that there is no "
        "gradient." + (" The completions of a group are the same, too." if same else "") + hint,
        "Take prompts of which the model answers some rightly, a reward with steps between right "
        "and wrong, or a larger num_generations; frac_reward_zero_std in the log says how many "
        "groups are such.",
        "warning",
    )


def _values(rewards: list[float]) -> str:
    known = sorted({round(reward, 4) for reward in rewards if not math.isnan(reward)})
    return f"always {known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"


def _said(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if text.endswith((".", "!", "?")) else f"{text}."
