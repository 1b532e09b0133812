"""What each setting of a quantization costs in errors and saves in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
import torch

from course_utils import plots
from course_utils.quantization import KINDS, QuantizationReport, explore
from course_utils.widgets.explorer import Explorer, call, control

BITS = {"nf4": 4, "fp4": 4, "int4": 4, "int8": 8}
QUICK = 2**20  # so many weights take no time worth a message
BLOCK = 64  # the block of bitsandbytes' 4-bit layers, which BitsAndBytesConfig cannot change


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
        return f"{note}\n{call('BitsAndBytesConfig', {'load_in_8bit': True})}"
    text = call(
        "BitsAndBytesConfig",
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double_quant,
        },
    )
    return text if block_size == BLOCK else f"# Its blocks are always of {BLOCK} weights.\n{text}"


class QuantizationExplorer(Explorer):
    """The quantization explorer; `reports` keeps what was computed, by setting."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weights = dict(weights)
        self.reports: dict[tuple[Any, ...], QuantizationReport] = {}
        self.now: QuantizationReport | None = None
        self.sample: str | None = None  # what `now` is of
        kinds = [(f"{kind} ({BITS[kind]} bits)", kind) for kind in KINDS]
        menu, sizes = ipywidgets.Dropdown, [2**n for n in range(4, 13)]
        controls = {
            "sample": control(menu, "weights", next(iter(weights)), list(weights)),
            "kind": control(menu, "type", "nf4", kinds),
            "block_size": control(ipywidgets.SelectionSlider, "block size", BLOCK, sizes),
            "double_quant": control(ipywidgets.Checkbox, "double quantization", False),
        }
        super().__init__(controls)

    def show(self, settings: Mapping[str, Any]) -> None:
        key = tuple(settings.values())
        sample, *how = key
        if key not in self.reports:
            if self.weights[sample].numel() > QUICK:
                self.say("computing ...")
                self.fade(self.numbers, self.picture)
            self.reports[key] = explore(self.weights[sample], *how)
        # Errors of other weights are on another scale, so those are not drawn beside.
        before = self.now if sample == self.sample else None
        self.now, self.sample = self.reports[key], sample
        text = quantization_code(*how)
        self.tell(self.now._repr_html_(), text)
        if before is not self.now:
            shown = [self.now, before] if before else [self.now]
            figure = plots.quantization_errors(shown, f"Rounding errors: {sample}")
            self.draw(figure, plots.summarise_errors(shown))


def quantization_explorer(
    weights: torch.Tensor | Mapping[str, torch.Tensor],
) -> QuantizationExplorer:
    """Return controls for a quantization, with its errors and bytes, as a widget.

    It shows what `quantization.explore` returns, for one tensor or one of several by name; one of
    a million weights takes a fraction of a second.

    Raises:
        ValueError: if there are no weights.
    """
    named = weights if isinstance(weights, Mapping) else {"weights": weights}
    if not named or not all(map(_is_weight, named.values())):
        raise ValueError(
            f"{weights!r} was given as weights. Allowed are a floating-point tensor that is not "
            "empty, or several by name. Pass, for example, "
            'model.get_submodule("model.layers.0.mlp.up_proj").weight.'
        )
    return QuantizationExplorer(named)


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
