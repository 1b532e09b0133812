"""The table of what LoRA can target in a model.

Used by lessons: 02, 03, 04, 05a, 06, 07, 08, 09, 10, 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pandas as pd

from course_utils.display import Result, html_table, text_table

# The kinds that a block of the language model consists of, next to its router.
BLOCK_KINDS = ("attention", "MLP", "shared expert", "expert", "state-space", "convolution", "other")
TOWERS = ("vision", "audio", "encoder", "projector")  # kinds outside the language model
LINEAR = re.compile(r"Linear|Conv1D$")  # classes of matrices: nn.Linear's, bitsandbytes', Conv1D
HEADERS = (
    "name",
    "kind",
    "count",
    "shape",
    "parameters",
    "adapter",
    "default",
    "all-linear",
    "note",
)
REST_HEADERS = ("not a target, because", "tensors", "parameters", "such as")
COLUMNS = (
    "name kind type count shapes parameters adapter in_default in_all_linear as_parameter note"
).split()


@dataclass(frozen=True)
class Target:
    """A distinct name of a model's layers that LoRA can adapt, with all layers of that name.

    `name` goes into `target_modules`; a "*" in it stands for a number, and then only a regular
    expression selects these layers and no others. Where `as_parameter` is given, that goes into
    `target_parameters` instead; `refused` is True where peft takes neither. `adapter` counts the
    parameters of adapters of the table's rank on all of the layers, None where peft cannot make
    one; `in_default` and `in_all_linear` count the layers that peft's default and "all-linear"
    adapt. `layers` has their whole names.
    """

    name: str
    kind: str
    type: str
    count: int
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    adapter: int | None
    in_default: int = 0
    in_all_linear: int = 0
    as_parameter: str = ""
    refused: bool = False
    note: str = ""
    layers: tuple[str, ...] = field(default=(), repr=False)

    def row(self) -> tuple[str, ...]:
        """Return the target as the cells of a table."""
        return (
            self.name,
            self.kind,
            f"{self.count}",
            "; ".join(map(_shape, self.shapes[:2])) + ("; ..." if len(self.shapes) > 2 else ""),
            f"{self.parameters:,}",
            "none" if self.adapter is None else f"{self.adapter:,}",
            self._share(self.in_default),
            self._share(self.in_all_linear),
            self.note,
        )

    @property
    def in_blocks(self) -> bool:
        """True for a matrix of the language model's blocks that is no router's."""
        matrix = self.type == "Parameter" or LINEAR.search(self.type) is not None
        return matrix and self.kind in BLOCK_KINDS

    def _share(self, count: int) -> str:
        return "yes" if count == self.count else f"{count} of {self.count}" if count else "no"


@dataclass(frozen=True)
class Rest:
    """Parameters that are in no target: how many tensors and numbers, and why LoRA leaves them."""

    why: str
    tensors: int
    parameters: int
    examples: tuple[str, ...]

    def row(self) -> tuple[object, ...]:
        """Return the rest as the cells of a table."""
        return self.why, self.tensors, f"{self.parameters:,}", ", ".join(self.examples)


@dataclass(frozen=True)
class TargetTable(Result):
    """What LoRA can target in a model; shows as a table in a notebook.

    `default` is what peft takes when no target_modules are given (None: it refuses). For it and
    for "all-linear", `..._error` says why peft raises, "" if it does not, and `..._adapter` how
    many parameters peft makes. `parameters` counts the whole model, a shared weight once.
    """

    model: str
    rank: int
    parameters: int
    targets: tuple[Target, ...]
    rest: tuple[Rest, ...]
    default: tuple[str, ...] | str | None = None
    default_error: str = ""
    default_adapter: int = 0
    all_linear_error: str = ""
    all_linear_adapter: int = 0

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)

    def __getitem__(self, name: str) -> Target:
        for target in self.targets:
            if target.name == name:
                return target
        names = ", ".join(target.name for target in self.targets)
        raise KeyError(f"There is no target {name!r}. Targets: {names}.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that occur, in the model's order."""
        return tuple(dict.fromkeys(target.kind for target in self.targets))

    @property
    def in_towers(self) -> tuple[Target, ...]:
        """The targets outside the language model, in a tower for images or sound."""
        return tuple(target for target in self.targets if target.kind in TOWERS)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each target, with numbers as numbers."""
        frame = pd.DataFrame(
            [[getattr(target, column) for column in COLUMNS] for target in self.targets],
            columns=COLUMNS,
        )
        frame["shapes"] = ["; ".join(map(_shape, shapes)) for shapes in frame["shapes"]]
        return frame.astype({"adapter": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data, ready for JSON; the layers' whole names are left out."""
        plain = super().to_dict()
        for target in plain["targets"]:
            del target["layers"]
        return plain

    def headers(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return HEADERS

    def rows(self) -> list[tuple[str, ...]]:
        """Return the targets as the cells of a table."""
        return [target.row() for target in self.targets]

    def summary(self) -> str:
        """Return what the table says as a whole, a sentence a line."""
        lines = [f"{self.model}: {self.parameters:,} parameters; adapters of rank {self.rank}."]
        names = self.default if isinstance(self.default, str) else ", ".join(self.default or ())
        if self.default is None:
            lines.append(
                f"peft has no default target_modules for {self.model}: they must be given."
            )
        elif self.default_error:
            lines.append(f"peft's default ({names}) fails: {self.default_error}.")
        else:
            lines.append(f"peft's default: {names} ({self.default_adapter:,} parameters).")
        if self.all_linear_error:
            return "\n".join([*lines, f'"all-linear" fails: {self.all_linear_error}.'])
        lines.append(f'"all-linear" makes adapters of {self.all_linear_adapter:,} parameters.')
        missed = [t for t in self.targets if t.in_blocks and not t.in_all_linear]
        if missed:
            share = sum(t.parameters for t in missed) / self.parameters
            names = ", ".join(t.as_parameter or t.name for t in missed)
            lines.append(f'"all-linear" passes over {share:.1%} of all parameters: {names}.')
        routers = [t.name for t in self.targets if t.kind == "router" and t.in_all_linear]
        if routers:
            lines.append(f'"all-linear" adapts a router: {", ".join(routers)}.')
        reached = sum(target.in_all_linear for target in self.in_towers)
        if reached:
            lines.append(
                f'"all-linear" reaches {reached} layers outside the language model '
                f"({', '.join(sorted({t.kind for t in self.in_towers}))}), and so can a name or "
                "layers_to_transform, which counts the layers of each tower. For the language "
                'model alone: suggest(model, "dense-linear").'
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        rest = text_table([one.row() for one in self.rest], REST_HEADERS)
        return "\n\n".join([self.summary(), text_table(self.rows(), HEADERS), rest])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.summary().split("\n"))
        rest = html_table([one.row() for one in self.rest], REST_HEADERS)
        return lines + html_table(self.rows(), HEADERS) + rest


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size}" for size in shape)
