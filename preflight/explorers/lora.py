"""The LoRA explorer: what the arguments of LoraConfig do to size, memory and a training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets
import pandas as pd
import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from course_utils import data, hardware, plots
from course_utils.configs import build_empty, load_config
from course_utils.memory import StepMemory
from course_utils.models import base_model
from course_utils.widgets.explorer import Explorer, before_and_now, control, image
from preflight.explorers.adapter import BIASES, Model, lora_summary
from preflight.lora_targets import discover
from preflight.memory_plan import predict

BY_NAME = "by name"
CURVES = 6  # as many as the palette has colours


def lora_training(
    config: LoraConfig,
    steps: int = 20,
    learning_rate: float = 2e-3,
    on_step: Callable[[int], None] | None = None,
) -> pd.Series:
    """Return the loss at each step of a short training on the tickets, in nats per token.

    The model is the lessons' base model; data, order and starting values are the same each time.
    `on_step` is called with the number of each step that is done.

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
            callbacks=[_Steps(on_step)] if on_step else None,
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


class _Steps(TrainerCallback):
    """Tells of each step that is done."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step)


class LoraExplorer(Explorer):
    """The LoRA explorer; `memories` and `curves` keep what was computed, by setting."""

    def __init__(self, model: Model, steps: int, options: Mapping[str, Any]) -> None:
        given = isinstance(model, nn.Module)
        self.model = model if given else build_empty(load_config(model))
        self.steps, self.options = steps, dict(options)
        quantized = getattr(self.model.config, "quantization_config", None)
        if isinstance(quantized, BitsAndBytesConfig):
            self.options.setdefault("quantization_config", quantized)
        self.memories: dict[object, StepMemory] = {}
        self.curves: dict[str, pd.Series] = {}
        self.now: StepMemory | None = None
        table = discover(self.model)
        blocks = [t for t in table if t.in_blocks and not t.refused]
        kinds = list(dict.fromkeys(t.kind for t in blocks))
        names = [t.name for t in blocks if not t.as_parameter and "*" not in t.name]
        slider, menu = ipywidgets.SelectionSlider, ipywidgets.Dropdown
        controls = {
            "r": control(slider, "rank r", 8, [2**n for n in range(9)]),
            "lora_alpha": control(slider, "alpha", 16, [2**n for n in range(10)]),
            "lora_dropout": control(
                ipywidgets.FloatSlider, "dropout", 0.0, min=0, max=0.5, step=0.05
            ),
            "bias": control(menu, "bias", "none", BIASES),
            "targets": control(menu, "targets", "all-linear", ["all-linear", *kinds, BY_NAME]),
            "names": control(
                ipywidgets.SelectMultiple, "names", names[:1], names, disabled=True, rows=4
            ),
        }
        where = base_model().name
        self.button = ipywidgets.Button(
            description=f"Train {steps} steps of {where}",
            tooltip=f"A real training on the tickets with these settings ({where})",
            layout=ipywidgets.Layout(width="340px"),
        )
        self.button.on_click(self._clicked)
        self.progress = control(ipywidgets.IntProgress, "steps done", 0, min=0, max=steps)
        self.losses = ipywidgets.HTML()
        super().__init__(controls, self.button, self.progress)
        self.children = (*self.children, self.losses)

    def show(self, settings: Mapping[str, Any]) -> None:
        self.controls["names"].disabled = settings["targets"] != BY_NAME
        summary = lora_summary(self.model, **_arguments(settings))
        self.tell(summary.table(), summary.code)
        # Alpha is a factor: it changes no size.
        key = repr({**summary.arguments, "lora_alpha": None})
        if key not in self.memories:
            self.say("simulating a training step ...")
            self.fade(self.picture)
            self.memories[key] = predict(
                self.model.config, "peft", peft_config=summary.config, **self.options
            )
        before, self.now = self.now, self.memories[key]
        if before is not self.now:
            bars = before_and_now(self.now, before)
            self.draw(plots.memory_bars(bars), plots.summarise_memory(bars))

    def _clicked(self, button: object) -> None:
        self.button.disabled = True
        self.later(self._train)

    def _train(self) -> None:
        try:
            arguments = _arguments(self.settings)
            self.say("training ...")
            summary = lora_summary(base_model().path, **arguments)
            self.curves[_label(arguments)] = lora_training(
                summary.config,
                self.steps,
                on_step=lambda step: setattr(self.progress, "value", step),
            )
            shown = dict(list(self.curves.items())[-CURVES:])
            figure = plots.loss_curves(shown, f"Training loss of {base_model().name}")
            words = " ".join(f"{name}: {plots.summarise(c)}" for name, c in shown.items())
            self.losses.value = image(figure, words)
            self.say("")
        finally:
            self.progress.value, self.button.disabled = 0, False


def lora_explorer(model: Model, steps: int = 20, **options: Any) -> LoraExplorer:
    """Return controls for LoraConfig's arguments, with what they do to a model, as a widget.

    It shows what `lora_summary` returns, the memory of a training step by `memory.predict` (which
    takes the `options`) and, at the press of a button, what `lora_training` does in so many steps.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `configs.load_config` and `discover`.
    """
    return LoraExplorer(model, steps, options)


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
