"""What rows say: faults that the texts themselves show, and sound texts that look like them.

A false alarm on sound data is worse than a miss, so each kind has its sound neighbours here. Keys
and numbers are invented, and put together here so that no scanner takes them for real ones.
"""

from __future__ import annotations

import argparse
import ast
import base64
import calendar
import difflib
import email.utils
import heapq
import inspect
import json
import shutil
import statistics
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset
from test_data_check import check, codes, faults, find, turn

from preflight.dataset_check import near
from preflight.dataset_check.private import redacted

ITEMS = "teapot lantern rucksack doormat umbrella kettle ladder mirror saddle trumpet".split()
PLACES = "Ashford Brindle Corby Dunmore Elmwick Fairhaven Garrow Holt Inver Jarrow".split()


def sound(number: int) -> dict[str, Any]:
    """Return a sound row in prose, of 100 that differ."""
    item, place = ITEMS[number % 10], PLACES[number // 10 % 10]
    asked = f"Where in {place} does one find a {item}, and what does it cost there?"
    return {"prompt": asked, "completion": f" In {place}, ask at the {item} shop. It is cheap."}


def with_rows(*rows: Any, count: int = 36) -> list[Any]:
    return [*map(sound, range(count)), *rows]


def answers(*texts: str) -> list[dict[str, Any]]:
    """Return sound rows, and then one for each of these answers."""
    return with_rows(
        *({"prompt": f"Question {n} of the day?", "completion": t} for n, t in enumerate(texts))
    )


def chats(*texts: str) -> list[dict[str, Any]]:
    rows = answers(*texts)
    return [
        {"messages": [turn("user", r["prompt"]), turn("assistant", r["completion"])]} for r in rows
    ]


# --- answers cut off ------------------------------------------------------------------------------

CUT = [
    " The parts of a plant are the root, the stem and the",
    " Paris is a large city. It lies on both banks of the river and has many brid",
    " Boil the water first. Then let the leaves stand in it for about three or four",
    " A lease is a contract by which the owner of a house lets another person live in",
    " Here it is:\n```python\ndef add(a, b):\n    return a +",
]
WHOLE = [
    " Blue", " A red kite over the harbour", " 42", " The answer is 42",
    " - one\n- two and three\n- four",
    " 1. Take the long way round the old mill and the pond\n2. Take the short way over the bridge",
    " Roses are red,\nviolets are blue,\nsugar is sweet\nand so are you",
    " It was late. We went home.\n\nKind regards,\nAnna Smith of the Harbour Office",
    " def add(a, b):\n    return a + b", " Here:\n```python\nprint(1)\n```", ' {"name": "Ada"}',
    " See the page of the town for all the times: https://town.example/times",
    " It was a good day. We all laughed. Thanks for reading and see you soon 🙂",
    " The sum is simple. First add two and two, then take one.\nThe answer is: 3",
    " SELECT name FROM towns WHERE size > 3 AND river = 'Elbe' ORDER BY name",
]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_sentences_without_a_full_stop_are_cut_off_where_they_are_several(count: int) -> None:
    short = [f"Item {n} was sent on Monday to the shop where the buyer" for n in range(count)]
    found = faults(check(answers(*short)))
    assert found == ({"answer_cut_off": [*range(36, 36 + count)]} if count > 2 else {})


@pytest.mark.parametrize("make", [answers, chats])
def test_answers_cut_off_in_mid_sentence(make: Any) -> None:
    """A limit of tokens in the program that wrote the answers; the model learns to stop there."""
    assert faults(check(make(*CUT))) == {"answer_cut_off": [36, 37, 38, 39, 40]}


@pytest.mark.parametrize("text", WHOLE)
def test_answers_that_end_without_a_full_stop(text: str) -> None:
    """Code, poems, lists, labels and signatures end as they please."""
    assert not codes(check(answers(text))) and not codes(check(chats(text)))


def test_writers_who_set_no_full_stop() -> None:
    """Where every third answer ends without one, that is how these people write."""
    texts = [f" I was there. We all saw the boat of {p} come in at night" for p in PLACES * 2]
    assert not codes(check(answers(*[t + f" {n}x" for n, t in enumerate(texts)])))


# --- near duplicates ------------------------------------------------------------------------------

STORY = (
    "The baker of the village rose at four, lit his oven with dry beech, and set the first loaves "
    "in rows while the cat slept on the flour sacks beside the door until the bell rang."
)
NEAR = [
    STORY.replace("dry beech", "dry oak"),
    STORY.replace(",", "").replace("The", "the"),
    STORY + " Then he sang.",
]


def test_near_duplicates() -> None:
    """A word more or less, other punctuation: a hash of the row sees nothing of it."""
    rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in with_rows()]
    rows += [{"text": text} for text in (STORY, *NEAR)]
    report = check(rows)
    assert faults(report) == {"near_duplicate": [37, 38, 39]}
    assert find(report, "near_duplicate").example == "'row 37 is like row 36 of train'"


def test_near_duplicates_across_splits() -> None:
    """A held-out row with another full stop flatters the model as well as the same row."""
    report = check([{"text": STORY}], eval_dataset=[{"text": NEAR[0]}])
    assert faults(report, "eval") == {"near_duplicate": [0]}


def test_rows_of_one_pattern_are_no_near_duplicates() -> None:
    """A long instruction before each question, or a form with gaps: rows differ as they should."""
    rules = "Answer in one word, and say nothing else, as the clerk of a shop does. " * 8
    assert not codes(check([{**sound(n), "prompt": rules + sound(n)["prompt"]} for n in range(60)]))
    letter = "Dear {}, your {} left our house in {} today and should reach you on the next morning."
    texts = [letter.format(f"Ann {n}", ITEMS[n % 10], PLACES[n // 10]) for n in range(90)]
    assert not codes(check([{"text": text} for text in texts]))


def test_how_many_rows_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat, and the report says where it stopped."""
    monkeypatch.setattr(near, "ROWS", 1)
    assert not codes(check([{"text": STORY}, {"text": NEAR[0]}]))
    assert (
        "10,000 rows"
        in find(check([{"text": STORY}], eval_dataset=[{"text": NEAR[0]}]), "near_duplicate").what
    )


# --- secrets and personal data --------------------------------------------------------------------

SECRETS = [
    "sk-" + "proj-Zq8vT3mKw2Lp9Xc4Rb7Ny1Hd6Jf5",
    "gh" + "p_Zq8vT3mKw2Lp9Xc4Rb7Ny1Hd6Jf5Gs0AeUi",
    "h" + "f_ZqvTmKwLpXcRbNyHdJfGsAeUiOtPy12",
    "AK" + "IAZQ8VT3MKW2LP9XC4",
    "xo" + "xb-412233445566-Zq8vT3mKw2Lp9Xc4Rb7N",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEZq8vT3mKw2Lp9Xc4\n-----END RSA PRIVATE KEY-----",
]
PERSONAL = [
    "4111 1111 " + "1111 1111", "5500-0000-" + "0000-0004", "my card 378282246310" + "005",
    "(212) 555-01" + "42", "212-555-01" + "42", "+44 20 7946 " + "0958", "+49 30 9018" + "2000",
    "call me at 0171 5550" + "1234", "GB29 NWBK 6016 " + "1331 9268 19", "536-22-" + "8741",
    "jonna.lind@fjord" + "mail.se",
]  # fmt: skip
# fmt: off
NOT_PRIVATE = [
    "The key has the form sk-" + "x" * 28, "AKIA" + "IOSFODNN7EXAMPLE",
    "Use the class sk-" + "fading-circle-container-large here.",
    "hf_hub_download_of_a_file_with_a_name",
    "Write to support@" + "harbour.com or name@example.com.", "@property\ndef size(self): ...",
    "In 2023-05-17 12:30:15 the values were 1024 2048 4096 8192.", "1234 5678 9012 3456",
    "0.1234567890123456789 and 3.141592653589793", "ISBN 978-3-16-148410-0", "10.1000/182.12345678",
    "+10 20 30 40 50", "192.168.100.200", "1000-2000-3000", "0000 0000 0000 0000",
    "The numbers 100, 200, 300, 400, 500, 600 add up.", "eyJ is how such a token begins.",
    "Call f(1000000000, 2) twice.", "x = 5550100123456789", "a phone with 12 MP and 128 GB",
]
# fmt: on


@pytest.mark.parametrize("kind", ["secret", "personal_data"])
def test_private_data_is_found_and_never_shown(kind: str) -> None:
    """A report goes into an issue or a notebook: it names the kind, not the value."""
    values = SECRETS if kind == "secret" else PERSONAL
    texts = [f" Note this down for me: {value}\nThat was all." for value in values]
    report = check(answers(*texts), max_rows=50)
    assert faults(report) == {kind: [*range(36, 36 + len(values))]}
    for shown in (str(report), report._repr_html_(), json.dumps(report.to_dict())):
        assert not any(value.split()[-1] in shown for value in values)


@pytest.mark.parametrize("value", [*SECRETS, *PERSONAL])
def test_other_findings_do_not_show_it_either(value: str) -> None:
    """A duplicate is quoted, and a secret may be in it."""
    row = {"prompt": f"{value} is it", "completion": " yes\x00"}
    report = check([row, row, {"prompt": {"a": f"now {value} "}, "completion": None}])
    assert {"duplicate", "control_character", "wrong_type", "none_value"} <= codes(report)
    private = value.removeprefix("my card ").removeprefix("call me at ")
    shown = [f.example for f in report.findings]
    assert not any(private in text or repr(private)[1:-1] in text for text in shown)


def test_a_key_at_the_edge_of_what_is_quoted() -> None:
    """What is shown is cut after 100 characters; half a key is half a secret."""
    for length in range(60, 110):
        shown = redacted("a" * length + " " + SECRETS[0])[:100]
        assert SECRETS[0][:8] not in shown


@pytest.mark.parametrize("text", NOT_PRIVATE)
def test_what_only_looks_private(text: str) -> None:
    """Example keys of documentation, versions, dates, sums and addresses of offices."""
    assert not codes(check(answers(f" {text} Done.")))


# --- placeholders, prompts in answers, wrong decoding ---------------------------------------------


@pytest.mark.parametrize(
    "text", ["Sincerely, [Your Name].", "Hello {{name}}, welcome.", "To <insert date> at noon.",
             "See [INSERT LINK HERE] for more."]
)  # fmt: skip
def test_placeholders(text: str) -> None:
    """The model will write [Your Name] under its letters."""
    assert faults(check(answers(f" {text}"))) == {"placeholder": [36]}


@pytest.mark.parametrize(
    "text",
    ["Use `{{ name }}` in the template:\n```html\n<p>{{ name }}</p>\n```",
     "See [your notes](a.md).",
     "The list [1, 2] has two items.", "In LaTeX write \\frac{{a}}{b}.", "<p>Your text</p>"],
)  # fmt: skip
def test_what_is_no_placeholder(text: str) -> None:
    """Templates, links, lists and markup."""
    assert not codes(check(answers(f" {text}")))


def test_the_prompt_again_in_the_answer() -> None:
    """A program that keeps the prompt in front of what it generated."""
    asked = [f"How does one mend the {item} of a neighbour?" for item in ITEMS[:4]]
    rows = with_rows(*({"prompt": a, "completion": f" {a} With glue."} for a in asked))
    assert faults(check(rows)) == {"prompt_repeated": [36, 37, 38, 39]}
    talks = [{"messages": [turn("user", a), turn("assistant", a + " Glue.")]} for a in asked]
    assert faults(check(talks)) == {"prompt_repeated": [0, 1, 2, 3]}
    columns = [{"instruction": a, "output": f"{a}\nGlue."} for a in asked]
    assert faults(check(columns)) == {"prompt_repeated": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [("Hello there!", "Hello there! What can I do?"), ("Correct: he go home", "He goes home."),
     ("The cat sat on the warm mat.", "The cat sat on the warm mat."),
     ("What is the use of a lamp?", "What is the use of it? Light.")],
)  # fmt: skip
def test_an_answer_that_only_begins_alike(asked: str, answer: str) -> None:
    """A greeting returned, a sentence corrected, or one in which nothing was wrong."""
    assert not codes(check(with_rows({"prompt": asked, "completion": f" {answer}"})))


WRONG = [
    "A cafÃ© in Köln".replace("ö", "Ã¶"), "It isnâ€™t here", "PrÃ¼fung und StraÃŸe",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€", "æ—¥æœ¬èªž", "Tom &amp; Jerry", "It&#39;s late", "a caf\\u00e9 by night",
]  # fmt: skip
RIGHT = [
    "Ein Café in Köln, Größe 5, Straße", "Não, irmã! Ação, maçã, ÂNGELO, É",
    "Où est l'été à Nîmes ?",
    "привет мир", "日本語のテキスト", "한국어 문장", "مرحبا بالعالم", "שלום עולם",
    "Việt Nam đẹp lắm",
    "Γειά σου Κόσμε", "Zażółć gęślą jaźń", "ÅÄÖ åäö æøå", "İstanbul'da ığdır", "สวัสดีชาวโลก",
    "α ≤ β × ∑ → ∞ ± 5 °C, 10 µm, €5, £6", "“Quoted” — and ‘so’ … 🙂👍🏽", "5 ½ × 3 ² § 7 ¶",
    "In HTML, write &amp; for an ampersand.", "R&D and AT&T; Q&A", "json.dumps gives '\\u00e9'",
    "┌─┐ │x│ └─┘ █▓▒░", "naïve façade, Ångström, Škoda, Łódź, ñandú, ÿ", "C:\\users\\new",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_text_decoded_wrongly(text: str) -> None:
    """UTF-8 read as cp1252, and what a page's source or JSON escapes left behind."""
    assert faults(check(answers(f" {text}."))) == {"wrongly_decoded": [36]}


@pytest.mark.parametrize("text", RIGHT)
def test_text_decoded_rightly(text: str) -> None:
    """Other languages, signs and drawings; texts about markup and escapes."""
    assert not codes(check(answers(f" {text}.")))


# --- tools ----------------------------------------------------------------------------------------

WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                       "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city"],
    },
}  # fmt: skip
TOOLS = [{"type": "function", "function": WEATHER}]


def call(name: str = "weather", arguments: Any = None, **others: Any) -> dict[str, Any]:
    arguments = {"city": "Bern"} if arguments is None else arguments
    function = {"name": name, "arguments": arguments}
    return turn("assistant", "", tool_calls=[{"type": "function", "function": function, **others}])


def talk(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [turn("user", "Wet?"), *turns, turn("assistant", "Yes.")]}


ANSWER = turn("tool", "rain")
MISFITS = [
    ([call("wether"), ANSWER], "wether is not defined; weather is"),
    ([call(arguments={"days": 2}), ANSWER], "'city' is a required property"),
    ([call(arguments={"city": "Bern", "days": "two"}), ANSWER], "days does not fit"),
    ([call(arguments={"city": "Bern", "unit": "K"}), ANSWER], "unit does not fit"),
    ([call(arguments={"town": "Bern", "city": "x"}), ANSWER], "no argument 'town'"),
    ([call(arguments='{"city": '), ANSWER], "no JSON"),
    ([call(arguments=["Bern"]), ANSWER], "no object"),
    ([ANSWER], "none was called"),
    ([call(id="a1"), turn("tool", "rain", tool_call_id="b2")], "'b2', which was not called"),
    ([call(), turn("tool", "rain", name="clock")], "clock answers, and weather was called"),
]
FITS = [
    [call(), ANSWER], [call(arguments='{"city": "Bern"}'), ANSWER],
    [call(arguments={"city": "Bern", "days": 2, "unit": "C"}), ANSWER],
    [call(arguments={"city": "Bern", "days": None, "unit": None}), ANSWER],
    [call(id="a1"), turn("tool", "rain", tool_call_id="a1", name="weather")],
]  # fmt: skip


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(("turns", "words"), MISFITS)
def test_calls_that_do_not_fit_the_definitions(turns: list, words: str, as_text: bool) -> None:
    """A model that was taught calls of this kind will make calls that fail."""
    tools = json.dumps(TOOLS) if as_text else TOOLS
    report = check([{**talk(*turns), "tools": tools}])
    assert faults(report) == {"tool_call_mismatch": [0]}
    assert words in find(report, "tool_call_mismatch").example.replace('"', "'")


@pytest.mark.parametrize("turns", FITS)
def test_calls_that_fit(turns: list) -> None:
    """Arguments as JSON text, and None where datasets filled a gap, are right."""
    assert not codes(check([{**talk(*turns), "tools": TOOLS}]))
    assert not codes(check([talk(*turns)])), "without definitions there is nothing to hold it to"


@pytest.mark.parametrize(
    "tools",
    ["", "[]", "no JSON", None, [], [3], [{"name": "weather"}], "{",
     [{"name": "weather", "parameters": {"type": "dict", "properties": {"city": {"type": "str"}}}}],
     [{"name": "weather", "parameters": {"$ref": "#/nowhere"}}]],
)  # fmt: skip
def test_definitions_that_say_nothing(tools: Any) -> None:
    """Public data have no definitions in some rows, or ones that are no JSON Schema."""
    assert not codes(check([{**talk(call(), ANSWER), "tools": tools}]))


def test_calls_of_sharegpt_are_held_to_the_definitions() -> None:
    """They are looked at as what the mapping makes of them."""
    said = json.dumps({"name": "clock", "arguments": {}})
    turns = [{"from": "human", "value": "Wet?"}, {"from": "function_call", "value": said}]
    turns += [{"from": "observation", "value": "rain"}, {"from": "gpt", "value": "Yes."}]
    report = check([{"conversations": turns, "tools": json.dumps(TOOLS)}])
    assert faults(report) == {"tool_call_mismatch": [0]}


def test_the_same_words_with_other_tools_are_no_repetition() -> None:
    """Asked for what no tool does, an assistant says so, whatever tools there are."""
    other = [{"type": "function", "function": {"name": "clock"}}]
    rows = [{**talk(), "tools": tools} for tools in (TOOLS, other, TOOLS)]
    assert faults(check(rows)) == {"duplicate": [2]}


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["1", 2.5, True, None, [1]])
def test_labels_of_another_type(wrong: Any) -> None:
    """One text among numbers makes all labels text."""
    rows = [{"text": f"Row {n}.", "label": n % 3} for n in range(20)]
    assert not codes(check(rows, num_labels=3))
    rows[7]["label"] = wrong
    assert faults(check(rows, num_labels=3)) == {"label_type": [7]}


@pytest.mark.parametrize(
    "labels",
    [[1, 2.5, 3, 4.5] * 5, [0.5, 1] * 10, ["a", "b"] * 10, [[0, 1], []] * 10, [None] * 20,
     [0, None, None, None] * 5 and [None] * 20],
)  # fmt: skip
def test_labels_of_one_type(labels: list[Any]) -> None:
    """Scores hold whole numbers, too; sets of labels may be empty."""
    rows = [{"text": f"Row {n}.", "label": label} for n, label in enumerate(labels)]
    assert not codes(check(rows))


# --- sound data -----------------------------------------------------------------------------------


def documented(*modules: Any) -> Iterator[tuple[str, str, str]]:
    """Yield name, source and description of the functions of modules."""
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__doc__ and function.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", inspect.getsource(function), function.__doc__


def test_code_and_its_descriptions_are_sound() -> None:
    """Sources and docstrings of the standard library, as answers."""
    known = [*documented(ast, base64, calendar, difflib, email.utils, heapq, shutil, statistics,
                         textwrap, tokenize, argparse, inspect)]  # fmt: skip
    assert len(known) > 100
    code = [{"prompt": f"Write {name}.", "completion": f"\n{source}"} for name, source, _ in known]
    said = [{"prompt": f"What does {n} do?", "completion": f" {inspect.cleandoc(d)}"}
            for n, _, d in known]  # fmt: skip
    assert not codes(check(Dataset.from_list(code), max_rows=30))
    assert not codes(check(Dataset.from_list(said), max_rows=30))
