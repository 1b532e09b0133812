"""The imports inside the packages go one way, as CONTRIBUTING.md's table of layers says."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

import house

from course_utils.paths import COURSE_ROOT

ROW = re.compile(r"^\| (\d) \|(.*)\|(.*)\|$", re.M)


def layers() -> dict[str, int]:
    """Return the layer of each module or subpackage, as CONTRIBUTING.md has it."""
    rows = ROW.findall((COURSE_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {
        f"{package}.{name}": int(layer)
        for layer, *columns in rows
        for package, names in zip(house.PACKAGES, columns, strict=True)
        for name in re.findall(r"`(\w+)`", names)
    }


def imports() -> dict[str, set[str]]:
    """Return what each module or subpackage imports of the others, inside functions too."""
    graph: dict[str, set[str]] = {}
    for name, file in house.modules().items():
        if name in house.PACKAGES:
            continue
        own = part(name)
        found = house.imported(file.read_text(encoding="utf-8"), types=True)
        graph.setdefault(own, set()).update({part(one) for one in found} - {own})
    return graph


def part(name: str) -> str:
    """Return the module or subpackage of a package that a module is in."""
    return ".".join(name.split(".")[:2])


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
