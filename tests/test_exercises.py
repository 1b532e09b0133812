"""The checks of the "Your turn" cells: each is used, and says what is wrong."""

from __future__ import annotations

import re

import nbformat
import pytest
import torch
from peft import LoraConfig

from course_utils import exercises
from course_utils.paths import COURSE_ROOT

NOTEBOOKS = sorted((COURSE_ROOT / "notebooks").glob("[0-9]*.ipynb"))
CALL = re.compile(r'exercises\.check\(\s*"([^"]+)"')


def test_every_check_is_used_by_a_lesson() -> None:
    """A check that no lesson calls is dead; a lesson's key without a check fails in the lesson."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert sorted(CALL.findall(code)) == exercises.keys()


def test_an_unknown_key_is_named() -> None:
    """A typo in a lesson's key must not look like a wrong answer."""
    with pytest.raises(ValueError, match="00-rank"):
        exercises.check("00-rang", 1)


@pytest.mark.parametrize("answer", [10, ...])
@pytest.mark.parametrize(
    ("measured", "given"), [({"trainabel": 5}, "trainabel"), ({}, "nothing")], ids=str
)
def test_a_fault_of_the_cell_is_not_blamed_on_the_answer(answer, measured, given) -> None:
    """A learner would look for a fault in an answer that is right."""
    with pytest.raises(ValueError, match=rf"given {given} with .* takes trainable\..*cell"):
        exercises.check("00-rank", answer, **measured)


def test_an_answer_of_another_kind_is_no_traceback() -> None:
    """A learner who gives a word for a number gets a hint, not a stack of frames."""
    verdict = exercises.check("00-speed", "fast", metrics={"train_runtime": 1, "epoch": 1}, rows=1)
    assert verdict.status == "not yet"
    assert "str" in verdict.message


@pytest.mark.parametrize(
    ("saved", "status", "says"),
    [
        (["classification_head"], "right", "trained and saved"),
        ("classification_head", "not yet", "list"),
        (["classifier"], "not yet", "name"),
    ],
)
def test_the_head_is_named_in_a_list(saved: list[str] | str, status: str, says: str) -> None:
    """With a bare string the config is made, and get_peft_model fails."""
    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=saved)
    verdict = exercises.check("05-head", config)
    assert verdict.status == status
    assert says in verdict.message


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_least_even_codes_are_not_those_of_the_largest_error(seed: int) -> None:
    """The message names the error, so that even use is not taken for a small one."""
    weights = torch.randn(256, 512, generator=torch.Generator().manual_seed(seed))
    verdict = exercises.check("03-levels", "int4", weights=weights)
    assert verdict.status == "right"
    assert "Yet its error is 10." in verdict.message
    assert "FP4's 12." in verdict.message
    for kind, says in (("nf4", "most evenly"), ("fp4", "bincount")):
        verdict = exercises.check("03-levels", kind, weights=weights)
        assert verdict.status == "not yet"
        assert says in verdict.message
