"""Where the course keeps its files.

Used by lessons: all.
"""

from __future__ import annotations

from pathlib import Path

COURSE_ROOT: Path = Path(__file__).resolve().parent.parent
DATA: Path = COURSE_ROOT / "data"
POCKET_MODEL: Path = DATA / "models" / "pocket-llama"
POCKET_T5: Path = DATA / "models" / "pocket-t5"
CONFIGS: Path = DATA / "configs"
# Real models by the name that stands for them everywhere; `make real` fetches them.
REAL_MODELS: dict[str, Path] = {"smollm2": COURSE_ROOT / "build" / "real" / "smollm2"}


def is_path(name: str) -> bool:
    """Return whether a name can only be a path, and not one of the Hugging Face Hub's."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
