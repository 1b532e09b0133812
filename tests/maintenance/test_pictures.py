"""The pictures that are drawn in SVG: each word stays in its box, whatever font there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from course_utils.paths import COURSE_ROOT

PICTURES = sorted((COURSE_ROOT / "notebooks" / "images").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
EM = 0.68  # a character's width in the widest common fonts, as DejaVu Sans in bold
GENERIC = ("sans-serif", "serif", "monospace")


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: Area) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def boxes(picture: ElementTree.Element) -> Iterator[Area]:
    for box in picture.iter(f"{SVG}rect"):
        x, y, width, height = (float(box.get(n, 0)) for n in ("x", "y", "width", "height"))
        yield Area(x, y, x + width, y + height)


def texts(picture: ElementTree.Element) -> Iterator[tuple[str, Area]]:
    for text in picture.iter(f"{SVG}text"):
        x, y, size = (float(text.attrib[n]) for n in ("x", "y", "font-size"))
        yield text.text, Area(x, y - size, x + EM * size * len(text.text), y + 0.3 * size)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_text_stays_in_its_box(path: Path) -> None:
    """A system without the first font of the list takes another, which may be much wider."""
    picture = ElementTree.parse(path).getroot()
    assert picture.get("font-family").split(", ")[-1] in GENERIC
    areas = list(boxes(picture))
    assert len(areas) > 1
    for text, taken in texts(picture):
        around = [area for area in areas if area.holds(Area(*taken[:2], *taken[:2]))]
        box = min(around, key=lambda area: area.right - area.left)
        assert box.holds(taken), f"{text!r} may leave its box"
