"""The imports inside the packages go one way, as CONTRIBUTING.md's table of layers says."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter

from course_utils.paths import COURSE_ROOT

PACKAGES = ("course_utils", "preflight")
ROW = re.compile(r"^\| (\d) \|(.*)\|(.*)\|$", re.M)


def layers() -> dict[str, int]:
    """Return the layer of each module or subpackage, as CONTRIBUTING.md has it."""
    rows = ROW.findall((COURSE_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {
        f"{package}.{name}": int(layer)
        for layer, *columns in rows
        for package, names in zip(PACKAGES, columns, strict=True)
        for name in re.findall(r"`(\w+)`", names)
    }


def imports() -> dict[str, set[str]]:
    """Return what each module or subpackage imports of the others, inside functions too."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in (COURSE_ROOT / package).rglob("*.py"):
            name = file.relative_to(COURSE_ROOT / package).with_suffix("").parts[0]
            if name == "__init__":
                continue
            found = graph.setdefault(f"{package}.{name}", set())
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                found |= {".".join(one.split(".")[:2]) for one in imported(node)}
            found.discard(f"{package}.{name}")
    return graph


def imported(node: ast.AST) -> list[str]:
    """Return the modules of the packages that a statement imports, with their packages' names."""
    if isinstance(node, ast.ImportFrom):
        whole = node.module in PACKAGES
        named = [f"{node.module}.{a.name}" if whole else node.module or "" for a in node.names]
    else:
        named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    return [name for name in named if name.startswith(tuple(f"{one}." for one in PACKAGES))]


def test_every_module_has_a_layer() -> None:
    assert layers().keys() == imports().keys()


def test_no_import_goes_up() -> None:
    """A module that knows of those above it cannot be read, or changed, by itself."""
    layer = layers()
    up = [(a, b) for a, others in imports().items() for b in others if layer[b] > layer[a]]
    assert not up


def test_no_import_goes_in_a_circle() -> None:
    """Inside one layer either. graphlib raises CycleError, with the circle."""
    assert [*TopologicalSorter(imports()).static_order()]


def test_what_lessons_import_knows_nothing_of_the_preflight() -> None:
    """Only the command line of the course has the commands of both."""
    found = {a for a, others in imports().items() for b in others if b.startswith("preflight.")}
    assert {a for a in found if a.startswith("course_utils.")} == {"course_utils.__main__"}
