"""Checks a list of target names against a model, and suggests one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from preflight.lora_targets.discovery import (
    Model,
    adapter_size,
    is_reached,
    open_model,
    survey,
    target_regex,
)
from preflight.lora_targets.layers import find_layers
from preflight.lora_targets.peft_rules import ALL_LINEAR, matches, reach, rewritten
from preflight.lora_targets.results import CheckedName, Suggestion, TargetCheck
from preflight.lora_targets.target_table import Target, TargetTable

# What families call the same matrix. A wrong name is first looked up here: by its letters alone,
# GPT-2's c_proj is nearer to q_proj than c_attn is.
ROLES = tuple(
    tuple(words.split())
    for words in (
        "q_proj query q wq q_lin query_proj Wq q_a_proj c_attn query_key_value qkv_proj Wqkv qkv",
        "k_proj key k wk k_lin key_proj Wk kv_a_proj_with_mqa kv_proj c_attn query_key_value "
        "qkv_proj Wqkv qkv",
        "v_proj value v wv v_lin value_proj Wv kv_b_proj kv_proj c_attn query_key_value qkv_proj "
        "Wqkv qkv",
        "o_proj out_proj o wo out_lin attn.c_proj attention.output.dense self_attention.dense "
        "dense Wo",
        "gate_proj w1 gate_up_proj wi_0 Wi fc1 c_fc dense_h_to_4h intermediate.dense fc_in wi "
        "experts.gate_up_proj",
        "up_proj w3 gate_up_proj wi_1 Wi fc1 c_fc dense_h_to_4h intermediate.dense fc_in wi "
        "experts.gate_up_proj",
        "down_proj w2 fc2 mlp.c_proj c_proj dense_4h_to_h fc_out lin2 *.output.dense wo Wo "
        "experts.down_proj",
    )
)


def check_targets(model: Model, names: Sequence[str] | str, r: int = 8) -> TargetCheck:
    """Return which target names hit how many layers of a model, which none, and what was meant.

    `names` is what LoraConfig takes as target_modules: a list of names, of which each fits a whole
    name or its last parts up to a dot, or a string: "all-linear" or a regular expression that fits
    a whole name. peft raises only if nothing at all matches (peft issue 1959), so a wrong name in a
    list costs silently. `model` and `r` are as in `discover`.

    Raises:
        ValueError: if there is no name, or one is not a string.
    """
    names = _validate(names)
    label, model = open_model(model)
    table = survey(label, model, r)
    try:
        reached = reach(model, names, r=r)
    except re.error as error:
        raise ValueError(
            f"{names!r} is no regular expression ({error}). A string is "
            'one, or "all-linear"; for names give a list: ["q_proj", "v_proj"].'
        ) from error
    entries = [names] if isinstance(names, str) else names
    checked = [
        _check(name, entries[:place], names, model, table) for place, name in enumerate(entries)
    ]
    layers = find_layers(model)
    return TargetCheck(
        model=label,
        rank=r,
        names=tuple(checked),
        layers=sum(is_reached(layer.name, reached) for layer in layers),
        adapter=adapter_size(layers, reached, r),
        error=reached.error,
    )


def suggest(model: Model, what: str = "all-linear", r: int = 8) -> Suggestion:
    """Return arguments for LoraConfig that target what is asked for, and nothing else.

    `what` is a kind that occurs in the model ("attention", "MLP", "expert", ...), several joined by
    "+", or "all-linear": every linear layer of the language model's blocks, without the output
    layer, routers and other towers, which peft's own "all-linear" would include. Experts that are
    3-D parameters come only when asked for: "all-linear+expert". Use it as
    `LoraConfig(r=8, **suggest(model, "attention"))`.

    Raises:
        ValueError: if the model has no such layers; the allowed words are listed.
    """
    label, model = open_model(model)
    table = survey(label, model, r)
    chosen = _chosen(table, what)
    modules = [t for t in chosen if not t.as_parameter]
    target_parameters = [
        name
        for t in chosen
        if t.as_parameter
        for name in ([t.as_parameter] if "*" not in t.as_parameter else t.layers)
    ]
    names = [layer for t in modules for layer in t.layers]
    # The last resort is to name each layer whole: peft cuts a regular expression down to the last
    # parts of names where it converts the targets of a mixture of experts.
    endings = _endings(names, [name for name, _ in model.named_modules()])
    forms = [endings, target_regex([t.name for t in modules]), names]
    wanted = {layer for t in chosen for layer in t.layers}
    layers = find_layers(model)
    for target_modules in forms[
        any(part.isdigit() for e in endings for part in e.split(".")[:-1]) :
    ]:
        reached = reach(model, target_modules, target_parameters, r)
        if {layer.name for layer in layers if is_reached(layer.name, reached)} == wanted:
            break
    else:
        raise RuntimeError(
            f"{what!r} of {label} cannot be told from other layers by any target_modules of peft. "
            "Choose another kind: see discover(...)."
        )
    return Suggestion(
        what=what,
        target_modules=target_modules,
        target_parameters=target_parameters,
        layers=len(wanted),
        adapter=adapter_size(layers, reached, r),
        rank=r,
        notes=_notes(table, chosen),
    )


def _endings(wanted: Sequence[str], everything: Sequence[str]) -> list[str]:
    """Return the shortest ends of names, up to a dot, that fit the wanted ones and no others."""

    def ends(name: str) -> list[str]:
        parts = name.split(".")
        # A number alone at the end says nothing of what it counts.
        first = 2 if parts[-1].isdigit() else 1
        return [".".join(parts[-n:]) for n in range(first, len(parts) + 1)]

    fits, hits = (
        Counter(e for name in names for e in ends(name)) for names in (everything, wanted)
    )
    return list(dict.fromkeys(next(e for e in ends(n) if fits[e] == hits[e]) for n in wanted))


def _validate(names: Sequence[str] | str) -> list[str] | str:
    allowed = 'Give a list such as ["q_proj", "v_proj"], or "all-linear", or a regular expression.'
    if isinstance(names, str):
        if not names.strip():
            raise ValueError(f"An empty string was given as target names. {allowed}")
        return names
    try:
        names = list(names)
    except TypeError:
        raise ValueError(f"{names!r} was given as target names. {allowed}") from None
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong or not names:
        given = f"{wrong[0]!r} is among the target names" if wrong else "No target name was given"
        raise ValueError(f"{given}. {allowed}")
    return names


def _check(
    name: str,
    before: Sequence[str],
    names: list[str] | str,
    model: nn.Module,
    table: TargetTable,
) -> CheckedName:
    as_regex = isinstance(names, str)
    if as_regex and name.lower() == ALL_LINEAR:
        found = [t for t in table if t.in_all_linear]
        return CheckedName(name, sum(t.in_all_linear for t in found), _kinds(found))
    rule = name if as_regex else {name}
    hits = [(t, sum(matches(rule, layer) for layer in t.layers)) for t in table]
    hits = [(t, n) for t, n in hits if n and t.type != "Parameter"]
    kinds, count = _kinds([t for t, _ in hits]), sum(n for _, n in hits)
    problem, nearest = "", ""
    replaced = () if as_regex else rewritten(model, name.rpartition(".")[2])
    if replaced:
        experts = [t for t in table if t.as_parameter.rpartition(".")[2] in replaced]
        experts = experts or [t for t in table if t.as_parameter and t.as_parameter in replaced]
        count, kinds = sum(t.count for t in experts), _kinds(experts)
        if hits:
            problem = f"peft puts {', '.join(sorted(replaced))} in its place: not the layer itself"
            nearest = f'target_parameters=["{hits[0][0].as_parameter}"]'
    elif not count:
        problem, nearest = _unmatched(name, as_regex, model, table)
    if name in before:
        problem = "; ".join(filter(None, (problem, "stands in the list twice")))
    return CheckedName(name, count, kinds, problem, nearest)


def _unmatched(name: str, as_regex: bool, model: nn.Module, table: TargetTable) -> tuple[str, str]:
    """Return what is wrong with a name that no layer has, and the name that was meant."""
    if as_regex:
        parts = [part.strip() for part in name.split(",")]
        if all(_has(part, table) for part in parts):
            return "a string is a regular expression for whole names: give a list", repr(parts)
        return "as a regular expression it fits no whole name", ""
    tensors = [t for t in table if t.as_parameter and matches({name}, t.layers[0])]
    if tensors:
        asked = f'target_parameters=["{tensors[0].as_parameter}"]'
        return "a bare parameter, not a module", asked
    inside = next((n for n, m in model.named_modules() if matches({name}, n)), None)
    if inside:
        what = type(model.get_submodule(inside)).__name__
        return f"a {what}, which holds layers and is none: peft raises", ""
    by_case = [t.name for t in table if t.name.lower() == name.lower()]
    if by_case:
        return "matches nothing: upper and lower case count", by_case[0]
    return "matches nothing", _nearest(name, table)


def _nearest(name: str, table: TargetTable) -> str:
    """Return the name in the model that was probably meant: by its role, else by its letters."""
    names = {t.name: t for t in table if t.kind not in ("vision", "audio", "projector")}
    known = list(dict.fromkeys([*names, *(n.rpartition(".")[2] for n in names)]))
    words = list(dict.fromkeys(word for role in ROLES for word in role))
    leaf = name.rpartition(".")[2]
    exact = [word for word in words if word.lower() == leaf.lower()]
    close = exact or difflib.get_close_matches(leaf, [*known, *words], n=1, cutoff=0.6)
    if not close:
        return ""
    if close[0] in known:
        return close[0]
    role = next(role for role in ROLES if close[0] in role)
    word = next((word for word in role if word in names), "")
    parameter = word and names[word].type == "Parameter"
    return f'target_parameters=["{word}"]' if parameter else word


def _has(name: str, table: TargetTable) -> bool:
    return any(matches({name}, layer) for t in table for layer in t.layers)


def _kinds(targets: Sequence[Target]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(t.kind for t in targets))


def _chosen(table: TargetTable, what: str) -> list[Target]:
    allowed = {kind.lower(): kind for kind in table.kinds} | {ALL_LINEAR: ALL_LINEAR}
    words = [word.strip().lower() for word in what.split("+")] if isinstance(what, str) else [""]
    wrong = [word for word in words if word not in allowed]
    if wrong:
        raise ValueError(
            f"what={what!r} was given. {table.model} has: {', '.join(allowed.values())}. Choose "
            'one, or join several with "+".'
        )
    kinds = {allowed[word] for word in words}
    chosen = []
    for target in table:
        linear = target.in_blocks and target.type != "Parameter"
        if not target.refused and (target.kind in kinds or (ALL_LINEAR in kinds and linear)):
            chosen.append(target)
    if not chosen:
        raise ValueError(
            f"what={what!r} was given, but peft can adapt none of these layers in {table.model} at "
            f"rank {table.rank}. See the notes in discover(...), and choose another kind."
        )
    return chosen


def _notes(table: TargetTable, chosen: Sequence[Target]) -> tuple[str, ...]:
    notes = []
    if any(t.as_parameter for t in chosen):
        notes.append("With target_parameters peft wants lora_dropout=0 and no DoRA.")
    left = [t for t in table if t.kind == "expert" and t not in chosen]
    if left:
        share = sum(t.parameters for t in left) / table.parameters
        notes.append(
            f'The experts, {share:.0%} of the parameters, stay as they are: add "+expert".'
        )
    return tuple(notes)
