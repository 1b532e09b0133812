"""Dataset checks next to each other, on faults that are known: data/results/dataset_checks.json.

    python benchmarks/dataset_checks.py      a minute or two; installs the others from PyPI

Forty chats are made of the course's own messages and summaries, and of each kind of fault a copy in
which a few rows have it. A check's answer is every number that it reports; what it finds of a kind
is the largest rise of one of them over the file without faults, and no more than the rows that have
it. So any finding that counts the rows is honoured, whatever it is called. What a check reports of
the file without faults is a false alarm.
"""

from __future__ import annotations

import copy
import json
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from neighbours import Environment, markdown, put

from course_utils.files import write_whole
from course_utils.paths import COURSE_ROOT, DATA
from preflight import dataset_check

RESULTS = COURSE_ROOT / "data" / "results" / "dataset_checks.json"
SCHEMA = 1
CHECKS = {"finelint": "0.2.0", "cleanllm": "4.0.0", "dropoutt": "1.4.1"}
ROWS = 40

Row = dict[str, Any]
Numbers = dict[str, float]


def sound() -> list[Row]:
    """Return chats without a fault."""
    lines = (DATA / "summaries" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    return [
        {
            "messages": [
                {"role": "user", "content": "Summarise this message: " + row["message"]},
                {"role": "assistant", "content": row["summary"]},
            ]
        }
        for row in map(json.loads, lines)
    ]


def answer(row: Row, change: Callable[[str], str]) -> None:
    """Change the text of a row's answer."""
    turn = row["messages"][-1]
    turn["content"] = change(turn["content"])


def cut(row: Row) -> None:
    answer(row, lambda text: text[: len(text) * 2 // 3].rstrip(" .,"))


def emptied(row: Row) -> None:
    answer(row, lambda _: "")


def swapped(row: Row) -> None:
    row["messages"].reverse()


def repeated(row: Row) -> None:
    answer(row, lambda text: row["messages"][0]["content"] + " " + text)


def decoded_wrongly(row: Row) -> None:
    answer(row, lambda text: (text + " It’s urgent – at the café.").encode().decode("cp1252"))


def left_open(row: Row) -> None:
    answer(row, lambda text: text + " Kind regards, [Your Name]")


def secret(row: Row) -> None:
    """A key of the form that a cloud gives out, from dice and of no one."""
    dice = random.Random(row["messages"][0]["content"])
    key = "AKIA" + "".join(dice.choices(string.ascii_uppercase + string.digits, k=16))
    answer(row, lambda text: f"{text} The key is {key}.")


def card(row: Row) -> None:
    """The number that payment services give out for tests."""
    answer(row, lambda text: f"{text} Paid by card {' '.join(['4111', *['1111'] * 3])}.")


def wrong_call(row: Row) -> None:
    """A call without the argument that its tool requires."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    function = {"name": "weather", "description": "Weather", "parameters": parameters}
    row["tools"] = [{"type": "function", "function": function}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": 7}}}
    row["messages"].insert(1, {"role": "assistant", "content": "", "tool_calls": [call]})
    row["messages"].insert(2, {"role": "tool", "name": "weather", "content": "Rain."})


CHANGES: dict[str, Callable[[Row], None]] = {
    "answers cut off": cut,
    "empty answers": emptied,
    "roles in the wrong order": swapped,
    "the prompt repeated in the answer": repeated,
    "wrongly decoded text": decoded_wrongly,
    "placeholders left in": left_open,
    "keys": secret,
    "card numbers": card,
    "tool calls that do not fit": wrong_call,
}
FAULTY = (3, 11, 19, 27, 35)  # the rows that a change is made to


def files() -> Iterator[tuple[str, list[Row], int]]:
    """Yield the kinds of faults with their rows, and how many of these have it."""
    for kind, change in CHANGES.items():
        rows = sound()
        for number in FAULTY:
            change(rows[number])
        yield kind, rows, len(FAULTY)
    rows = sound()
    copies = [copy.deepcopy(rows[number]) for number in FAULTY]
    yield "rows that repeat another", rows + copies, len(FAULTY)
    near = copy.deepcopy(copies)
    for row in near:
        question = row["messages"][0]
        question["content"] = question["content"].replace("the", "that", 1) + " Please."
    yield "rows nearly the same as another", rows + near, len(FAULTY)


def numbers(value: Any, name: str = "") -> Numbers:
    """Return all numbers in nested data, by the path to them."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        counts = isinstance(value, int | float) and not isinstance(value, bool)
        return {name: value} if counts else {}
    return {key: number for k, v in inner for key, number in numbers(v, f"{name}.{k}").items()}


def course(file: Path) -> Numbers:
    """Return what this course's check counts in a file, by the kind of finding."""
    report = dataset_check.check(str(file))
    return {f.code: f.count for f in report.findings if f.severity != "info"}


class Others:
    """The checks of others, in an environment of their own; each returns what it counts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._environment = Environment(place, CHECKS)

    def finelint(self, file: Path) -> Numbers:
        affected = self.place / "affected.json"
        report = self.place / "report.json"
        options = ("--affected-records", affected, "--report", report)
        self._run("finelint", "inspect", file, *options)
        found: Numbers = {}
        for row in json.loads(affected.read_text(encoding="utf-8"))["records"]:
            for code in {reason["code"] for reason in row["reasons"]}:
                found[code] = found.get(code, 0) + 1
        return found

    def cleanllm(self, file: Path) -> Numbers:
        report, out = self.place / "report.json", self.place / "out.jsonl"
        commands = {
            "scan": ["--pii", "--chat-templates", "--full-text-scan", "--synthetic-detection"],
            "check-turns": ["--mode", "report"],
            "preflight": ["--framework", "trl"],
            "dedup": ["--near-dedup", "--normalized", "--out", out],
        }
        found: Numbers = {}
        for command, options in commands.items():
            self._run("cleanllm", command, file, *options, "--report-json", report)
            content = json.loads(report.read_text(encoding="utf-8"))
            found |= {
                name: number
                for name, number in numbers(content, command).items()
                if not any(word in name for word in NO_FINDING)
            }
        return found

    def dropoutt(self, file: Path) -> Numbers:
        folder = self.place / "data"
        folder.mkdir(exist_ok=True)
        (folder / "train.jsonl").write_bytes(file.read_bytes())
        out = self.place / "dropoutt"
        options = ("--offline", "--no-html", "--no-open", "--profile", "sft", "--quiet")
        self._run("dropoutt", "scan", folder, "--out", out, *options)
        lines = (out / "findings.jsonl").read_text(encoding="utf-8").splitlines()
        found = map(json.loads, lines)
        return {one["check_id"]: one["count"] for one in found if one["severity"] != "info"}

    def _run(self, program: str, *arguments: object) -> None:
        self._environment.run(program, *arguments, found=(1, 10))  # what they found is no failure


# Numbers in cleanllm's reports that count no fault: sizes, times, the sound rows.
NO_FINDING = (
    "token", "duration", "total", "valid_rows", "clean", "language", "unique", "kept", "no_code"
)  # fmt: skip


def measure(ask: Callable[[Path], Numbers], place: Path) -> dict[str, Any]:
    """Return what a check finds of each kind, its false alarms, and its seconds a file."""
    file = place / "chats.jsonl"

    def asked(rows: list[Row]) -> Numbers:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return ask(file)

    started = time.perf_counter()
    before = asked(sound())
    found = {}
    for kind, rows, faulty in files():
        after = asked(rows)
        rise = max((number - before.get(name, 0) for name, number in after.items()), default=0)
        found[kind] = int(max(0, min(faulty, rise)))
    seconds = (time.perf_counter() - started) / (1 + len(found))
    alarms = {name: number for name, number in before.items() if number}
    return {"found": found, "false alarms": alarms, "seconds": round(seconds, 2)}


def table(record: dict[str, Any]) -> str:
    """Return a record as a table in markdown: a row a kind of fault, a column a check."""
    versions = record["versions"]
    head = ["fault", *(f"{name} {versions.get(name, '')}".strip() for name in record["checks"])]
    rows = [
        [kind, *(f"{check['found'][kind]} of {faulty}" for check in record["checks"].values())]
        for kind, faulty in record["faulty"].items()
    ]
    alarms = [str(len(check["false alarms"])) for check in record["checks"].values()]
    seconds = [f"{check['seconds']:.1f}" for check in record["checks"].values()]
    return markdown(head, [*rows, ["*false alarms*", *alarms], ["*seconds a file*", *seconds]])


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        others = Others(place)
        checks = {"this course": measure(course, place)}
        for name in CHECKS:
            checks[name] = measure(getattr(others, name), place)
    content = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": CHECKS,
        "faulty": {kind: faulty for kind, _, faulty in files()},
        "checks": checks,
    }
    write_whole(RESULTS, json.dumps(content, indent=1) + "\n")
    put(table(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
