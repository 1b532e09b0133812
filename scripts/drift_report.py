"""Say what other releases of the libraries changed under the lessons, as a page of Markdown.

    python scripts/drift_report.py --record           write what the lessons call, as it is now
    python scripts/drift_report.py                    compare the installed libraries with that
    python scripts/drift_report.py --junit FILE       and name the calls behind each failed test

The record, tests/signatures.json, has the parameters of all that the lessons call of a library, as
the versions in constraints.txt have them. `pytest --junitxml FILE` writes the other file. The exit
code is 1 if a call changed for the worse or a test failed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from course_utils.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "signatures.json"
REQUIRED = "required"  # in place of a default
LONGEST = 60  # characters of a default

# By the dotted name of a call: the lessons with it, and its parameters with their defaults (None
# where the library gives no signature).
Record = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Change:
    """What became of a call: `old` and `new` are its signatures, as far as they differ."""

    call: str
    lessons: tuple[str, ...]
    old: str
    new: str
    breaks: bool


@dataclass(frozen=True)
class Failure:
    """A test that failed: where it stands, the line that names the error, and all its output."""

    test: str
    error: str
    text: str


def parameters(call: str) -> dict[str, str] | None:
    """Return the parameters of a call by its dotted name, each with its default as text.

    Raises:
        AttributeError, ImportError: if there is no such name.
    """
    try:
        found = inspect.signature(pkgutil.resolve_name(call)).parameters.values()
    except ValueError:  # written in C, without a signature
        return None
    return {f"{_STARS.get(p.kind, '')}{p.name}": _default(p) for p in found}


_STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _default(parameter: inspect.Parameter) -> str:
    if parameter.kind in _STARS:
        return ""
    if parameter.default is parameter.empty:
        return REQUIRED
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(parameter.default))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def calls(source: str) -> Iterator[str]:
    """Yield the dotted names, by the way they are imported, of the library calls in a text."""
    from test_keywords import LIBRARIES, Calls

    known = Calls(source)
    names: dict[str, str] = {}
    for node in ast.walk(known.tree):
        if isinstance(node, ast.Import):
            roots = {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
            names |= roots | {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(known.tree):
        if isinstance(node, ast.Call) and callable(known._target(node)):
            first, *rest = ast.unparse(node.func).split(".")
            dotted = ".".join([names.get(first, first), *rest])
            if dotted.split(".")[0] in {*LIBRARIES} - {"course_utils", "preflight"}:
                yield dotted


def record() -> Record:
    """Return what the lessons call, with the parameters in the installed libraries."""
    sys.path.insert(0, str(ROOT / "tests" / "maintenance"))
    from test_keywords import NOTEBOOKS, code_of

    lessons: dict[str, list[str]] = {}
    for path in NOTEBOOKS:
        for call in dict.fromkeys(call for source in code_of(path) for call in calls(source)):
            lessons.setdefault(call, []).append(path.stem)
    return {
        call: {"lessons": lessons[call], "parameters": parameters(call)} for call in sorted(lessons)
    }


def compare(before: Record) -> list[Change]:
    """Return the calls of a record that are others in the installed libraries, worst first."""
    found = []
    for call, row in before.items():
        name, old = call.rpartition(".")[2], row["parameters"]
        try:
            new = parameters(call)
        except Exception as error:  # what cannot be imported raises what it likes
            error_text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            change = _signature(name, old or {}, ()), f"gone ({error_text})"
            found.append(Change(call, tuple(row["lessons"]), *change, True))
            continue
        if new == old or old is None or new is None:
            continue
        differ = [n for n in {**old, **new} if old.get(n) != new.get(n)]
        # A parameter more that has a default breaks no call.
        breaks = any(n not in new or new[n] == REQUIRED for n in differ)
        change = _signature(name, old, differ), _signature(name, new, differ)
        found.append(Change(call, tuple(row["lessons"]), *change, breaks))
    return sorted(found, key=lambda change: not change.breaks)


def _signature(name: str, given: Mapping[str, str], shown: Sequence[str]) -> str:
    """Return a signature in which only some parameters are named."""
    parts = []
    for parameter, default in given.items():
        if parameter in shown:
            parts.append(parameter if default in ("", REQUIRED) else f"{parameter}={default}")
        elif parts[-1:] != ["..."]:
            parts.append("...")
    return f"{name}({', '.join(parts)})"


def failures(junit: Path) -> list[Failure]:
    """Return the tests that failed by pytest's JUnit file."""
    found = []
    for case in ElementTree.parse(junit).iter("testcase"):
        for problem in (*case.iterfind("failure"), *case.iterfind("error")):
            text = f"{problem.get('message') or ''}\n{problem.text or ''}"
            text = re.sub(r"(?:\x1b|#x1B)\[[0-9;]*m", "", text).strip()  # colours
            named = re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception|Warning): .*)$", text, re.M)
            error = (named or text.splitlines() or ["(nothing was printed)"])[0][:300]
            found.append(Failure(f"{case.get('classname')}: {case.get('name')}", error, text))
    return found


def behind(failure: Failure, changes: Sequence[Change]) -> list[Change]:
    """Return the changed calls that a failure speaks of."""
    return [
        change
        for change in changes
        if re.search(rf"\b{re.escape(change.call.rpartition('.')[2])}\b", failure.text)
    ]


def moved(before: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the libraries that have another version now: the recorded one and the installed."""
    now = versions(before)
    return {name: (old, now[name]) for name, old in before.items() if now[name] != old}


def versions(names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return the installed versions of libraries."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def page(
    changes: Sequence[Change], failed: Sequence[Failure], libraries: Mapping[str, tuple[str, str]]
) -> str:
    """Return the report as Markdown."""
    listed = ", ".join(f"{name} {old} → {new}" for name, (old, new) in libraries.items())
    text = [
        "# What the installed releases changed under the lessons",
        f"Versions: {listed or 'as recorded'}.",
        f"## Tests that failed: {len(failed)}",
    ]
    for failure in failed:
        blamed = behind(failure, changes)
        text.append(f"### {failure.test}\n\n```text\n{failure.error}\n```")
        text.append("\n\n".join(map(_described, blamed)) or "It names no call that changed.")
    for title, breaks in (("may break a call", True), ("break none", False)):
        some = [change for change in changes if change.breaks == breaks]
        text.append(f"## Signatures whose changes {title}: {len(some)}")
        text += map(_described, some)
    return "\n\n".join(text) + "\n"


def _described(change: Change) -> str:
    lessons = ", ".join(change.lessons)
    return f"`{change.call}` in {lessons}\n\n```python\nold: {change.old}\nnew: {change.new}\n```"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write tests/signatures.json anew")
    parser.add_argument("--junit", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--output", type=Path, help="where the report goes, besides the screen")
    options = parser.parse_args(arguments)
    if options.record:
        calls_now = record()
        libraries = sorted({call.split(".")[0] for call in calls_now})
        content = {"versions": versions(libraries), "calls": calls_now}
        write_whole(RECORD, json.dumps(content, indent=1) + "\n")
        print(f"{len(calls_now)} calls written to {RECORD.relative_to(ROOT)}")
        return 0
    before = json.loads(RECORD.read_text(encoding="utf-8"))
    changes = compare(before["calls"])
    # Without the file the tests did not even start; what stopped them is in the workflow's log.
    failed = failures(options.junit) if options.junit and options.junit.exists() else []
    text = page(changes, failed, moved(before["versions"]))
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    return int(bool(failed) or any(change.breaks for change in changes))


if __name__ == "__main__":
    sys.exit(main())
