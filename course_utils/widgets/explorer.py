"""What the explorers share: controls above, numbers and a picture below, and when to draw them."""

from __future__ import annotations

import asyncio
import base64
import io
import traceback
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

import ipywidgets
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Changes that follow each other within this time, in seconds, are drawn once.
PAUSE = 0.02
FADED = '<div style="opacity:0.3">'
FAILURES = (ValueError, RuntimeError, FileNotFoundError)  # the course's own words explain these


# The explorers that a cell made when it was last run, with the number of that run.
_made: dict[str, tuple[str, list[Explorer]]] = {}


class Explorer(ipywidgets.VBox):
    """Controls, and what a function makes of their values; `show` is that of a subclass.

    A change is not drawn at once but when the kernel is free and no other follows: of the changes
    that came while something was computed, only the last is. All work is done in the thread that
    made the explorer, since newer kernels hand a widget's messages to a thread of their own, where
    it would run beside the reader's cells.

    When a cell is run again, the explorers of its earlier run are closed: ipywidgets would keep
    them, with all their parts, until the kernel ends.
    """

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], *more: ipywidgets.Widget) -> None:
        self.controls = dict(controls)
        self.status, self.numbers, self.picture, self.source = (ipywidgets.HTML() for _ in range(4))
        self.status.layout.min_height = "30px"  # else all below jumps when a line comes and goes
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel: a script or a test
            self._loop = None
        flow = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start")
        box = ipywidgets.Box([*self.controls.values(), *more], layout=flow)
        super().__init__([box, self.status, self.numbers, self.picture, self.source])
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self._guarded(self._draw)
        _replace(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings})"

    def close(self) -> None:
        """Let go of the explorer and of all its parts, on the page and in the kernel."""
        for timer in getattr(self, "_timers", {}).values():
            timer.cancel()
        for part in _parts(self):
            part.unobserve_all()
            part.close()
        super().close()

    @property
    def settings(self) -> dict[str, Any]:
        """The values of the controls."""
        return {name: control.value for name, control in self.controls.items()}

    def show(self, settings: Mapping[str, Any]) -> None:
        """Show what the settings give, by `tell` and `draw`."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Show a line of text above the numbers, such as what is being computed."""
        self.status.value = f"<b>{escape(text)}</b>" if text else ""

    def tell(self, html: str, text: str = "") -> None:
        """Show the numbers and, below the picture, the call that a reader would write."""
        self.numbers.value = _tight(html)
        self.source.value = code(text) if text else ""

    def draw(self, figure: Figure, words: str) -> None:
        """Show a figure, with its summary below it."""
        self.picture.value = image(figure, words)

    def fade(self, *parts: ipywidgets.HTML) -> None:
        """Show that parts are those of an earlier setting."""
        for part in parts:
            if part.value and not part.value.startswith(FADED):
                part.value = f"{FADED}{part.value}</div>"

    def later(self, work: Callable[[], None]) -> None:
        """Do some work once the kernel is free and the controls rest, once for all that asked.

        If it fails, the error is shown where the reader looks.
        """
        if self._loop is None:
            self._guarded(work)
        else:
            self._loop.call_soon_threadsafe(self._wait, work)

    def _wait(self, work: Callable[[], None]) -> None:
        if work in self._timers:
            self._timers[work].cancel()
        self._timers[work] = self._loop.call_later(PAUSE, self._guarded, work)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            name = type(error).__name__
            shown = f'<p style="color:#b00020"><b>{name}</b>: {escape(str(error))}</p>'
            if not isinstance(error, FAILURES):
                lines = escape(traceback.format_exc())
                shown += f"<details><summary>Traceback</summary><pre>{lines}</pre></details>"
            self.status.value = _tight(shown)

    def _changed(self, change: object) -> None:
        self.later(self._draw)

    def _draw(self) -> None:
        try:
            self.show(self.settings)
        except Exception:
            self.fade(self.numbers, self.picture, self.source)
            raise
        self.say("")
        for part in (self.numbers, self.picture, self.source):
            if part.value.startswith(FADED):
                part.value = part.value.removeprefix(FADED).removesuffix("</div>")


def _replace(explorer: Explorer) -> None:
    """Note which cell an explorer is of, and close those of the cell's earlier run."""
    shell = get_ipython()
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = request.get("metadata", {}).get("cellId")  # JupyterLab and VS Code say it
    if cell is None:
        return
    run = request["header"]["msg_id"]
    before, explorers = _made.get(cell, (run, []))
    if before != run:
        for one in explorers:
            one.close()
        explorers = []
    _made[cell] = (run, [*explorers, explorer])


def _parts(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """Yield the widgets that a widget consists of: children, layouts and styles."""
    for value in widget.trait_values().values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ipywidgets.Widget):
                yield from _parts(part)
                yield part


def control(
    kind: type[ipywidgets.Widget], label: str, value: Any, options: Any = None, **more: Any
) -> ipywidgets.Widget:
    """Return a control with a label that has room; a slider reports when it is released."""
    if options is not None:
        more["options"] = options
    if "Slider" in kind.__name__:
        more.setdefault("continuous_update", False)
    more.setdefault("layout", ipywidgets.Layout(width="340px"))
    style = {"description_width": "120px"}
    made = kind(value=value, description=label, style=style, **more)
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
    picture = f'<img alt="{title}" src="{source}" style="max-width:100%">'
    return _tight(f"{picture}<p>{escape(words)}</p>")


def code(text: str) -> str:
    """Return code as HTML to copy."""
    return f'<pre tabindex="0" style="padding:6px;border:1px solid #999">{escape(text)}</pre>'


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the Python text of a call, an argument a line."""
    lines = "".join(f"    {key}={_literal(value)},\n" for key, value in arguments.items())
    return f"{name}(\n{lines})"


def before_and_now(now: Any, before: Any) -> dict[str, Any]:
    """Return what is drawn: the present state and, if there was another, the one before."""
    return {"now": now} | ({} if before is None or before is now else {"before": before})


def _literal(value: Any) -> str:
    """Return a value as Python text, with double quotes where it has none inside."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def _tight(html: str) -> str:
    """Return HTML without the wide lines that a widget gives it."""
    return f'<div style="line-height:1.5">{html}</div>'
