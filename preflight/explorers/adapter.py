"""How large an adapter the arguments of LoraConfig make, counted without making it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PretrainedConfig

from course_utils.configs import build_empty, load_config
from course_utils.display import html_table, text_table
from course_utils.widgets.explorer import call, code
from preflight.lora_targets import check_targets, discover, suggest
from preflight.lora_targets.adapters import make_adapters

Model = nn.Module | PretrainedConfig | str | Path
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraSummary:
    """What a LoraConfig makes of a model.

    `arguments` are those of LoraConfig; `layers` counts the layers with an adapter, `trainable` all
    parameters that are trained, biases among them, and `parameters` those of the model without it.
    """

    model: str
    arguments: Mapping[str, Any]
    layers: int
    trainable: int
    parameters: int

    @property
    def config(self) -> LoraConfig:
        """The LoraConfig, made anew each time: peft changes the one that it is given."""
        return LoraConfig(**self.arguments)

    @property
    def code(self) -> str:
        """The same as Python text."""
        return call("LoraConfig", self.arguments)

    @property
    def adapter_bytes(self) -> int:
        """The size of the adapter's numbers in bytes, in float32 as peft makes them."""
        return 4 * self.trainable

    @property
    def scaling(self) -> float:
        """What the adapter's product is multiplied by: alpha / r."""
        return self.arguments["lora_alpha"] / self.arguments["r"]

    def rows(self) -> list[tuple[str, str]]:
        """Return ``(what, value)`` for a table."""
        share = self.trainable / self.parameters
        return [
            ("model", f"{self.model}, {self.parameters:,} parameters"),
            ("layers with an adapter", f"{self.layers}"),
            ("trainable parameters", f"{self.trainable:,} ({share:.2%} of the model's)"),
            ("adapter in float32", f"{self.adapter_bytes / 1e6:,.2f} MB"),
            ("alpha / r", f"{self.scaling:g}"),
        ]

    def __str__(self) -> str:
        return f"{text_table(self.rows(), ('', 'value'))}\n\n{self.code}"

    def _repr_html_(self) -> str:
        return self.table() + code(self.code)

    def table(self) -> str:
        """Return the numbers as an HTML table, without the code."""
        return html_table(self.rows(), ("", "value"))


def lora_summary(
    model: Model,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    bias: str = "none",
    targets: Sequence[str] | str = "all-linear",
) -> LoraSummary:
    """Return what these arguments of LoraConfig make of a model, which stays as it is.

    `model` is a model, a config, or what `configs.load_config` takes. `targets` are names of
    modules, "all-linear", or kinds of layers as `lora_targets.suggest` takes them ("attention").

    Raises:
        ValueError: if an argument is out of its range, or a target matches nothing.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    if bias not in BIASES or not 0 <= lora_dropout < 1 or lora_alpha <= 0:
        raise ValueError(
            f"bias={bias!r}, lora_dropout={lora_dropout!r}, lora_alpha={lora_alpha!r} were given. "
            f"bias is one of {', '.join(BIASES)}, the dropout at least 0 and below 1, alpha above "
            "0. Correct the one that is not."
        )
    model = model if isinstance(model, nn.Module) else build_empty(load_config(model))
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    table = discover(model, r=r)
    if targets == "all-linear":
        chosen = {"target_modules": targets}
    elif isinstance(targets, str):
        chosen = dict(suggest(model, targets, r=r))
    else:
        check = check_targets(model, targets, r=r)
        if not check.ok:
            raise ValueError(f"Targets {list(targets)} were given. {check}")
        chosen = {"target_modules": list(targets)}
    adapters = make_adapters(model, **chosen, r=r)
    if adapters.error:
        raise ValueError(f"targets={targets!r} was given, but peft raises: {adapters.error}.")
    arguments = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "bias": bias}
    return LoraSummary(
        model=kind,
        arguments=arguments | chosen | {"task_type": "CAUSAL_LM"},
        layers=sum(layer in adapters for target in table for layer in target.layers),
        trainable=adapters.parameters + _biases(model, bias, adapters.modules),
        parameters=table.parameters,
    )


def _biases(model: nn.Module, bias: str, adapted: frozenset[str]) -> int:
    """Return how many numbers of biases are trained, by peft's rules."""
    if bias == "all":
        return sum(p.numel() for name, p in model.named_parameters() if "bias" in name)
    if bias == "lora_only":
        own = (getattr(model.get_submodule(name), "bias", None) for name in adapted)
        return sum(one.numel() for one in own if one is not None)
    return 0
