"""Predict what a training step takes on hardware that is not here: simulate it.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peft import PeftConfig
from transformers import BitsAndBytesConfig, PretrainedConfig

from course_utils.configs import load_config
from course_utils.memory.allocations import Moment, phases_and_timeline
from course_utils.memory.step_memory import CATEGORIES, StepMemory
from preflight.memory_plan.default_adapter import default_adapter
from preflight.memory_plan.extrapolate import FEW, Layers, LayersDiffer
from preflight.memory_plan.library_patches import (
    LibraryChanged,
    changed_library,
    check_libraries,
    other_versions,
)
from preflight.memory_plan.options import GENERATIONS, StepOptions
from preflight.memory_plan.simulate import STATE, Pass, Trained, run_optimizer, simulated_pass
from preflight.memory_plan.stored import as_loaded

GRADIENTS = CATEGORIES.index("gradients")


class Shared:
    """What predictions share whose plans differ in `batch_size` and `length` alone.

    Give the same one to each of them: what an earlier one found, the next need not simulate.
    """

    def __init__(self) -> None:
        self.layers = Layers()
        self._trained: tuple[Trained, ...] | None = None
        self._step: tuple[list[Moment], int, int] = ([], 0, 0)

    def _optimizer_step(
        self, trained: tuple[Trained, ...], options: StepOptions
    ) -> tuple[list[Moment], int, int]:
        """Return what `run_optimizer` does, which does not depend on the batch."""
        if self._trained != trained:
            self._step, self._trained = run_optimizer(trained, options), trained
        return self._step


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
    trainer: str | None = None,
    reference: bool | None = None,
    completion_length: int | None = None,
    num_generations: int = GENERATIONS,
    layers: str = "auto",
    shared: Shared | None = None,
    timeline: bool = True,
) -> StepMemory:
    """Return the memory of one training step, in bytes, without the model's weights or a GPU.

    The model is built from its config with tensors that have a shape and no values, and runs one
    real step: the same code of transformers, peft, bitsandbytes, TRL and PyTorch as in training.
    The figure is what PyTorch's allocator hands out; CUDA's own context and fragmentation come on
    top of it.

    `model` is a config, or what `load_config` reads: the name of a shipped one such as
    "llama-3.1-8b", a config.json, a folder that holds one, or a hub id. `method` is "full", "lora"
    (rank 16 on all linear layers that peft takes, unless `peft_config` says otherwise; see
    `default_adapter`), "qlora" (the same on NF4 with double quantization unless
    `quantization_config` says otherwise), "int8", or "peft" with any `peft_config`. `loss` is
    "fused" as in SFTTrainer or "full" (all logits) as in Trainer; `mixed_precision` ("no", "bf16",
    "fp16") and `adapter_dtype` follow that trainer when they are None. `attention` is "sdpa",
    "eager", "flash_attention_2" or None, which leaves it to transformers (sdpa where an
    architecture has it). `padding` says that rows differ in length, so that an attention mask is
    needed. `device` is where the step is to run; "cuda" stands for a GPU of the Ampere generation
    or newer, where attention has its fused kernels.

    `trainer` is "sft", "trainer", "dpo" or "grpo"; None leaves it to the loss. With "dpo" a batch
    counts pairs, each two rows of `length`, and `reference` says whether the step asks the
    reference (False: `precompute_ref_log_probs`); in full fine-tuning that is a second model. With
    "grpo" it counts completions, written by `generate` for all batches of a step at once;
    `length` is prompt and completion together, `completion_length` the completion's part (default:
    256, or half), and `reference` says whether `beta` is other than 0.

    With `layers="auto"` a decoder whose layers are
    all alike is simulated with a few of them and extrapolated exactly; where they differ, a warning
    is logged and each is simulated, as "all" does it. A model that sees or hears is planned for
    rows of text alone; a checkpoint that is quantized already, as transformers holds it in training
    (one in FP8: on a GPU that computes in it). `shared` spares work where one plan is predicted at
    several sizes, and `timeline=False` where its moments are not needed.

    Raises:
        ValueError: if an option is unknown, two do not go together, the model does not write text
            from left to right, or its checkpoint is quantized in a way that cannot be trained so.
        FileNotFoundError: if the config is missing.
        RuntimeError: if the config cannot be fetched, or the model cannot be simulated; as
            LibraryChanged where a library is not as the simulation expects it.
    """
    started = time.perf_counter()
    if layers not in ("auto", "all"):
        raise ValueError(f"layers={layers!r} is unknown. Allowed are auto, all.")
    options = StepOptions(
        method=method,
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
        trainer=trainer,
        reference=reference,
        completion_length=completion_length,
        num_generations=num_generations,
    )
    config = as_loaded(load_config(model), options)
    if peft_config is None and options.peft_config is not None:
        options.peft_config = default_adapter(config)
    check_libraries(device, options.trainer)
    shared = shared or Shared()
    with _explained(f"A step of {config.model_type!r} with these options"):
        passes, simulated = _passes(config, options, layers, shared.layers, timeline)
    with _explained(f"A step of the optimizer {options.optimizer!r}"):
        step, state, host = shared._optimizer_step(passes.trained, options)
    phases, moments = phases_and_timeline(_moments(passes, step, state))
    settings = {
        "model": config.name_or_path or config.model_type,
        "method": method,
        "batch_size": batch_size,
        "length": length,
        "dtype": str(options.dtype).removeprefix("torch."),
        "gradient_checkpointing": gradient_checkpointing,
        "optimizer": optimizer,
        "loss": loss,
        "trainer": options.trainer,
        "attention": attention,
        "padding": padding,
        "prepare_for_kbit": prepare_for_kbit,
        "layers": config.get_text_config().num_hidden_layers,
        "simulated_layers": simulated,
        "idle": list(passes.idle),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return StepMemory(phases, host, moments if timeline else (), device=device, settings=settings)


def _passes(
    config: PretrainedConfig, options: StepOptions, layers: str, known: Layers, timeline: bool
) -> tuple[Pass, list[int]]:
    """Return the passes through all layers, and how many layers were simulated to know them."""
    count = config.get_text_config().num_hidden_layers
    if layers == "auto" and count > FEW + 2:
        try:
            passes = (known.all if timeline else known.highest)(config, options)
            return passes, known.simulated
        except LayersDiffer as reason:
            _warn_once(f"{reason}; all {count} are simulated, which may take minutes.")
    return simulated_pass(config, options), [count]


@lru_cache
def _warn_once(text: str) -> None:
    """Log a warning; without any set-up Python prints it to stderr, as one line."""
    logging.getLogger(__name__).warning(text)


def _moments(passes: Pass, step: list[Moment], size: int) -> list[Moment]:
    """Join the passes, which ran before the optimizer had a state of that size, with its step."""
    state = np.zeros(len(CATEGORIES), dtype=np.int64)
    state[STATE] = size
    resting = passes.freed.copy()
    resting[GRADIENTS] = 0  # the optimizer's step has its own
    return [
        *((phase, row if phase == "load" else row + state) for phase, row in passes.moments),
        ("clip", passes.ended + state),  # clipping starts while the loss still holds the graph
        *((phase, row + resting) for phase, row in step),
    ]


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in plain words what goes wrong inside."""
    try:
        yield
    except (ValueError, ImportError, MemoryError, LibraryChanged):
        raise
    except Exception as error:
        changed = changed_library(error)
        if changed is not None:
            raise changed from error
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise RuntimeError(
            f"{what} cannot be simulated ({reason}). "
            "Code that asks for the values of tensors is beyond the prediction. Try another dtype "
            "or attention, or measure a real step of a smaller config with MeterCallback."
            f"{''.join(f' Not seen before: {n} {v}.' for n, v in other_versions().items())}"
        ) from error
