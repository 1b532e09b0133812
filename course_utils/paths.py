"""Where the course keeps its files."""

from __future__ import annotations

from pathlib import Path

COURSE_ROOT: Path = Path(__file__).resolve().parent.parent
DATA: Path = COURSE_ROOT / "data"
POCKET_MODEL: Path = DATA / "models" / "pocket-llama"
POCKET_T5: Path = DATA / "models" / "pocket-t5"
CONFIGS: Path = DATA / "configs"
