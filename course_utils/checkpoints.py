"""Which checkpoint of a training is whole, and how many processes wrote it.

Used by lessons: 04, 05a, 06.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

STATE = "trainer_state.json"


def written_by(checkpoint: str | Path) -> int:
    """Return how many processes saved a checkpoint, 0 if their random numbers are not in it.

    A process that trains alone writes rng_state.pth; of several, each writes one with its number.
    """
    folder = Path(checkpoint)
    several = len(list(folder.glob("rng_state_*.pth")))
    return several or int((folder / "rng_state.pth").is_file())


def last_whole(folder: str | Path, processes: int = 1) -> Path | None:
    """Return the last checkpoint of a folder that all processes had written, None if there is none.

    transformers' `get_last_checkpoint` takes the one of the highest number, also if the training
    was killed while it was written. Here the state of the trainer, which the first process writes
    last, has to be readable, and each process must have left the state of its random numbers.
    """
    numbers = {
        int(path.name.rpartition("-")[2]): path
        for path in Path(folder).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name)
    }
    for _, path in sorted(numbers.items(), reverse=True):
        if written_by(path) >= processes and _readable(path / STATE):
            return path
    return None


def _readable(state: Path) -> bool:
    """Return whether the trainer's state is there to its end."""
    try:
        return json.loads(state.read_text(encoding="utf-8"))["global_step"] > 0
    except (OSError, ValueError, KeyError):
        return False
