"""LoRA: what the arguments of LoraConfig do to size, memory and a short training.

Used by lessons: 02, 04.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import torch
from IPython.display import HTML
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    set_seed,
)
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from course_utils import data, hardware, plots
from course_utils.configs import build_empty, load_config
from course_utils.display import CallResult, code_html
from course_utils.memory import StepMemory
from course_utils.models import base_model
from course_utils.setting_checks import require_none, setting_problems
from course_utils.widgets import Explorer, control, image, now_and_before
from preflight.lora_targets import check_targets, discover, suggest
from preflight.memory_plan import predict

Model = PreTrainedModel | PretrainedConfig | str | Path
BIASES = ("none", "all", "lora_only")
BY_NAME = "by name"
CURVES = 6  # as many as the palette has colours


@dataclass(frozen=True)
class LoraSummary(CallResult):
    """What a LoraConfig makes of a model.

    `arguments` are those of LoraConfig; `layers` counts the layers with an adapter, `trainable` all
    parameters that are trained, biases among them, and `parameters` those of the model without it.
    """

    function = "LoraConfig"
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
    The parameters are those of peft's own adapter, made without numbers.

    Raises:
        ValueError: if an argument is out of its range, or a target matches nothing.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    if bias not in BIASES:
        raise ValueError(f"bias={bias!r} was given. Allowed: {', '.join(BIASES)}. Choose one.")
    arguments = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "bias": bias}
    require_none(setting_problems(config=LoraConfig(**arguments)))
    empty = _empty(model)
    if isinstance(targets, str) and targets != "all-linear":
        suggestion = suggest(empty, targets, r=r)
        chosen, layers = dict(suggestion), suggestion.layers
    else:
        check = check_targets(empty, targets, r=r)
        if not check.ok:
            raise ValueError(f"targets={targets!r} was given. {check}")
        names = targets if isinstance(targets, str) else list(targets)
        chosen, layers = {"target_modules": names}, check.layers
    arguments |= chosen | {"task_type": "CAUSAL_LM"}
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft corrects by itself
        adapted = get_peft_model(empty, LoraConfig(**arguments), low_cpu_mem_usage=True)
    trainable, _ = adapted.get_nb_trainable_parameters()
    return LoraSummary(empty.config.model_type, arguments, layers, trainable, parameters)


def _empty(model: Model) -> PreTrainedModel:
    """Return a copy of a model, or the model of a config, on the meta device: without numbers."""
    if not isinstance(model, PreTrainedModel):
        return build_empty(load_config(model))
    with torch.device("meta"):
        return type(model)(model.config)


def lora_training(config: LoraConfig, steps: int = 20, learning_rate: float = 2e-3) -> pd.Series:
    """Return the loss at each step of a short training on the tickets, in nats per token.

    The model is the lessons' base model; data, order and starting values are the same each time.

    Raises:
        ValueError: as peft does, if the config does not fit the model.
    """
    base, rows = base_model(), data.load("tickets", "train")
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), _no_bars():
        set_seed(0)
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                base.path, dtype=torch.float32, trust_remote_code=False
            ),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=8,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                max_length=320,
                logging_steps=1,
                save_strategy="no",
                bf16=on_gpu and hardware.detect().bf16,
                use_cpu=not on_gpu,
                activation_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=rows.select(range(min(len(rows), 8 * steps))),
            processing_class=AutoTokenizer.from_pretrained(base.path, trust_remote_code=False),
            peft_config=config,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    return pd.Series(logged, dtype=float, name="loss")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switch the libraries' progress bars off: they would land under whichever cell ran last."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with data.no_progress_bars():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def lora_explorer(model: Model, steps: int = 20, **options: Any) -> Explorer:
    """Return controls for LoraConfig's arguments, with what they do to a model, as a widget.

    It shows what `lora_summary` returns, the memory of a training step by `memory_plan.predict`
    (which takes the `options`) and, at the press of a button, what `lora_training` does in so many
    steps; that is its `training`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `configs.load_config` and `discover`.
    """
    empty = _empty(model)
    quantized = getattr(empty.config, "quantization_config", None)
    if isinstance(quantized, BitsAndBytesConfig):
        options.setdefault("quantization_config", quantized)
    memories: dict[str, StepMemory] = {}
    recent: deque[StepMemory] = deque(maxlen=2)
    curves: dict[str, pd.Series] = {}

    def show(**settings: Any) -> HTML:
        controls["names"].disabled = settings["targets"] != BY_NAME
        summary = lora_summary(model, **_arguments(settings))
        key = repr({**summary.arguments, "lora_alpha": None})  # a factor, which changes no size
        if key not in memories:
            memories[key] = predict(empty.config, "peft", peft_config=summary.config, **options)
        shown = now_and_before(recent, memories[key])
        picture = image(plots.memory_bars(shown), plots.summarise_memory(shown))
        return HTML(summary.table() + picture + code_html(summary.code))

    def train(**settings: Any) -> HTML:
        arguments = _arguments(settings)
        config = lora_summary(base_model().path, **arguments).config
        curves[_label(arguments)] = lora_training(config, steps)
        shown = dict(list(curves.items())[-CURVES:])
        figure = plots.loss_curves(shown, f"Training loss of {base_model().name}")
        words = " ".join(f"{name}: {plots.summarise(curve)}" for name, curve in shown.items())
        return HTML(image(figure, words))

    controls = _controls(empty)
    explorer = Explorer("LoRA explorer", show, controls)
    button = f"Train {steps} steps of {base_model().name}"
    training = explorer.training = Explorer("LoRA training", train, controls, button)
    training.manual_button.layout.width = "340px"
    row = ipywidgets.HBox([training.manual_button, training.status])
    explorer.children = (*explorer.children, row, training.out)
    return explorer


def _controls(model: PreTrainedModel) -> dict[str, ipywidgets.Widget]:
    """Return controls for the arguments of LoraConfig; targets are those that the model has."""
    blocks = [t for t in discover(model) if t.in_blocks and not t.refused]
    kinds = list(dict.fromkeys(t.kind for t in blocks))
    names = [t.name for t in blocks if not t.as_parameter and "*" not in t.name]
    slider, share, menu = ipywidgets.SelectionSlider, ipywidgets.FloatSlider, ipywidgets.Dropdown
    several = ipywidgets.SelectMultiple
    return {
        "r": control(slider, "rank r", value=8, options=[2**n for n in range(9)]),
        "lora_alpha": control(slider, "alpha", value=16, options=[2**n for n in range(10)]),
        "lora_dropout": control(share, "dropout", max=0.5, step=0.05),
        "bias": control(menu, "bias", options=BIASES),
        "targets": control(menu, "targets", options=["all-linear", *kinds, BY_NAME]),
        "names": control(several, "names", value=names[:1], options=names, rows=4),
    }


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the controls' values as arguments of `lora_summary`."""
    arguments = dict(settings)
    names = list(arguments.pop("names"))
    return arguments | ({"targets": names} if settings["targets"] == BY_NAME else {})


def _label(arguments: Mapping[str, Any]) -> str:
    """Return what a curve is called: the settings, those at their default left out."""
    targets = arguments["targets"]
    parts = [f"r={arguments['r']}", f"alpha={arguments['lora_alpha']}"]
    parts += [f"dropout={arguments['lora_dropout']:g}"] if arguments["lora_dropout"] else []
    parts += [f"bias={arguments['bias']}"] if arguments["bias"] != "none" else []
    return ", ".join([*parts, targets if isinstance(targets, str) else "+".join(targets)])
