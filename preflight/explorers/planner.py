"""What a training takes, and on which GPU it fits."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from course_utils import configs, plots
from course_utils.memory.step_memory import size_text
from course_utils.widgets.explorer import Explorer, before_and_now, call, control
from preflight.memory_plan import GPU, GPUS, OPTIMIZERS, GPUFitTable, find_gpu, fit_gpus

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
# Method -> the arguments of LoraConfig and of BitsAndBytesConfig.
CONFIGS: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "full": (None, None),
    "lora": (LORA, None),
    "qlora": (LORA, NF4),
    "int8": (LORA, {"load_in_8bit": True}),
}


def plan_code(
    method: str,
    *,
    batch_size: int = 1,
    length: int = 1024,
    gradient_checkpointing: bool = True,
    optimizer: str = "adamw_torch_fused",
) -> str:
    """Return a plan as Python text: its BitsAndBytesConfig, LoraConfig and SFTConfig.

    Raises:
        ValueError: if there is no such method.
    """
    lora, quantization = _configs(method)
    training = {
        "per_device_train_batch_size": batch_size,
        "max_length": length,
        "activation_checkpointing": gradient_checkpointing,
        "optim": optimizer,
    }
    parts = [call("BitsAndBytesConfig", quantization)] if quantization else []
    parts += [call("LoraConfig", lora)] if lora else []
    return "\n".join([*parts, call("SFTConfig", training)])


def plan_fits(model: str, method: str, **options: Any) -> GPUFitTable:
    """Return on which GPUs the plan of `plan_code` fits; the options are `fit_gpus`'s.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `memory_plan.fit_gpus`.
    """
    lora, quantization = _configs(method)
    return fit_gpus(
        model,
        methods=method,
        peft_config=LoraConfig(**lora) if lora else None,
        quantization_config=BitsAndBytesConfig(**quantization) if quantization else None,
        **options,
    )


def verdict(plan: GPUFitTable, gpu: str | GPU) -> str:
    """Return in a sentence whether a plan fits a GPU, and what is missing or left.

    Raises:
        ValueError: if the plan was not held against this GPU.
    """
    row = plan[gpu, plan.rows[0].method]
    left = row.gpu.bytes - row.needed
    held = f"it needs {size_text(row.needed)} of {size_text(row.gpu.bytes)}"
    if row.fits:
        return f"Fits {row.gpu.name}: {held}, {size_text(left)} are left."
    return f"Does not fit {row.gpu.name}: {held}, {size_text(-left)} too much."


class MemoryPlanner(Explorer):
    """The memory planner; `plans` keeps what was simulated, by setting."""

    def __init__(self, model: str, gpu: GPU) -> None:
        self.gpus = {one.name: one for one in (*GPUS, gpu)}  # a size in GiB comes last
        self.plans: dict[tuple[Any, ...], GPUFitTable] = {}
        self.now: GPUFitTable | None = None
        slider, menu = ipywidgets.SelectionSlider, ipywidgets.Dropdown
        models = list(dict.fromkeys([*configs.shipped(), model]))
        gpus = [(f"{one.name} ({one.memory:.1f} GiB)", name) for name, one in self.gpus.items()]
        controls = {
            "model": control(menu, "model", model, models),
            "method": control(menu, "method", "qlora", list(CONFIGS)),
            "batch_size": control(slider, "batch size", 1, [2**n for n in range(8)]),
            "length": control(slider, "length", 1024, [2**n for n in range(7, 16)]),
            "gradient_checkpointing": control(ipywidgets.Checkbox, "gradient checkpointing", True),
            "optimizer": control(menu, "optimizer", "adamw_torch_fused", OPTIMIZERS),
            "gpu": control(menu, "GPU", gpu.name, gpus),
        }
        super().__init__(controls)

    def show(self, settings: Mapping[str, Any]) -> None:
        plan = dict(settings)
        gpu, model, method = (plan.pop(name) for name in ("gpu", "model", "method"))
        key = (model, method, *plan.values())
        if key not in self.plans:
            self.say("simulating a training step ...")
            self.fade(self.numbers, self.picture)
            self.plans[key] = plan_fits(model, method, gpus=self.gpus.values(), **plan)
        before, self.now = self.now, self.plans[key]
        text = plan_code(method, **plan)
        said = f"<p><b>{escape(verdict(self.now, self.gpus[gpu]))}</b></p>"
        self.tell(said + _where(self.now), text)
        if before is not self.now:
            bars = {
                name: one.rows[0].memory for name, one in before_and_now(self.now, before).items()
            }
            self.draw(plots.memory_bars(bars), plots.summarise_memory(bars))


def memory_planner(model: str = "llama-3.1-8b", gpu: str | float = "T4") -> MemoryPlanner:
    """Return controls for a training plan, with its memory and where it fits, as a widget.

    It shows what `plan_fits` and `plan_code` return. `model` is a name that the course ships a
    config for, or anything else that `configs.load_config` takes; it is the first of the menu.
    `gpu` is a name or a size in GiB.

    Raises:
        ValueError: if there is no such GPU.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    configs.load_config(model)
    return MemoryPlanner(model, find_gpu(gpu))


def _where(plan: GPUFitTable) -> str:
    """Return the GPUs that have enough memory and those that have not, as HTML."""
    lines = []
    for fits_it, words in ((True, "Fits"), (False, "Does not fit")):
        names = ", ".join(row.gpu.name for row in plan.rows if row.fits == fits_it)
        lines.append(f"<p>{words}: {escape(names or 'none')}.</p>")
    return "".join(lines) + f"<p>{escape(' '.join(plan.notes))}</p>"


def _configs(method: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    if method not in CONFIGS:
        raise ValueError(f"method={method!r} was given. Allowed: {', '.join(CONFIGS)}. Choose one.")
    return CONFIGS[method]
