"""Put lesson 08's plot of quality by memory where the README shows it: its picture is a result.

python scripts/readme_picture.py
"""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks" / "08_peft_against_full.ipynb"
PICTURE = ROOT / "notebooks" / "images" / "quality_by_memory.png"
CALL = 'plots.trade_off(winners, "peak MiB"'  # the cell that draws it


def drawn() -> bytes:
    """Return the picture, as PNG, that the lesson was saved with."""
    cells = nbformat.read(LESSON, as_version=4).cells
    [cell] = [c for c in cells if c.cell_type == "code" and c.source.startswith(CALL)]
    [output] = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    return base64.b64decode(output["data"]["image/png"])


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(drawn())
    print(f"wrote {PICTURE.relative_to(ROOT)}")
