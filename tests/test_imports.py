"""The imports inside the package go one way, as CONTRIBUTING.md's table of floors says."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter

from course_utils.paths import COURSE_ROOT

PACKAGE = COURSE_ROOT / "course_utils"
ROW = re.compile(r"^\| (\d) \| (.+) \|$", re.M)


def floors() -> dict[str, int]:
    """Return the floor of each module or subpackage, as CONTRIBUTING.md has it."""
    rows = ROW.findall((COURSE_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}


def imports() -> dict[str, set[str]]:
    """Return what each module or subpackage imports of the others, inside functions too."""
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if name == "__init__":
            continue
        found = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils"):
                parts = node.module.split(".")[1:]
                found |= {parts[0]} if parts else {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                mine = [a.name for a in node.names if a.name.startswith("course_utils.")]
                found |= {one.split(".")[1] for one in mine}
        found.discard(name)
    return graph


def test_every_module_has_a_floor() -> None:
    assert floors().keys() == imports().keys()


def test_no_import_goes_up() -> None:
    """A module that knows of those above it cannot be read, or mended, by itself."""
    floor = floors()
    up = [(a, b) for a, others in imports().items() for b in others if floor[b] > floor[a]]
    assert not up


def test_no_import_goes_in_a_circle() -> None:
    """On one floor either. graphlib raises CycleError, with the circle."""
    assert [*TopologicalSorter(imports()).static_order()]
