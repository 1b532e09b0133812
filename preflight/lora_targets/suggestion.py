"""Suggests arguments for LoraConfig that target what is asked for, and nothing else.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from preflight.lora_targets.adapters import ALL_LINEAR, make_adapters
from preflight.lora_targets.discovery import Model, list_targets, open_model, target_regex
from preflight.lora_targets.table import Target, TargetTable

# Not peft's word "all-linear", which stands for other layers: it can take experts and routers in.
DENSE_LINEAR = "dense-linear"


@dataclass(frozen=True)
class Suggestion:
    """Arguments for LoraConfig: `LoraConfig(r=8, **suggestion)`.

    `target_modules` is a list of names, or a regular expression where names cannot tell the wanted
    layers from others; `target_parameters` names weights that are no modules of their own.
    """

    what: str
    target_modules: list[str] | str
    target_parameters: list[str]
    layers: int
    adapter: int
    rank: int
    notes: tuple[str, ...] = ()

    def keys(self) -> tuple[str, ...]:
        """Return the names of the arguments, as `**` asks for them."""
        return ("target_modules", "target_parameters")[: 1 + bool(self.target_parameters)]

    def __getitem__(self, argument: str) -> list[str] | str:
        if argument not in self.keys():
            raise KeyError(argument)
        return getattr(self, argument)

    def to_dict(self) -> dict[str, Any]:
        """Return the suggestion as plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={self[key]!r}" for key in self.keys())
        config = f"LoraConfig(r={self.rank}, {arguments})"
        size = f"{self.layers} layers, {self.adapter:,} parameters at rank {self.rank}"
        return "\n".join([config, f"{self.what}: {size}.", *self.notes])

    def _repr_html_(self) -> str:
        code, *lines = str(self).split("\n")
        return f"<pre>{escape(code)}</pre>" + "".join(f"<p>{escape(line)}</p>" for line in lines)


def suggest(model: Model, what: str = DENSE_LINEAR, r: int = 8) -> Suggestion:
    """Return arguments for LoraConfig that target what is asked for, and nothing else.

    `what` is a kind that occurs in the model ("attention", "MLP", "expert", ...), several joined by
    "+", or "dense-linear": every linear layer of the language model's blocks that each token goes
    through. It leaves out experts and routers, and the towers for images and sound, all of which
    peft's "all-linear" can reach; "dense-linear+expert" takes the experts in. Use it as
    `LoraConfig(r=8, **suggest(model, "attention"))`.

    Raises:
        ValueError: if the model has no such layers; the allowed words are listed.
    """
    label, model = open_model(model)
    table = list_targets(label, model, r)
    chosen = _choose(table, what)
    modules = [target for target in chosen if not target.as_parameter]
    parameters = [target for target in chosen if target.as_parameter]
    target_parameters = [name for target in parameters for name in _as_parameters(target)]
    names = [layer for target in modules for layer in target.layers]
    # The last resort is to name each layer whole: peft cuts a regular expression down to the last
    # parts of names where it converts the targets of a mixture of experts.
    forms = [target_regex([target.name for target in modules]), names]
    endings = _shortest_endings(names, [name for name, _ in model.named_modules()])
    numbered = any(part.isdigit() for name in endings for part in name.split(".")[:-1])
    if not numbered:  # else it would be an entry for each of the model's blocks
        forms.insert(0, endings)
    wanted = {layer for target in chosen for layer in target.layers}
    for target_modules in forms:
        adapters = make_adapters(model, target_modules, target_parameters, r)
        if {layer for t in table for layer in t.layers if layer in adapters} == wanted:
            break
    else:
        if adapters.error:
            raise ValueError(
                f"peft raises on every list of these layers of {label}: {adapters.error}. Give "
                "another model, or other kinds of layers."
            )
        raise RuntimeError(
            f"{what!r} of {label} cannot be told from other layers by any target_modules of peft. "
            "Choose another kind: see discover(...)."
        )
    return Suggestion(
        what=what,
        target_modules=target_modules,
        target_parameters=target_parameters,
        layers=len(wanted),
        adapter=adapters.parameters,
        rank=r,
        notes=_notes(table, chosen),
    )


def _choose(table: TargetTable, what: str) -> list[Target]:
    """Return the targets of the kinds that are asked for, without those that peft refuses."""
    allowed = {kind.lower(): kind for kind in table.kinds} | {DENSE_LINEAR: DENSE_LINEAR}
    words = [word.strip().lower() for word in what.split("+")] if isinstance(what, str) else [""]
    if ALL_LINEAR in words:
        raise ValueError(
            f'what={what!r} was given. "{ALL_LINEAR}" is peft\'s own word and needs no suggestion: '
            f'LoraConfig(target_modules="{ALL_LINEAR}"). Allowed here are '
            f'{", ".join(allowed.values())}. Give "{DENSE_LINEAR}" for the linear layers without '
            "experts, routers and towers."
        )
    if not allowed.keys() >= set(words):
        raise ValueError(
            f"what={what!r} was given. {table.model} has: {', '.join(allowed.values())}. Choose "
            'one, or join several with "+".'
        )
    kinds = {allowed[word] for word in words}
    chosen = []
    for target in table:
        matrix = target.in_blocks and target.type != "Parameter"
        dense = DENSE_LINEAR in kinds and matrix and target.kind != "expert"
        if not target.refused and (dense or target.kind in kinds):
            chosen.append(target)
    if not chosen:
        raise ValueError(
            f"what={what!r} was given, but peft can adapt none of these layers in {table.model} at "
            f"rank {table.rank}. See the notes in discover(...), and choose another kind."
        )
    return chosen


def _as_parameters(target: Target) -> list[str]:
    """Return what goes into target_parameters, which knows no "*", for a target."""
    if "*" not in target.as_parameter:
        return [target.as_parameter]
    end = "" if target.type == "Parameter" else ".weight"
    return [f"{layer}{end}" for layer in target.layers]


def _shortest_endings(wanted: Sequence[str], everything: Sequence[str]) -> list[str]:
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


def _notes(table: TargetTable, chosen: Sequence[Target]) -> tuple[str, ...]:
    notes = []
    if any(target.as_parameter for target in chosen):
        notes.append("With target_parameters peft wants lora_dropout=0 and no DoRA.")
    left = [target for target in table if target.kind == "expert" and target not in chosen]
    if left:
        share = sum(target.parameters for target in left) / table.parameters
        notes.append(
            f'The experts, {share:.0%} of the parameters, stay as they are: add "+expert".'
        )
    towers = {t.kind for t in table.in_towers}.difference(t.kind for t in chosen)
    if towers:
        notes.append(f"What sees or hears stays as it is ({', '.join(sorted(towers))}).")
    return tuple(notes)
