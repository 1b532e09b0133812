"""Predict what a training step takes on hardware that is not here: simulate it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from transformers import BitsAndBytesConfig, PretrainedConfig

from course_utils.configs import load_config
from course_utils.memory.allocations import as_dict, peaks, samples, timeline
from course_utils.memory.step_memory import CATEGORIES, PHASES, StepMemory
from preflight.memory_plan.extrapolate import FEW, Stretch, extrapolate
from preflight.memory_plan.options import Plan, make_plan
from preflight.memory_plan.simulate import OptimizerStep, run_optimizer, simulated_pass

GRADIENTS, STATE = CATEGORIES.index("gradients"), CATEGORIES.index("optimizer state")


def predict(
    model: str | Path | PretrainedConfig,
    method: str = "lora",
    *,
    batch_size: int = 1,
    length: int = 1024,
    dtype: str | torch.dtype = "bfloat16",
    gradient_checkpointing: bool = True,
    optimizer: str = "adamw_torch_fused",
    loss: str = "fused",
    attention: str | None = None,
    padding: bool = False,
    peft_config: PeftConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    mixed_precision: str | None = None,
    adapter_dtype: str | torch.dtype | None = None,
    gradient_accumulation_steps: int = 1,
    prepare_for_kbit: bool = False,
    device: str = "cuda",
    layers: str = "auto",
) -> StepMemory:
    """Return the memory of one training step, in bytes, without the model's weights or a GPU.

    The model is built from its config with tensors that have a shape and no values, and runs one
    real step: the same code of transformers, peft, bitsandbytes, TRL and PyTorch as in training.
    The figure is what PyTorch's allocator hands out; CUDA's own context and fragmentation come on
    top of it.

    `model` is a config, or what `load_config` reads: the name of a shipped one such as
    "llama-3.1-8b", a config.json, a folder that holds one, or a hub id. `method` is "full",
    "lora" (rank 16 on all linear layers unless `peft_config` says otherwise), "qlora" (the same on
    NF4 with double quantization unless `quantization_config` says otherwise), "int8", or "peft"
    with any `peft_config`. `loss` is "fused" as in SFTTrainer or "full" (all logits) as in Trainer;
    `mixed_precision` ("no", "bf16", "fp16") and `adapter_dtype` follow that trainer when they are
    None. `attention` is "sdpa", "eager", "flash_attention_2" or None, which leaves it to
    transformers (sdpa where an architecture has it). `padding` says that rows differ in length, so
    that an attention mask is needed. `device` is whose behaviour is imitated; "cuda" stands for a
    GPU of the Ampere generation or newer, where attention has its fused kernels. With
    `layers="auto"` a decoder whose layers are all alike is simulated with a few of them and
    extrapolated exactly; "all" simulates each.

    Raises:
        ValueError: if an option is unknown, or two do not go together.
        FileNotFoundError: if the config is missing.
        RuntimeError: if the config cannot be fetched, or the model cannot be simulated.
    """
    started = time.perf_counter()
    if layers not in ("auto", "all"):
        raise ValueError(f"layers={layers!r} is unknown. Allowed are auto, all.")
    plan = make_plan(
        method,
        batch_size=batch_size,
        length=length,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,
        loss=loss,
        attention=attention,
        padding=padding,
        peft_config=peft_config,
        quantization_config=quantization_config,
        mixed_precision=mixed_precision,
        adapter_dtype=adapter_dtype,
        gradient_accumulation_steps=gradient_accumulation_steps,
        prepare_for_kbit=prepare_for_kbit,
        device=device,
    )
    config = load_config(model)
    count = config.get_text_config().num_hidden_layers
    found = extrapolate(config, plan) if layers == "auto" else None
    if found is None:
        simulated = [count]
        result = simulated_pass(config, plan)
        trained, line = result.trained, samples(result.ledger, result.levels)
        tops, last = peaks(result.ledger, result.levels), result.ends()
    else:
        simulated = [FEW, FEW + 1]
        parts, trained = found
        tops, last = _tops(parts), (parts[-2].last, parts[-1].last)
        line = [(part.phase, row) for part in parts for row in (part.peak, part.last)]
    step = run_optimizer(trained, plan)
    settings = {
        "model": config.name_or_path or config.model_type,
        "method": method,
        "batch_size": batch_size,
        "length": length,
        "dtype": str(plan.torch_dtype).removeprefix("torch."),
        "gradient_checkpointing": gradient_checkpointing,
        "optimizer": optimizer,
        "loss": loss,
        "attention": attention,
        "padding": padding,
        "prepare_for_kbit": prepare_for_kbit,
        "layers": count,
        "simulated_layers": simulated,
    }
    memory = _assemble(tops, last, line, step, plan, settings)
    memory.settings["seconds"] = round(time.perf_counter() - started, 2)
    return memory


def _tops(parts: list[Stretch]) -> dict[str, np.ndarray]:
    """Return the highest levels of each phase."""
    tops: dict[str, np.ndarray] = {}
    for part in parts:
        if part.phase not in tops or part.peak.sum() > tops[part.phase].sum():
            tops[part.phase] = part.peak
    return tops


def _assemble(
    tops: dict[str, np.ndarray],
    last: tuple[np.ndarray, np.ndarray],
    line: list[tuple[str, np.ndarray]],
    step: OptimizerStep,
    plan: Plan,
    settings: dict[str, Any],
) -> StepMemory:
    """Join the passes, which ran before the optimizer had a state, with the optimizer's step."""
    state = np.zeros(len(CATEGORIES), dtype=np.int64)
    state[STATE] = step.state
    ended, freed = last
    resting = freed.copy()
    resting[GRADIENTS] = 0  # the optimizer's step has its own

    def whole(phase: str, row: np.ndarray) -> np.ndarray:
        return row if phase == "load" else row + state

    optimizer_tops = peaks(step.ledger, step.levels)
    phases = {phase: whole(phase, tops[phase]) for phase in ("load", "forward", "backward")}
    phases |= {phase: optimizer_tops[phase] + resting for phase in ("clip", "optimizer")}
    # Clipping starts while the loss still holds the graph.
    phases["clip"] = max(phases["clip"], ended + state, key=np.sum)
    moments = [(phase, whole(phase, row)) for phase, row in line]
    moments.append(("clip", ended + state))
    moments += [(phase, row + resting) for phase, row in samples(step.ledger, step.levels)]
    return StepMemory(
        phases={phase: as_dict(phases[phase]) for phase in PHASES},
        host=step.host,
        timeline=timeline(moments),
        device=plan.device,
        settings=settings,
    )
