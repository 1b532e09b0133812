"""The page of what holds of each of peft's adapter types, written from its record."""

from __future__ import annotations

import json
from typing import Any

from stage import ROOT

RECORD = ROOT / "data" / "results" / "adapter_types.json"
HEADS = ("merged", "off", "batched", "cached", "reloaded")


def adapter_types() -> str:
    """Return the page: a table of all types, and the reasons for what does not hold."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    questions, types = record["questions"], record["types"]
    whole = sum(all(one[head]["holds"] for head in HEADS) for one in types.values())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    asked = [f"- **{head}**: {questions[head]}." for head in HEADS]
    rows = [
        f"| {name} | {' | '.join(_cell(one[head]) for head in HEADS)} | {one.get('course', '')} |"
        for name, one in types.items()
    ]
    text = [
        "# What holds of each adapter type",
        f"All types that peft has, and three kinds of LoRA, on a small {record['model']}. "
        "The trained weights were moved at random until a logit had moved by 1 or more, and then "
        "five questions were asked of the libraries as they are:",
        "\n".join(asked),
        f"**{whole} of the {len(types)} do all five.** A yes is a largest difference of a logit of "
        f"{record['tolerance']:g} or less. A figure in bold is a larger one, which no error "
        "told of; else the error stands there. The last column is how "
        "`course_utils.metrics.generate` asks "
        "such a model, so that each answer is the one that its prompt gets alone; it measures that "
        "on two prompts. (Types that have to be told the row's task it does not ask at all.)",
        f"Measured on {record['date']} with {versions}, by `benchmarks/adapter_types.py`; a test "
        "does a part of it again. Try your own versions before you rely on a yes.",
        "\n".join(
            [f"| type | {' | '.join(HEADS)} | asked |", "|---" * (len(HEADS) + 2) + "|", *rows]
        ),
        "## Why not",
    ]
    for head in HEADS:
        if reasons := _reasons(types, head):
            text += [f"### Not {head}", "\n".join(reasons)]
    return "\n\n".join(text) + "\n"


def _cell(answer: dict[str, Any]) -> str:
    if answer["holds"]:
        return "yes"
    return f"**{answer['difference']:g}**" if "difference" in answer else f"`{answer['error']}`"


def _reasons(types: dict[str, Any], head: str) -> list[str]:
    """Return a line for each reason, with the types that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, one in types.items():
        if not one[head]["holds"]:
            by_reason.setdefault(one[head]["reason"], []).append(name)
    return [f"- {', '.join(names)}: {reason}." for reason, names in by_reason.items()]
