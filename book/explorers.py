"""What an explorer shows before anything is moved, as HTML that needs no kernel."""

from __future__ import annotations

import ast
import contextlib
import io
from html import escape
from typing import Any

import ipywidgets
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from course_utils import models, widgets
from course_utils.widgets import Explorer
from preflight import explorers

MODULES = {"widgets": widgets, "explorers": explorers}
NOTE = (
    "A page has no kernel, so this is what the explorer shows at first. Open the lesson in "
    "JupyterLab, Colab or Binder to move its controls."
)


def still(call: str) -> str:
    """Return what the explorer of a cell shows at first, as HTML.

    `call` is the cell's own text, such as `widgets.schedule_explorer()`. Where it needs something
    that only a running lesson has, a sentence says so.
    """
    tree = ast.parse(call, mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if not names <= {*MODULES, *NAMES}:
        return _framed(f"<p>{escape(NOTE)}</p>")
    scope = MODULES | {name: NAMES[name]() for name in names & {*NAMES}}
    with contextlib.redirect_stdout(io.StringIO()):  # without a kernel, what is shown is printed
        explorer = eval(compile(tree, "<lesson>", "eval"), scope)
    return shown(explorer)


def shown(explorer: Explorer) -> str:
    """Return an explorer's controls and what it shows as HTML.

    Raises:
        RuntimeError: if the explorer shows an error instead.
    """
    html = explorer.result.data if explorer.result else ""
    if "<img" not in html:
        raise RuntimeError(
            f"The {explorer.title} shows {html!r} and no picture. A page needs one: run its cell "
            "in JupyterLab to see why."
        )
    rows = "".join(
        f"<tr><th>{escape(control.description)}</th><td>{escape(_value(control))}</td></tr>"
        for control in explorer.controls.values()
        if not control.disabled
    )
    return _framed(
        f"<p>{escape(NOTE)}</p><table><thead><tr><th>control</th><th>set to</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{html}"
    )


def _framed(html: str) -> str:
    return f'<div class="explorer">{html}</div>'


def _value(control: ipywidgets.Widget) -> str:
    value = control.value
    return f"{value:g}" if isinstance(value, float) else str(value)


def _samples() -> dict[str, torch.Tensor]:
    """Return the samples of lesson 03: random numbers, and the weights in the model's blocks."""
    base = models.base_model()
    logging.disable_progress_bar()
    weights = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).state_dict()
    blocks = [w.flatten() for n, w in weights.items() if ".layers." in n and w.dim() == 2]
    seeded = torch.Generator().manual_seed(0)
    return {
        "random normal": torch.randn(1024, 512, generator=seeded),
        base.name: torch.cat(blocks),
    }


# What the lessons hand to explorers besides plain values.
NAMES: dict[str, Any] = {"base": models.base_model, "samples": _samples}
