"""Write the minutes of each section into the teacher's page, book/teaching.md, from the lessons.

    python benchmarks/teaching.py

No minute is guessed: RULE says what a word, a line of code, a picture and an exercise take. What
stands between the markers of the page is written here; the rest is written by hand. (What thirty
learners take of one machine is written by measure_room.py.)
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT

sys.path.insert(0, str(COURSE_ROOT / "scripts"))
import run_lessons
import slides

PAGE = COURSE_ROOT / "book" / "teaching.md"
WORDS, CODE, SHOWN, EXERCISE = 130, 3, 30, 4
RULE = (
    f"Prose is told at {WORDS} words a minute, a line of code takes {CODE} seconds, a picture or a "
    f"table {SHOWN} seconds, an exercise {EXERCISE} minutes; a section is rounded up to whole "
    "minutes. The time in which all cells of a lesson run is that of the README."
)
# What to teach in so many minutes: sections by lesson and beginning of the title; * is all of it.
# Exercises are left to the learners' own time unless a plan names them.
PLANS: dict[int, list[tuple[str, Sequence[str]]]] = {
    60: [("00", ["*"]), ("04", ["LoRA in fifteen", "What can LoRA", "A wrong name"])],
    120: [
        ("00", ["*"]),
        ("01", ["Three forms", "Completion-only", "Truncation", "A bad dataset"]),
        ("02", ["The anatomy", "What each choice", "An 8B model"]),
        ("04", ["LoRA in fifteen", "Parameters and bytes", "What can LoRA", "A wrong name"]),
    ],
    240: [
        ("00", ["*"]),
        ("01", ["Three forms", "Completion-only", "Truncation", "Padding", "A bad dataset"]),
        ("02", ["The anatomy", "Predicted", "What each choice", "An 8B model"]),
        ("03", ["Four bits", "The defaults", "QLoRA, trained"]),
        ("04", ["LoRA in fifteen", "Parameters", "What can", "A wrong name", "The rank", "Alpha"]),
        ("06", ["A recipe", "`learning_rate`", "`per_device", "The recipe today"]),
        ("07", ["What SFTTrainer does", "Which of the two"]),
        ("09", ["How good is it", "A model that never", "Prove that the folder"]),
    ],
}


@dataclass(frozen=True)
class Lesson:
    """A lesson as it is taught: the minutes of each section by its title, and of its cells' run."""

    number: str
    title: str
    goal: str
    sections: dict[str, int]
    run: int

    @property
    def minutes(self) -> int:
        """The time of the whole lesson, its exercises and the waiting for cells included."""
        return sum(self.sections.values()) + self.run


def seconds(cell: NotebookNode) -> float:
    """Return how long a cell takes to teach, by RULE."""
    if "google.colab" in cell.source or "<summary>Solution" in cell.source:
        return 0.0
    if cell.cell_type == "markdown":
        return 60 * len(cell.source.split()) / WORDS
    if cell.source.startswith("answer = ..."):
        return 60.0 * EXERCISE
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    pictures = sum(kind.startswith("image/") or kind == "text/html" for kind in kinds)
    return CODE * (cell.source.count("\n") + 1) + SHOWN * pictures


def sections(notebook: NotebookNode) -> dict[str, int]:
    """Return the minutes of a lesson's sections in order; its opening is the first."""
    title = "Opening"
    found = {title: 0.0}
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            found[title] += seconds(cell)
            continue
        for part in slides.HEADING.split(cell.source):
            if head := re.match(r"## (.+)", part):
                title = head[1].strip()
            found[title] = found.get(title, 0.0) + seconds(new_markdown_cell(part))
    return {title: max(1, math.ceil(taken / 60)) for title, taken in found.items()}


def run_minutes(number: str) -> int:
    """Return the minutes in which a lesson runs, as the README's table says.

    Raises:
        ValueError: if the README has no row for the lesson.
    """
    text = (COURSE_ROOT / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {number} \|.*?\| (\d+) min \|", text, flags=re.M)
    if row is None:
        raise ValueError(
            f"The README's table of lessons has no row `| {number} | ... | 3 min |`. Add one."
        )
    return int(row[1])


def read() -> dict[str, Lesson]:
    """Return the lessons by number."""
    lessons = {}
    for path in run_lessons.lessons():
        notebook = nbformat.read(path, as_version=4)
        opening = notebook.cells[0].source
        title = opening.splitlines()[0].removeprefix("# ").partition(" · ")[2]
        goal = re.search(r"\*\*You will learn\*\*:? (.+?)(?:\n\n|\Z)", opening, flags=re.S)[1]
        goal = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", " ".join(goal.split()))
        number = run_lessons.label(path)
        lessons[number] = Lesson(number, title, goal, sections(notebook), run_minutes(number))
    return lessons


def chosen(lesson: Lesson, beginnings: Sequence[str]) -> dict[str, int]:
    """Return the sections of a lesson that a plan names.

    Raises:
        ValueError: if a lesson has no such section.
    """
    if beginnings == ["*"]:
        return lesson.sections
    found = {}
    for beginning in beginnings:
        fitting = {t: m for t, m in lesson.sections.items() if t.startswith(beginning)}
        if len(fitting) != 1:
            raise ValueError(
                f"A plan names the section {beginning!r} of lesson {lesson.number}, which has "
                f"{len(fitting)} of that beginning. Correct PLANS in benchmarks/teaching.py."
            )
        found |= fitting
    return found


def plan(minutes: int, lessons: dict[str, Lesson]) -> str:
    """Return the table of what is taught in so many minutes.

    Raises:
        ValueError: if it takes longer than that, or names a section that is not there.
    """
    rows, total = [], 0
    for number, beginnings in PLANS[minutes]:
        lesson = lessons[number]
        picked = chosen(lesson, beginnings)
        taken = sum(picked.values()) + lesson.run
        total += taken
        what = "all of it" if beginnings == ["*"] else "; ".join(picked)
        rows.append(f"| {number} {lesson.title} | {what} | {taken} |")
    if total > minutes:
        raise ValueError(
            f"The plan for {minutes} minutes takes {total}. Shorten it in benchmarks/teaching.py."
        )
    head = "| lesson | sections | minutes |\n|---|---|---|\n"
    spare = f"\n\n{total} of {minutes} minutes; the rest is for arriving, questions and a break."
    return head + "\n".join(rows) + spare


def overview(lessons: dict[str, Lesson]) -> str:
    """Return the table of all lessons with their minutes."""
    rows = [
        f"| {one.number} | {one.title} | {one.minutes - one.run} | {one.run} | {one.minutes} |"
        for one in lessons.values()
    ]
    total = sum(one.minutes for one in lessons.values())
    head = "| | lesson | to teach | cells run | minutes |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + f"\n\nAll together: {total / 60:.0f} hours."


def details(lesson: Lesson) -> str:
    """Return the goal of a lesson and the minutes of its sections."""
    rows = "\n".join(f"| {title} | {minutes} |" for title, minutes in lesson.sections.items())
    head = "| section | minutes |\n|---|---|\n"
    last = f"\n| all cells run | {lesson.run} |\n| **together** | **{lesson.minutes}** |"
    return f"**Goal**: {lesson.goal}\n\n{head}{rows}{last}"


def parts(lessons: dict[str, Lesson]) -> dict[str, str]:
    """Return what is written into the page, by the names of its markers."""
    found = {"rule": RULE, "overview": overview(lessons)}
    found |= {f"plan-{minutes}": plan(minutes, lessons) for minutes in PLANS}
    return found | {f"lesson-{number}": details(lesson) for number, lesson in lessons.items()}


def filled(text: str, parts: dict[str, str]) -> str:
    """Return the page with what stands between its markers written anew.

    Raises:
        ValueError: if the page lacks the markers of a part.
    """
    for name, part in parts.items():
        block = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", flags=re.S)
        if not block.search(text):
            raise ValueError(
                f"book/teaching.md lacks the lines `<!-- begin {name} -->` and `<!-- end {name} "
                "-->`. Add them where it is to stand."
            )
        text = block.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def write(parts: dict[str, str]) -> None:
    """Write parts of the teacher's page anew.

    Raises:
        ValueError: if the page lacks the markers of a part.
    """
    write_whole(PAGE, filled(PAGE.read_text(encoding="utf-8"), parts))


def main() -> int:
    try:
        write(parts(read()))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
