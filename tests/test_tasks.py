"""The metrics of lesson 05b come from libraries: each is held to a count by hand."""

from __future__ import annotations

import itertools

import nervaluate
import pytest
from torchmetrics.functional.text import rouge_score, squad

from course_utils import data


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a row of B-, I- and O tags as (kind, first word, last word).

    An I- that follows nothing of its kind begins one, as in the evaluation of CoNLL-2000.
    """
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and not tag == f"I-{tags[start][2:]}":
            found.add((tags[start][2:], start, i - 1))
            start = None
        if start is None and tag != "O":
            start = i
    return found


def strict_f1(true: list[list[str]], said: list[list[str]]) -> float:
    """Return the F1 of whole entities, counted as sets."""
    right = sum(len(entities(t) & entities(s)) for t, s in zip(true, said, strict=True))
    return 2 * right / sum(len(entities(row)) for row in [*true, *said])


@pytest.fixture(scope="module")
def tagged() -> list[list[str]]:
    rows = data.load("entities", "test")
    names = rows.features["tags"].feature.names
    return [[names[tag] for tag in row] for row in rows["tags"]]


def library_f1(true: list[list[str]], said: list[list[str]]) -> float:
    kinds = sorted({tag[2:] for row in true for tag in row if tag != "O"})
    results = nervaluate.Evaluator(true, said, tags=kinds, loader="list").evaluate()
    return results["overall"]["strict"].f1


@pytest.mark.parametrize("fault", ["half", "short", "kind", "none"])
def test_entity_f1_counts_whole_entities(tagged, fault: str) -> None:
    """A word right of an entity of two is no entity right; the library must not be lenient."""
    spoil = {
        "half": lambda row: ["O" if i % 2 else tag for i, tag in enumerate(row)],
        "short": lambda row: ["O" if tag.startswith("I-") else tag for tag in row],
        "kind": lambda row: [tag.replace("colour", "item") for tag in row],
        "none": list,
    }[fault]
    said = [spoil(row) for row in tagged]
    expected = strict_f1(tagged, said)
    assert (expected == 1) == (fault == "none")
    assert library_f1(tagged, said) == pytest.approx(expected)


def test_rouge_l_is_the_longest_common_sequence() -> None:
    """Held to the definition (Lin 2004, section 3.1) on the course's own summaries."""
    summaries = data.load("summaries", "test")["summary"][:12]

    def words(text: str) -> list[str]:
        return "".join(c if c.isalnum() else " " for c in text.lower()).split()

    def longest(a: list[str], b: list[str]) -> int:
        row = [0] * (len(b) + 1)
        for x in a:
            before = row[:]
            for j, y in enumerate(b):
                row[j + 1] = before[j] + 1 if x == y else max(row[j], before[j + 1])
        return row[-1]

    for said, true in itertools.pairwise(summaries):
        common = longest(words(said), words(true))
        expected = 2 * common / (len(words(said)) + len(words(true)))
        found = rouge_score([said], [true], rouge_keys="rougeL")["rougeL_fmeasure"]
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_squad_ignores_case_articles_and_punctuation_and_no_more() -> None:
    """The lesson says so in words."""

    def scores(said: str, true: str) -> tuple[float, float]:
        result = squad(
            [{"id": "0", "prediction_text": said}],
            [{"id": "0", "answers": {"text": [true], "answer_start": [0]}}],
        )
        return float(result["exact_match"]), float(result["f1"])

    assert scores("The Violet carpet.", "violet carpet") == (100, 100)
    assert scores("carpet", "violet carpet") == (0, pytest.approx(200 / 3, abs=1e-3))
    assert scores("bicycle", "violet carpet") == (0, 0)
