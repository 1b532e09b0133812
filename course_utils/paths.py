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


def located(name: str) -> str:
    """Return the folder of a real model that `make real` fetches, by its name; others as they are.

    Raises:
        FileNotFoundError: if it was not fetched yet.
    """
    if name not in REAL_MODELS:
        return name
    folder = REAL_MODELS[name]
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{name!r} is not on this machine yet. Fetch it once: `make real` (270 MB), or where "
            f"there is no make: python scripts/real_model.py. To name a folder of yours that is "
            f"called so, write ./{name}."
        )
    return str(folder)
