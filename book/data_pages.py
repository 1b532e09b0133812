"""The pages that are written from data: troubleshooting, what changed, and the helper package."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

import yaml
from adapter_page import adapter_types
from stage import BOOK, REPOSITORY, ROOT

from course_utils.claims import POCKET, Claim, made_on, recorded

# Parts of the package that readers reach through another module: data and modules.
PACKAGES = ("course_utils", "preflight")
REAL = "smollm2"  # the model whose claims stand next to the pocket model's
INNER = {"paths", "commands"}
STACK = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")
SEEN = {
    "raised": "Raised by the versions of these pages; a test reproduces it.",
    "silent": "**Nothing is raised.** A test reproduces what happens.",
    "gpu": "Needs a GPU or several: not reproduced by the tests, but by the source.",
    "older": "Of older versions; a test shows that today's do not raise it.",
    "elsewhere": "Of the machine or the network: not reproduced by the tests, but by the source.",
}


def read(name: str) -> Any:
    """Return the data of a file in book/."""
    return yaml.safe_load((BOOK / name).read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """Return the exact versions that these pages speak of."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.M))


def generated() -> dict[str, str]:
    """Return the pages that are written from data, by file name."""
    index = (BOOK / "index.md").read_text(encoding="utf-8")
    return {
        "index.md": index.replace("{{ repository }}", REPOSITORY),
        "troubleshooting.md": troubleshooting(read("troubleshooting.yaml")),
        "bad_input.md": bad_input(read("bad_input.yaml")),
        "changes.md": changes(read("changes.yaml")),
        "claims.md": claims(read("claims.yaml")),
        "adapter_types.md": adapter_types(),
        **api(),
    }


def versions() -> str:
    """Return the versions of the stack as a line of text."""
    there = pins()
    return ", ".join(f"{name} {there[name]}" for name in STACK)


def troubleshooting(groups: list[dict[str, Any]]) -> str:
    """Return the page of errors: an index of their texts, then each with cause, fix and source."""
    text = [
        "# Troubleshooting",
        "Look for the text of your error with the search of your browser, or in the list; the "
        "silent faults come last. First ask the doctor, which looks at the machine and at the "
        "installed versions:",
        "```\n.venv/bin/python -m course_utils doctor      # Windows: .venv\\Scripts\\python\n```",
        f"Held to {versions()} by the course's tests.",
        "## By the text of the error",
    ]
    lines = [
        f"- [{_code(_shortened(said))}](#{entry['id']})"
        for group in groups
        for entry in group["entries"]
        for said in entry["text"].strip().split("\n\n")
    ]
    text.append("\n".join(lines))
    for group in groups:
        text.append(f"## {group['title']}")
        text += [_entry(entry) for entry in group["entries"]]
    return "\n\n".join(text) + "\n"


def _entry(entry: dict[str, Any]) -> str:
    sources = " · ".join(f"[{name}]({url})" for name, url in entry["source"].items())
    parts = [
        f"({entry['id']})=\n### {entry['title']}",
        f":::{{container}} error-text\n```text\n{entry['text'].strip()}\n```\n:::",
        SEEN[entry["seen"]],
        f"**Cause.** {entry['cause'].strip()}",
        f"**What to do.** {entry['fix'].strip()}",
    ]
    if "code" in entry:
        parts.append(f"```python\n{entry['code'].strip()}\n```")
    return "\n\n".join([*parts, f"**Source.** {sources}"])


def _shortened(text: str, longest: int = 110) -> str:
    return text if len(text) <= longest else f"{text[:longest].rstrip(' …')} …"


def _code(text: str) -> str:
    """Return text as code in markdown, whatever backticks it has."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def bad_input(groups: list[dict[str, Any]]) -> str:
    """Return the page of bad input: what is given, and what is said of it."""
    count = sum(len(group["cases"]) for group in groups)
    text = [
        "# Bad input",
        f"What you are told when a value is wrong: {count} cases, each given for real by a test "
        "that looks for these words. All is said before a training begins, but for the one that "
        "diverges; nothing is written, and what was there stays as it was. Where a library says it "
        "well itself, its words stand.",
        f"Held to {versions()} by the course's tests. Errors of other kinds are under "
        "[](troubleshooting.md).",
    ]
    for group in groups:
        rows = [f"| {_given(case)} | {_told(case)} |" for case in group["cases"]]
        table = "\n".join(["| given | said |", "|---|---|", *rows])
        text += [f"## {group['title']}", group["text"].strip()]
        text.append(f":::{{container}} given-and-said\n{table}\n:::")
    return "\n\n".join(text) + "\n"


def _given(case: dict[str, Any]) -> str:
    lines = [_cell_code(line) for line in case["given"].strip().splitlines()]
    return "<br>".join([*([f"{case['about']}:"] if "about" in case else []), *lines])


def _told(case: dict[str, Any]) -> str:
    """Return who says what: each part as code, in which no sign is changed."""
    who = case["by"].replace("_", "\\_")
    silent = ", where the libraries say nothing" if case.get("silent") else ""
    said = [_cell_code(case[part]) for part in ("wrong", "allowed", "do") if part in case]
    note = [f"({case['note']})"] if "note" in case else []
    return "<br>".join([f"**{who}**{silent}:", *said, *note])


def _cell_code(text: str) -> str:
    """Return text as code in a cell of a table, where a bar would end the cell."""
    return _code(" ".join(text.split())).replace("|", "\\|")


def changes(data: dict[str, list[dict[str, Any]]]) -> str:
    """Return the page of then and now."""
    text = [
        "# What changed: then and now",
        "Tutorials live longer than names. These tables say what became of what you find in them. "
        "Each row is tried by a test on the installed libraries; the releases are those in which a "
        "name came or went, found by looking into the published packages.",
        f"Today is {versions()}. Errors by their text are under [](troubleshooting.md), and lesson "
        "[06](notebooks/06_training_arguments.ipynb) tries the old names on your machine.",
    ]
    rows = data["arguments"] + data["names"]
    for library in ("transformers", "trl", "peft", "datasets"):
        text.append(f"## {library}")
        places = dict.fromkeys(r["of"] for r in rows if r["of"].split(".")[0] == library)
        for of in places:
            # A library's own names stand right below its heading.
            text += [f"### {_code(_short(of))}"] if of != library else []
            text.append(_table([row for row in rows if row["of"] == of]))
    rows = [
        f"| {_code(_short(row['of']))} | {_code(row['argument'])} | {_code(repr(row['then']))} "
        f"| {_code(repr(row['now']))} | {row['of'].split('.')[0]} {row['since']} "
        f"| {row.get('note', '')} |"
        for row in data["defaults"]
    ]
    head = "| of | argument | then | now | since | |\n|---|---|---|---|---|---|"
    text += [
        "## The same call, another default",
        "These do not fail: the training is another one.",
        "\n".join([head, *rows]),
    ]
    return "\n\n".join(text) + "\n"


def _short(path: str) -> str:
    """Return a class with its method, or a module, without the packages before it."""
    parts = path.split(".")
    named = [part for part in parts if part[0].isupper()]
    return ".".join(parts[parts.index(named[0]) :]) if named else path


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {_code(_written(row['then']))} | {_now(row)} | {row.get('since', '')} | {_gone(row)} |"
        for row in rows
    ]
    return "\n".join(["| then | now | new since | old gone in |", "|---|---|---|---|", *lines])


def _written(what: str | dict[str, Any]) -> str:
    """Return an argument with its value, or a name, as it is written."""
    if isinstance(what, str):
        return what
    (name, value), *_ = what.items()
    return f"{name}={'…' if value in (None, {}, '') else repr(value)}"


def _now(row: dict[str, Any]) -> str:
    named = _written(row["now"]) if "now" in row else ""
    if "now_of" in row:  # it is an argument, or a name, of something else
        of = _short(row["now_of"])
        named = f"{of}({named})" if isinstance(row["now"], dict) else f"{of}.{named}"
    return " ".join(filter(None, (_code(named) if named else "", row.get("note"))))


def _gone(row: dict[str, Any]) -> str:
    return "works, warns" if row.get("today") == "warns" else row["gone"]


def claims(reasons: dict[str, str]) -> str:
    """Return the page of the claims on both models; `reasons` says why one holds on one alone."""
    pocket, real = recorded(POCKET), recorded(REAL)
    failed = [claim for claim in real.values() if not claim.holds]
    text = [
        "# The claims on a real model",
        "Each claim of the lessons is measured where it is made. They were written on the pocket "
        "model, 3.7 million parameters that the course trained itself; SmolLM2-135M-Instruct is a "
        "model that people use. A claim that holds on one of them alone says something of models, "
        "not of methods, and why is what this page is for.",
        f"**{len(real) - len(failed)} of the {len(real)} claims made on both hold on both.** "
        "On SmolLM2 each lesson did the share of its rows and steps that "
        "`COURSE_MODEL=smollm2 make run` chooses by itself.",
        *runs(made_on(REAL)),
        claims_by_lesson(pocket.values(), real.values()),
    ]
    if failed:
        text.append("## What does not hold on SmolLM2")
    for claim in failed:
        text += [
            f"### {claim.text}",
            f"Lesson {claim.lesson}. Pocket model: {pocket[claim.name].figure or 'holds'}. "
            f"SmolLM2: {claim.figure or 'does not hold'}.",
            reasons[claim.name].strip(),
        ]
    return "\n\n".join(text) + "\n"


def runs(made: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence for each seed, device and set of versions: the lessons that ran with it."""
    lessons: dict[str, list[str]] = {}
    for lesson, run in made.items():
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        with_ = f"seed {run['seed']} on {run['device']}; {versions}"
        lessons.setdefault(with_, []).append(lesson)
    return [f"Lessons {', '.join(those)}: {with_}." for with_, those in lessons.items()]


def claims_by_lesson(pocket: Collection[Claim], real: Collection[Claim]) -> str:
    """Return a table in markdown: of each lesson's claims, how many hold on both models."""
    rows = []
    for lesson in sorted({claim.lesson for claim in pocket}):
        made = [claim for claim in real if claim.lesson == lesson]
        both = sum(claim.holds for claim in made)
        rows.append(f"| {lesson} | {len(made)} | {both} |" if made else f"| {lesson} | not run | |")
    return "\n".join(["| lesson | claims | hold on both |", "|---|---|---|", *rows])


def api() -> dict[str, str]:
    """Return a page for each module of the two packages, and their index."""
    pages, tables, names = {}, [], []
    for package in PACKAGES:
        found = [p for p in (ROOT / package).iterdir() if p.suffix == ".py" or p.is_dir()]
        modules = sorted({p.stem for p in found if not p.stem.startswith("_")} - INNER)
        for name in modules:
            module = f"{package}.{name}"
            pages[f"api/{name}.md"] = (
                f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n"
                + ("   :imported-members:\n" if _exports(module) else "")
                + "```\n"
            )
        rows = [f"| [{name}]({name}.md) | {_summary(f'{package}.{name}')} |" for name in modules]
        tables.append("\n".join([f"| `{package}` | |\n|---|---|", *rows]))
        names += modules
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
    pages["api/index.md"] = "\n\n".join(
        [
            "# The helper packages",
            "`course_utils` has what a learner should not have to read; the calls of the libraries "
            "stand in the lessons themselves. `preflight` has what to ask before a GPU is rented. "
            "Each module is imported by its own name: `from course_utils import hardware`. Their "
            "commands, such as `python -m course_utils doctor`, answer for your own models and "
            "data too.",
            *tables,
            toctree,
        ]
    ) + "\n"  # fmt: skip
    return pages


def _source(module: str) -> ast.Module:
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not file.exists():
        file = file.with_suffix("") / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def _summary(name: str) -> str:
    return (ast.get_docstring(_source(name)) or "").partition("\n")[0]


def _exports(name: str) -> bool:
    """Say whether a module lists its names, and so may pass on those of others."""
    return any(
        isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for node in _source(name).body
    )
