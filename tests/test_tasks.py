"""The metrics of lesson 05b come from libraries: each is held to a count by hand."""

from __future__ import annotations

import nervaluate
import pytest
from torchmetrics.functional.text import rouge_score, squad


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("B-name I-name O B-item", 1),
        ("B-name O O B-item", 1 / 2),  # a word right of an entity of two
        ("B-item I-item O B-item", 1 / 2),  # the right words, of another kind
        ("O O O B-item", 2 / 3),  # one of two found, and no wrong one
    ],
)
def test_entity_f1_counts_whole_entities(predicted: str, expected: float) -> None:
    """F1 is 2 * right / (true + predicted); the library must not be lenient."""
    true = [["B-name", "I-name", "O", "B-item"]]
    evaluator = nervaluate.Evaluator(
        true, [predicted.split()], tags=["name", "item"], loader="list"
    )
    assert evaluator.evaluate()["overall"]["strict"].f1 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("Ann's lamp, sent to York, is broken", 1),
        ("ANNS LAMP sent to york: is broken!", 12 / 15),  # all but "ann" and "s" of 8 and 7 words
        ("the broken lamp of Ann", 2 / 13),  # in another order
    ],
)
def test_rouge_l_is_the_longest_common_sequence(predicted: str, expected: float) -> None:
    """2 * common / (words + words), as Lin 2004, section 3.1; case and punctuation do not count."""
    true = "Ann's lamp, sent to York, is broken"
    found = rouge_score([predicted], [true], rouge_keys="rougeL")["rougeL_fmeasure"]
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_squad_ignores_case_articles_and_punctuation_and_no_more() -> None:
    """The lesson says so in words."""

    def scores(predicted: str, true: str) -> tuple[float, float]:
        result = squad(
            [{"id": "0", "prediction_text": predicted}],
            [{"id": "0", "answers": {"text": [true], "answer_start": [0]}}],
        )
        return float(result["exact_match"]), float(result["f1"])

    assert scores("The Violet carpet.", "violet carpet") == (100, 100)
    assert scores("carpet", "violet carpet") == (0, pytest.approx(200 / 3, abs=1e-3))
    assert scores("bicycle", "violet carpet") == (0, 0)
