"""Checks a list of target names against a model: what each matches, and what was meant.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import nn

from course_utils.display import Result, html_table, text_table
from course_utils.setting_checks import matching
from preflight.lora_targets.adapters import ALL_LINEAR, make_adapters, replaced_by
from preflight.lora_targets.discovery import Model, list_targets, open_model
from preflight.lora_targets.table import TOWERS, Target

Owners = Mapping[str, Target]  # the target of each layer, by the layer's whole name

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


@dataclass(frozen=True)
class CheckedName:
    """One entry of a list of target names: how many layers it matches, and what is wrong.

    `problem` is "" where nothing is; `nearest` is the right name that was probably meant.
    """

    name: str
    count: int
    kinds: tuple[str, ...]
    problem: str = ""
    nearest: str = ""


@dataclass(frozen=True)
class TargetCheck(Result):
    """What a list of target names matches; shows as a table in a notebook.

    `layers` and `adapter` count what peft adapts for the whole list, and `error` says why it
    raises. peft raises only if nothing at all matches: a wrong name among right ones is silent.
    """

    model: str
    rank: int
    names: tuple[CheckedName, ...]
    layers: int
    adapter: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """True if every name matches, none twice, and peft accepts the list."""
        return not self.error and not any(name.problem for name in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain data, ready for JSON."""
        return {"ok": self.ok, **super().to_dict()}

    def headers(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return "name", "matches", "kinds", "", "nearest right name"

    def rows(self) -> list[tuple[object, ...]]:
        """Return a row for each name."""
        return [
            (n.name, n.count, ", ".join(n.kinds), n.problem or "right", n.nearest)
            for n in self.names
        ]

    def summary(self) -> str:
        """Return what happens with the whole list, in a sentence or two."""
        if self.error:
            return f"peft raises on this list: {self.error}."
        adapted = (
            f"peft adapts {self.layers} layers with {self.adapter:,} parameters (rank {self.rank})"
        )
        wrong = sum(bool(name.problem) for name in self.names)
        if not wrong:
            return f"{adapted}; every name matches."
        entries = "entry that is" if wrong == 1 else f"{wrong} entries that are"
        return f"{adapted} and says nothing of the {entries} wrong."

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{text_table(self.rows(), self.headers())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.summary())}</p>{html_table(self.rows(), self.headers())}"


def check_targets(model: Model, names: Sequence[str] | str, r: int = 8) -> TargetCheck:
    """Return which target names match how many layers of a model, which none, and what was meant.

    `names` is what LoraConfig takes as target_modules: a list of names, of which each fits a whole
    name or its last parts up to a dot, or a string: "all-linear" or a regular expression that fits
    a whole name. peft raises only if nothing at all matches (peft issue 1959), so a wrong name in a
    list costs silently. `model` and `r` are as in `discover`.

    Raises:
        ValueError: if there is no name, or one is not a string.
    """
    names = _validate(names)
    label, model = open_model(model)
    table = list_targets(label, model, r)
    try:
        adapters = make_adapters(model, names, r=r)
    except re.error as error:
        raise ValueError(
            f"{names!r} is no regular expression ({error}). A string is "
            'one, or "all-linear"; for names give a list: ["q_proj", "v_proj"].'
        ) from error
    owners = {layer: target for target in table for layer in target.layers}
    layers = [layer for layer in owners if layer in adapters]
    if not isinstance(names, str):
        checked = [_check_name(name, names[:i], model, owners) for i, name in enumerate(names)]
    elif names.lower() == ALL_LINEAR:
        checked = [CheckedName(names, len(layers), _kinds(owners, layers))]
    else:
        checked = [_check_regex(names, owners)]
    return TargetCheck(
        model=label,
        rank=r,
        names=tuple(checked),
        layers=len(layers),
        adapter=adapters.parameters,
        error=adapters.error,
    )


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


def _check_regex(regex: str, owners: Owners) -> CheckedName:
    """Return what a regular expression matches, or the list that was meant."""
    layers = matching(regex, _modules(owners))
    if layers:
        return CheckedName(regex, len(layers), _kinds(owners, layers))
    names = [part.strip() for part in regex.split(",")]
    if all(matching([name], owners) for name in names):
        problem = "a string is a regular expression for whole names: give a list"
        return CheckedName(regex, 0, (), problem, repr(names))
    return CheckedName(regex, 0, (), "as a regular expression it fits no whole name")


def _check_name(name: str, before: Sequence[str], model: nn.Module, owners: Owners) -> CheckedName:
    """Return what an entry of a list matches; `before` are the entries before it."""
    layers = matching([name], _modules(owners))
    problem = nearest = ""
    if replaced := replaced_by(model, name.rpartition(".")[2]):
        if layers:
            problem = f"peft puts {', '.join(sorted(replaced))} in its place: not the layer itself"
            nearest = _as_parameter(owners[layers[0]].as_parameter)
        tensors = {layer: t.as_parameter for layer, t in owners.items() if t.as_parameter}
        layers = [layer for layer, asked in tensors.items() if asked.rpartition(".")[2] in replaced]
        layers = layers or [layer for layer, asked in tensors.items() if asked in replaced]
    elif not layers:
        problem, nearest = _unmatched(name, model, owners)
    if name in before:
        problem = "; ".join(filter(None, (problem, "stands in the list twice")))
    return CheckedName(name, len(layers), _kinds(owners, layers), problem, nearest)


def _unmatched(name: str, model: nn.Module, owners: Owners) -> tuple[str, str]:
    """Return what is wrong with a name that no module has, and the name that was meant."""
    tensors = matching([name], owners)
    if tensors:
        return "a bare parameter, not a module", _as_parameter(owners[tensors[0]].as_parameter)
    modules = dict(model.named_modules())
    inside = matching([name], modules)
    if inside:
        what = type(modules[inside[0]]).__name__
        return f"a {what}, which holds layers and is none: peft raises", ""
    targets = {target.name: target for target in owners.values()}
    by_case = [known for known in targets if known.lower() == name.lower()]
    if by_case:
        return "matches nothing: upper and lower case count", by_case[0]
    return "matches nothing", _nearest(name, targets)


def _nearest(name: str, targets: Mapping[str, Target]) -> str:
    """Return the name in the model that was probably meant: by its role, else by its letters."""
    names = [one for one, t in targets.items() if t.kind not in TOWERS]
    known = list(dict.fromkeys([*names, *(one.rpartition(".")[2] for one in names)]))
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
    return _as_parameter(word) if word and targets[word].type == "Parameter" else word


def _as_parameter(name: str) -> str:
    return f'target_parameters=["{name}"]'


def _modules(owners: Owners) -> list[str]:
    return [layer for layer, target in owners.items() if target.type != "Parameter"]


def _kinds(owners: Owners, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of some layers, in their order."""
    return tuple(dict.fromkeys(owners[layer].kind for layer in layers))
