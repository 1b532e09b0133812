"""Each module says what it is for and which lessons use it, and the README's tree repeats it."""

from __future__ import annotations

import house
import pytest

ADVICE = "run: python scripts/house.py"


@pytest.mark.parametrize("name", house.modules())
def test_a_module_names_the_lessons_that_use_it(name: str) -> None:
    """A module that no lesson uses any more has lost its reason to be here."""
    source = house.modules()[name].read_text(encoding="utf-8")
    assert house.DOCSTRING.match(source), f"{name} has no docstring at its head"
    assert source == house.annotated(name), ADVICE


def test_the_tree_of_the_readme_is_that_of_the_files() -> None:
    assert (house.ROOT / "README.md").read_text(encoding="utf-8") == house.readme(), ADVICE


def test_every_folder_has_its_line() -> None:
    """A reader must be able to place each folder."""
    folders = {p.name for p in house.ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    made = {"build", "finetuning_course.egg-info", "__pycache__"}
    assert folders - made <= house.FOLDERS.keys()


def test_imports_for_types_and_lines_of_ipython_do_not_count() -> None:
    source = (
        "from course_utils import data\nif TYPE_CHECKING:\n    from course_utils import models\n"
    )
    assert house.imported(source) == {"course_utils.data"}
