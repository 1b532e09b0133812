"""One training step on fake tensors: a pass forward and backward, and an optimizer's step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.operations import convert_to_fp32
from torch import nn
from transformers import PretrainedConfig
from transformers.trainer_pt_utils import get_parameter_names

from course_utils.memory.allocations import Ledger
from course_utils.memory.hooks import attached, layers_of, mark_layers
from course_utils.memory.meter import CUDA_BLOCK, MemoryMeter
from course_utils.memory.optimizer_states import states
from course_utils.memory.step_memory import CATEGORIES
from preflight.memory_plan.fake_gpu import LibraryChanged, imitate
from preflight.memory_plan.fake_model import build_model, fake_mode
from preflight.memory_plan.optimizers import make_optimizer
from preflight.memory_plan.options import Plan

# What Trainer leaves without weight decay; only the grouping of parameters matters here.
NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Trained:
    """A parameter that gets a gradient: what the optimizer has to know of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    decays: bool
    in_embedding: bool


@dataclass(frozen=True)
class Pass:
    """A pass forward and backward: its books, its levels (see `Ledger`), and what it trains."""

    ledger: Ledger
    levels: np.ndarray
    trained: tuple[Trained, ...]

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the levels at the end of the backward pass, and after its graph was freed."""
        return self.levels[self.ledger.runs[-1][0]], self.levels[-1]


def meter_for(plan: Plan) -> MemoryMeter:
    """Return a meter of fake tensors for a plan."""
    block = CUDA_BLOCK if plan.device == "cuda" else 1
    return MemoryMeter("cpu", block=block, imitated=plan.device)


def run_pass(config: PretrainedConfig, plan: Plan) -> Pass:
    """Simulate the passes of one batch, as if the optimizer had no state yet."""
    meter = meter_for(plan)
    with fake_mode() as fake:
        model = build_model(config, plan, fake)
        layers = layers_of(model)
        with attached(meter, model), fake, imitate(plan.device), meter:
            if layers is not None:
                mark_layers(meter, layers)
            meter.start("forward")
            if plan.accumulates:  # from the second batch on, gradients are there already
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.grad = torch.empty_like(parameter)
                        meter.add(parameter.grad, "gradients")
            loss = _loss(model, plan)
            loss.backward()
            meter.ledger.start_run("end")
            del loss  # and with it the graph, before clipping
        trained = tuple(_trained(model))
    return Pass(meter.ledger, meter.ledger.levels(), trained)


def simulated_pass(config: PretrainedConfig, plan: Plan) -> Pass:
    """Return `run_pass`; what goes wrong on the way is said in plain words.

    Raises:
        ValueError: if transformers or peft refuse the model with these options.
        RuntimeError: if the model's code needs values, which fake tensors do not have, or if a
            library no longer has what the simulation leans on (LibraryChanged).
    """
    try:
        return run_pass(config, plan)
    except (ValueError, ImportError, MemoryError, LibraryChanged):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise RuntimeError(
            f"A step of {config.model_type!r} with these options cannot be simulated ({reason}). "
            "Code that asks for the values of tensors is beyond the prediction. Try another dtype "
            "or attention, or measure a real step of a smaller config with MeterCallback."
        ) from error


def _loss(model: nn.Module, plan: Plan) -> torch.Tensor:
    """Return the loss as the trainer computes it; nothing else outlives the call."""
    tokens = torch.zeros(plan.batch_size, plan.length, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": tokens.clone(), "use_cache": False}
    if plan.padding and plan.attention != "flash_attention_2":  # which takes the padding out
        batch["attention_mask"] = torch.ones_like(tokens)
    if plan.fused:
        batch["fused_lm_head"] = True
    if plan.autocast is None:
        output = model(**batch)
    else:
        with torch.autocast("cpu", plan.autocast):
            output = model(**batch)
        output = convert_to_fp32(output)  # as accelerate, after a forward pass in half precision
    if plan.fused:  # SFTTrainer makes its loss itself, without what a method of PEFT adds to it
        return -output.log_probs.sum() / tokens.numel()
    return output.loss


def _trained(model: nn.Module) -> Any:
    decaying = set(get_parameter_names(model, [nn.LayerNorm], list(NO_DECAY)))
    embedded = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            shape = tuple(parameter.shape)
            yield Trained(shape, parameter.dtype, name in decaying, id(parameter) in embedded)


@dataclass(frozen=True)
class OptimizerStep:
    """Clipping and an optimizer's step: its books and levels, with neither weights nor adapters;
    the bytes of its state on the device, and those on the host."""

    ledger: Ledger
    levels: np.ndarray
    state: int
    host: int


def run_optimizer(trained: tuple[Trained, ...], plan: Plan) -> OptimizerStep:
    """Simulate clipping and the second step of the optimizer, when it has its state."""
    meter = meter_for(plan)
    with fake_mode() as fake:
        with fake:
            parameters = [nn.Parameter(torch.empty(t.shape, dtype=t.dtype)) for t in trained]
        pairs = list(zip(parameters, trained, strict=True))
        # Two groups as in Trainer, whose weight decay is 0 unless it is set.
        groups = [
            {"params": [p for p, t in pairs if t.decays == decays], "weight_decay": 0.0}
            for decays in (True, False)
        ]
        embedded = [p for p, t in pairs if t.in_embedding]
        groups = [group for group in groups if group["params"]]
        optimizer = make_optimizer(plan.optimizer, groups, embedded, fake, plan.device)
        with fake:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()  # makes the state
            state, host = _book(meter, parameters, optimizer, plan.device)
            with meter:
                torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                meter.start("optimizer")
                optimizer.step()
                optimizer.zero_grad()
    levels = meter.ledger.levels()
    levels[:, CATEGORIES.index("weights")] = 0
    return OptimizerStep(meter.ledger, levels, state, host)


def _book(
    meter: MemoryMeter, parameters: list[nn.Parameter], optimizer: Any, device: str
) -> tuple[int, int]:
    """Book what lives before the optimizer's step; return its state's bytes on device and host."""
    for parameter in parameters:
        meter.add(parameter, "weights")
    host = 0
    for value, place in states(optimizer, device):
        if place == "host":
            meter.leave_out(value)
            host += value.nbytes if value.dim() else 0  # a counter is no page
        else:
            meter.add(value, "optimizer state")
    booked = (e for e in meter.ledger.entries if e.category == "optimizer state")
    state = sum(entry.bytes for entry in booked)
    meter.ledger.start_run("clip")
    for parameter in parameters:
        meter.add(parameter.grad, "gradients")
    return state, host
