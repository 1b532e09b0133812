"""What a training takes, and on which GPU it fits.

Used by lessons: 02, 04.
"""

from __future__ import annotations

import functools
from collections import deque
from html import escape
from typing import Any

import ipywidgets
from IPython.display import HTML

from course_utils import configs, plots
from course_utils.display import call_text, code_html
from course_utils.memory.step_memory import size_text
from course_utils.widgets import Explorer, control, image, now_and_before
from preflight.memory_plan import GPU, GPUS, METHODS, OPTIMIZERS, GPUFitTable, find_gpu, fit_gpus
from preflight.memory_plan.options import LORA, QUANTIZED

PLANNED = tuple(method for method in METHODS if method != "peft")


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
    if method not in PLANNED:
        raise ValueError(f"method={method!r} was given. Allowed: {', '.join(PLANNED)}. Choose one.")
    training = {
        "per_device_train_batch_size": batch_size,
        "max_length": length,
        "activation_checkpointing": gradient_checkpointing,
        "optim": optimizer,
    }
    parts = [call_text("BitsAndBytesConfig", QUANTIZED[method])] if method in QUANTIZED else []
    parts += [call_text("LoraConfig", LORA)] if method != "full" else []
    return "\n".join([*parts, call_text("SFTConfig", training)])


def plan_fits(model: str, method: str, **options: Any) -> GPUFitTable:
    """Return on which GPUs the plan of `plan_code` fits; the options are `fit_gpus`'s.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as `memory_plan.fit_gpus`.
    """
    return fit_gpus(model, methods=method, **options)


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


def memory_planner(model: str = "llama-3.1-8b", gpu: str | float = "T4") -> Explorer:
    """Return controls for a training plan, with its memory and where it fits, as a widget.

    It shows what `plan_fits` and `plan_code` return. `model` is a name that the course ships a
    config for, or anything else that `configs.load_config` takes; it is the first of the menu.
    `gpu` is a name or a size in GiB.

    Raises:
        ValueError: if there is no such GPU.
        FileNotFoundError, RuntimeError: as `configs.load_config`.
    """
    configs.load_config(model)
    asked = find_gpu(gpu)
    gpus = {one.name: one for one in (*GPUS, asked)}  # a size in GiB comes last
    recent: deque[GPUFitTable] = deque(maxlen=2)

    @functools.cache
    def plan(model: str, method: str, **options: Any) -> GPUFitTable:
        return plan_fits(model, method, gpus=gpus.values(), **options)

    def show(model: str, method: str, gpu: str, **options: Any) -> HTML:
        now = plan(model, method, **options)
        steps = {when: one.rows[0].memory for when, one in now_and_before(recent, now).items()}
        picture = image(plots.memory_bars(steps), plots.summarise_memory(steps))
        sentence = f"<p><b>{escape(verdict(now, gpus[gpu]))}</b></p>"
        return HTML(sentence + _where(now) + picture + code_html(plan_code(method, **options)))

    slider, menu = ipywidgets.SelectionSlider, ipywidgets.Dropdown
    models = list(dict.fromkeys([*configs.shipped(), model]))
    names = [(f"{one.name} ({one.memory:.1f} GiB)", name) for name, one in gpus.items()]
    controls = {
        "model": control(menu, "model", value=model, options=models),
        "method": control(menu, "method", value="qlora", options=PLANNED),
        "batch_size": control(slider, "batch size", options=[2**n for n in range(8)]),
        "length": control(slider, "length", value=1024, options=[2**n for n in range(7, 16)]),
        "gradient_checkpointing": control(
            ipywidgets.Checkbox, "gradient checkpointing", value=True
        ),
        "optimizer": control(menu, "optimizer", value="adamw_torch_fused", options=OPTIMIZERS),
        "gpu": control(menu, "GPU", value=asked.name, options=names),
    }
    return Explorer("Memory planner", show, controls)


def _where(plan: GPUFitTable) -> str:
    """Return the GPUs that have enough memory and those that have not, as HTML."""
    lines = []
    for fits_it, words in ((True, "Fits"), (False, "Does not fit")):
        names = ", ".join(row.gpu.name for row in plan.rows if row.fits == fits_it)
        lines.append(f"<p>{words}: {escape(names or 'none')}.</p>")
    return "".join(lines) + f"<p>{escape(' '.join(plan.notes))}</p>"
