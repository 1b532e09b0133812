"""What is said of a list of target names, and which list is suggested."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import pandas as pd

from course_utils.display import html_table, text_table


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
class TargetCheck:
    """What a list of target names hits; shows as a table in a notebook.

    `layers` and `adapter` count what peft adapts for the whole list, and `error` says why it
    raises. peft raises only when nothing at all matches: a wrong name beside right ones is silent.
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

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each name."""
        rows = [(n.name, n.count, ", ".join(n.kinds), n.problem, n.nearest) for n in self.names]
        return pd.DataFrame(rows, columns=["name", "matches", "kinds", "problem", "nearest"])

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain data, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """Return what happens with the whole list, in a sentence or two."""
        wrong = sum(bool(name.problem) for name in self.names)
        if self.error:
            return f"peft raises on this list: {self.error}."
        said = (
            f"peft adapts {self.layers} layers with {self.adapter:,} parameters (rank {self.rank})"
        )
        if not wrong:
            return f"{said}; every name matches."
        entries = "entry that is" if wrong == 1 else f"{wrong} entries that are"
        return f"{said} and says nothing of the {entries} wrong."

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{text_table(*self._table())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.summary())}</p>{html_table(*self._table())}"

    def _table(self) -> tuple[list[tuple[object, ...]], tuple[str, ...]]:
        rows = [
            (n.name, n.count, ", ".join(n.kinds), n.problem or "right", n.nearest)
            for n in self.names
        ]
        return rows, ("name", "matches", "kinds", "", "nearest right name")


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
        said = f"{self.layers} layers, {self.adapter:,} parameters at rank {self.rank}"
        return "\n".join([config, f"{self.what}: {said}.", *self.notes])

    def _repr_html_(self) -> str:
        code, *said = str(self).split("\n")
        return f"<pre>{escape(code)}</pre>" + "".join(f"<p>{escape(line)}</p>" for line in said)
