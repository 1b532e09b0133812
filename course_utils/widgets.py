"""Explorers: controls over functions that a cell can call without them.

`quantization_explorer` is over `quantization.explore`, `schedule_explorer` over `schedule_summary`.

Used by lessons: 02, 03, 04, 06.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import threading
from collections import deque
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets
import torch
from IPython.display import HTML
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from course_utils import plots
from course_utils.display import call_text, code_html
from course_utils.quantization import BITS, KINDS, QuantizationReport, explore
from course_utils.schedules import OWN, SCHEDULES, own_arguments, schedule_summary

FAILURES = (ValueError, RuntimeError, FileNotFoundError)  # the course's own words explain these
BLOCK = 64  # the block of bitsandbytes' 4-bit layers, which BitsAndBytesConfig cannot change


class Explorer(ipywidgets.interactive):
    """Controls, and below them the HTML that a function makes of their values.

    It is `ipywidgets.interactive` with a line that says that something is computed, and with the
    course's errors as text. `result` is what it shows. With the text of a `button`, that button
    calls the function, else each change of a control.

    The function runs in the thread that made the explorer: newer kernels hand a widget's messages
    to a thread of their own, where a simulation would change libraries under the reader's cells.
    """

    def __init__(
        self,
        title: str,
        function: Callable[..., HTML],
        controls: Mapping[str, ipywidgets.Widget],
        button: str = "",
    ) -> None:
        self.title, self.function, self.controls = title, function, dict(controls)
        self.status = ipywidgets.Label(layout=ipywidgets.Layout(min_height="30px"))
        self._thread = threading.get_ident()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel: a script or a test
            self._loop = None
        options = {"auto_display": True, "manual": bool(button), "manual_name": button}
        super().__init__(self._shown, options, **controls)
        flow = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start")
        row = ipywidgets.Box(self.kwargs_widgets, layout=flow)
        self.children = (row, self.status, self.out)

    def __repr__(self) -> str:
        return f"{self.title}: run its cell to move the controls"

    def _shown(self, **settings: Any) -> HTML:
        self.status.value = "computing ..."
        try:
            return self._in_own_thread(settings)
        except FAILURES as error:
            name = type(error).__name__
            return HTML(f'<p style="color:#b00020"><b>{name}</b>: {escape(str(error))}</p>')
        finally:
            self.status.value = ""

    def _in_own_thread(self, settings: Mapping[str, Any]) -> HTML:
        if self._loop is None or threading.get_ident() == self._thread:
            return self.function(**settings)

        async def call() -> HTML:
            return self.function(**settings)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()


def control(kind: type[ipywidgets.Widget], label: str, **arguments: Any) -> ipywidgets.Widget:
    """Return a control with a label that has room; a slider reports when it is released."""
    if "Slider" in kind.__name__:
        arguments["continuous_update"] = False
    layout, style = ipywidgets.Layout(width="340px"), {"description_width": "120px"}
    made = kind(description=label, style=style, layout=layout, **arguments)
    if made.has_trait("tooltip"):  # not before ipywidgets 8, which shows "null" where there is none
        made.tooltip = label
    return made


def image(figure: Figure, words: str) -> str:
    """Return a figure as HTML with its summary below it."""
    buffer = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(buffer)  # savefig draws twice to find the layout
    data = base64.b64encode(buffer.getvalue()).decode()
    title = escape(figure.axes[0].get_title(), quote=True)
    source = f"data:image/png;base64,{data}"
    return f'<img alt="{title}" src="{source}" style="max-width:100%"><p>{escape(words)}</p>'


def now_and_before(recent: deque[Any], now: Any) -> dict[str, Any]:
    """Return what is drawn, and note it: the present state and, if there was one, that before.

    `recent` is a deque that holds two.
    """
    if not recent or recent[-1] is not now:
        recent.append(now)
    return dict(zip(("now", "before"), reversed(recent), strict=False))


def quantization_code(kind: str, block_size: int = BLOCK, double_quant: bool = False) -> str:
    """Return the BitsAndBytesConfig that comes nearest to a quantization, as Python text.

    What bitsandbytes does differently stands in comments.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} was given. Allowed: {', '.join(KINDS)}. Choose one.")
    if kind == "int4":
        return "# bitsandbytes has no int4: its types of 4 bits are nf4 and fp4."
    if kind == "int8":
        note = "# Its scales are one for each row, not for each block."
        return f"{note}\n{call_text('BitsAndBytesConfig', {'load_in_8bit': True})}"
    arguments = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double_quant,
    }
    text = call_text("BitsAndBytesConfig", arguments)
    return text if block_size == BLOCK else f"# Its blocks are always of {BLOCK} weights.\n{text}"


def quantization_explorer(weights: torch.Tensor | Mapping[str, torch.Tensor]) -> Explorer:
    """Return controls for a quantization, with its errors and bytes, as a widget.

    It shows what `quantization.explore` returns, for one tensor or one of several by name; one of
    a million weights takes a fraction of a second.

    Raises:
        ValueError: if there are no weights.
    """
    named = dict(weights) if isinstance(weights, Mapping) else {"weights": weights}
    if not named or not all(map(_is_weight, named.values())):
        raise ValueError(
            f"{weights!r} was given as weights. Allowed are a floating-point tensor that is not "
            "empty, or several by name. Pass, for example, "
            'model.get_submodule("model.layers.0.mlp.up_proj").weight.'
        )
    recent: dict[str, deque[QuantizationReport]] = {name: deque(maxlen=2) for name in named}

    @functools.cache
    def report(sample: str, kind: str, block_size: int, double_quant: bool) -> QuantizationReport:
        return explore(named[sample], kind, block_size, double_quant)

    def show(sample: str, **how: Any) -> HTML:
        now = report(sample, **how)
        # Errors of other weights are on another scale.
        shown = list(now_and_before(recent[sample], now).values())
        figure = plots.quantization_errors(shown, f"Rounding errors: {sample}")
        picture = image(figure, plots.summarise_errors(shown))
        return HTML(now._repr_html_() + picture + code_html(quantization_code(**how)))

    menu, slider = ipywidgets.Dropdown, ipywidgets.SelectionSlider
    kinds = [(f"{kind} ({BITS[kind]} bits)", kind) for kind in KINDS]
    sizes = [2**n for n in range(4, 13)]
    controls = {
        "sample": control(menu, "weights", options=list(named)),
        "kind": control(menu, "type", value="nf4", options=kinds),
        "block_size": control(slider, "block size", value=BLOCK, options=sizes),
        "double_quant": control(ipywidgets.Checkbox, "double quantization"),
    }
    return Explorer("Quantization explorer", show, controls)


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0


def schedule_explorer(learning_rate: float = 2e-4, max_steps: int = 100) -> Explorer:
    """Return controls for a schedule, with its curve and the arguments to copy, as a widget.

    It shows what `schedule_summary` returns for the controls' values, and the setting before it.

    Raises:
        ValueError: as `schedule_summary`.
    """
    schedule_summary("cosine", learning_rate, max_steps)
    recent = deque(maxlen=2)

    def show(
        lr_scheduler_type: str,
        learning_rate: float,
        max_steps: int,
        warmup_steps: float,
        **further: float,
    ) -> HTML:
        for name in further:
            controls[name].disabled = name not in OWN.get(lr_scheduler_type, {}).values()
        now = schedule_summary(
            lr_scheduler_type,
            learning_rate,
            max_steps,
            warmup_steps,
            own_arguments(lr_scheduler_type, learning_rate, max_steps, **further),
        )
        shown = now_and_before(recent, now)
        curves = {f"{when}: {one.name}": one.rates for when, one in shown.items()}
        figure = plots.loss_curves(curves, "Learning rate", ylabel="learning rate")
        words = " ".join(f"{when}: {one.summary()}" for when, one in shown.items())
        return HTML(now.table() + image(figure, words) + code_html(now.code))

    menu, slider = ipywidgets.Dropdown, ipywidgets.SelectionSlider
    share, count = ipywidgets.FloatSlider, ipywidgets.IntSlider
    peaks = sorted({1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, learning_rate})
    steps = {"min": min(10, max_steps), "max": max(500, max_steps), "step": 10}
    controls = {
        "lr_scheduler_type": control(menu, "schedule", value="cosine", options=SCHEDULES),
        "learning_rate": control(slider, "learning rate", value=learning_rate, options=peaks),
        "max_steps": control(count, "steps", value=max_steps, **steps),
        "warmup_steps": control(share, "warm-up (share)", value=0.1, max=0.5, step=0.01),
        "lowest": control(share, "lowest (share)", value=0.1, max=0.9, step=0.05),
        "cycles": control(count, "cycles", value=3, min=1, max=6),
        "decay": control(share, "decay (share)", value=0.2, min=0.05, max=0.5, step=0.05),
    }
    return Explorer("Schedule explorer", show, controls)
