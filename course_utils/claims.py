"""What the lessons say, held against what their reader measures.

Used by lessons: all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils import SEED, paths
from course_utils.files import write_whole
from course_utils.models import chosen_name

RECORDS: Path = paths.DATA / "results" / "claims"
POCKET = paths.POCKET_MODEL.name
# Names a folder into which each claim is written as it is made; scripts/run_lessons.py sets it.
FOLDER_VARIABLE = "COURSE_CLAIMS"


class ClaimFailed(AssertionError):
    """A claim does not hold on the pocket model, with which the lessons were written."""


@dataclass(frozen=True)
class Claim:
    """One claim: its name (`04-rank`), its sentence, the figure measured, and whether it holds."""

    name: str
    text: str
    figure: str
    holds: bool

    @property
    def lesson(self) -> str:
        """The number of the lesson that makes it: "04"."""
        return self.name.partition("-")[0]

    def __str__(self) -> str:
        verdict = "✓" if self.holds else "✗ does not hold here:"
        return f"{verdict} {self.text}" + (f" ({self.figure})" if self.figure else "")


_made: dict[str, Claim] = {}


def claim(name: str, text: str, holds: object, figure: object = "") -> None:
    """Print a claim with the figure that was measured, and whether it holds.

    `name` is the lesson's number and a word ("04-rank"), `text` the claim as a sentence that is
    true where `holds` is. With the pocket model a claim that fails stops the lesson. With another
    model that is a result: the claim is shown as one that does not hold here, and the lesson goes
    on. `measured` shows all claims of a lesson together.

    Raises:
        ClaimFailed: if the claim does not hold on the pocket model.
    """
    made = _made[name] = Claim(name, text, str(figure), bool(holds))
    _note(made)
    if not made.holds and not chosen_name():
        raise ClaimFailed(f"{made}. Look at the figures above; COURSE_SEED={SEED} was used.")
    print(made)


def measured(lesson: str, model: str) -> pd.DataFrame:
    """Return the claims that a lesson has made in this session, one a row.

    With another model than the pocket model, the pocket model's figures on record stand next to
    the reader's; `model` is the name for the column.
    """
    claims = [made for made in _made.values() if made.lesson == lesson]
    if not chosen_name():
        rows = [(made.text, made.figure or "holds") for made in claims]
        return pd.DataFrame(rows, columns=["claim", "measured"])
    before = recorded(POCKET)
    rows = []
    for made in claims:
        there = before.get(made.name)
        verdict = ("holds here" if made.holds else "does not hold here") + ": " + made.figure
        rows.append((made.text, there.figure or "holds" if there else "", verdict.rstrip(": ")))
    return pd.DataFrame(rows, columns=["claim", "pocket model", model])


def recorded(model: str) -> dict[str, Claim]:
    """Return the claims of all lessons on record for a model, by name; empty where there are none.

    The records lie in `data/results/claims`, a file a model.
    """
    rows = [row for lesson in _record(model).values() for row in lesson["claims"]]
    return {row["name"]: Claim(**row) for row in rows}


def made_on(model: str) -> dict[str, dict[str, Any]]:
    """Return by lesson on what its claims on record were made: seed, device and versions."""
    return {
        lesson: {name: value for name, value in run.items() if name != "claims"}
        for lesson, run in _record(model).items()
    }


def record(model: str, made_on: dict[str, Any], made: Collection[Claim]) -> None:
    """Put claims into a model's record; those of lessons that made none now stay as they are.

    `made_on` says where: the seed, the device, the versions.
    """
    runs = _record(model)
    for lesson in {one.lesson for one in made}:
        rows = sorted((one for one in made if one.lesson == lesson), key=lambda one: one.name)
        runs[lesson] = {**made_on, "claims": [asdict(one) for one in rows]}
    content = {"model": model, "lessons": dict(sorted(runs.items()))}
    write_whole(RECORDS / f"{model}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _record(model: str) -> dict[str, dict[str, Any]]:
    """Return a model's record, a run for each lesson; empty where there is none."""
    file = RECORDS / f"{model}.json"
    return json.loads(file.read_text(encoding="utf-8"))["lessons"] if file.exists() else {}


def read(folder: Path, lessons: Collection[str]) -> list[Claim]:
    """Return the claims of some lessons ("04") that were written into a run's folder, by name."""
    files = sorted(folder.glob("*.json"))
    made = [Claim(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return [one for one in made if one.lesson in lessons]


def _note(made: Claim) -> None:
    """Write a claim into the folder of the run, if one is asked for; the last of a name counts."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        text = json.dumps(asdict(made), ensure_ascii=False, indent=1) + "\n"
        write_whole(Path(folder) / f"{made.name}.json", text)
