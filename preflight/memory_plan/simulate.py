"""One training step on fake tensors: a pass forward and backward, and an optimizer's step.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from accelerate.utils import operations
from torch import nn
from transformers import PretrainedConfig, trainer_pt_utils

from course_utils.memory.allocations import Moment, Region, highest
from course_utils.memory.measure import attached, count_states
from course_utils.memory.meter import MemoryMeter
from course_utils.memory.step_memory import CATEGORIES
from preflight.memory_plan.fake_model import build_model
from preflight.memory_plan.fake_tensors import NoValues, fake_mode
from preflight.memory_plan.layers import layers_of, mark_layers
from preflight.memory_plan.library_patches import (
    LibraryChanged,
    changed_library,
    other_versions,
    patched,
)
from preflight.memory_plan.optimizers import make_optimizer
from preflight.memory_plan.options import StepOptions

WEIGHTS, STATE = CATEGORIES.index("weights"), CATEGORIES.index("optimizer state")
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
class Levels:
    """The bytes in use by category at the highest moment of a region, and at its last."""

    highest: np.ndarray
    last: np.ndarray

    def towards(self, other: Levels, steps: int | Fraction) -> Levels:
        """Return the levels that lie `steps` times the way from these to another's."""

        def go(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            pairs = zip(a.tolist(), b.tolist(), strict=True)
            return np.array([int(x + (y - x) * steps) for x, y in pairs])

        return Levels(go(self.highest, other.highest), go(self.last, other.last))

    def is_between(self, below: Levels, above: Levels) -> bool:
        """Return whether these levels lie in the middle of two others, to the byte."""
        highest = below.highest + above.highest == 2 * self.highest
        last = below.last + above.last == 2 * self.last
        return bool(highest.all() and last.all())


@dataclass(frozen=True)
class Pass:
    """A pass forward and backward, as if the optimizer had no state yet.

    Its moments in order; the levels at the end of the backward pass, and after its graph was freed;
    the parameters that it trains; and the regions of a simulated one, none if one came twice.
    """

    moments: list[Moment]
    ended: np.ndarray
    freed: np.ndarray
    trained: tuple[Trained, ...]
    regions: dict[Region, Levels] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerStep:
    """Clipping and an optimizer's step, with neither weights nor adapters: its moments, and the
    bytes of the optimizer's state on the device and on the host."""

    moments: list[Moment]
    state: int
    host: int


def simulated_pass(config: PretrainedConfig, options: StepOptions) -> Pass:
    """Simulate the passes of one batch.

    Raises:
        ValueError: if transformers or peft refuse the model with these options.
        RuntimeError: if the model's code needs values, which fake tensors do not have, or if a
            library no longer has what the simulation relies on (LibraryChanged).
    """
    with _explained(f"A step of {config.model_type!r} with these options"):
        return _run_pass(config, options)


def _run_pass(config: PretrainedConfig, options: StepOptions) -> Pass:
    meter = MemoryMeter("cpu", simulated=options.device)
    with fake_mode() as fake:
        model = build_model(config, options, fake)
        layers = layers_of(model)
        with attached(meter, model), fake, patched(options.device), NoValues(), meter:
            if layers is not None:
                mark_layers(meter, layers)
            meter.start("forward")
            if options.gradient_accumulation_steps > 1:
                _add_gradients(meter, model)
            loss = _loss(model, options)
            loss.backward()
            meter.allocations.start_run("end")
            del loss  # and with it the graph, before clipping
        trained = tuple(_trained(model))
    allocations = meter.allocations
    levels = allocations.levels()
    regions = [(name, levels[rows]) for name, rows in allocations.between(allocations.regions)]
    once = len(dict(regions)) == len(regions)
    return Pass(
        moments=allocations.moments(levels),
        ended=levels[allocations.runs[-1][0]],
        freed=levels[-1],
        trained=trained,
        regions={name: Levels(highest(part), part[-1]) for name, part in regions if once},
    )


def _add_gradients(meter: MemoryMeter, model: nn.Module) -> None:
    """Give parameters their gradients, which are there from the second batch of a step on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            meter.add(parameter.grad, "gradients")


def _loss(model: nn.Module, options: StepOptions) -> torch.Tensor:
    """Return the loss as the trainer computes it; nothing else outlives the call."""
    tokens = torch.zeros(options.batch_size, options.length, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": tokens.clone(), "use_cache": False}
    if options.padding and options.attention != "flash_attention_2":  # which takes the padding out
        batch["attention_mask"] = torch.ones_like(tokens)
    if options.fused:
        batch["fused_lm_head"] = True
    if options.autocast is None:
        output = model(**batch)
    else:
        with torch.autocast("cpu", options.autocast):
            output = model(**batch)
        output = operations.convert_to_fp32(
            output
        )  # as accelerate, after a forward pass in half precision
    if options.fused:  # SFTTrainer makes its loss itself, without what a method of PEFT adds to it
        return -output.log_probs.sum() / tokens.numel()
    return output.loss


def _trained(model: nn.Module) -> Iterator[Trained]:
    decaying = set(trainer_pt_utils.get_parameter_names(model, [nn.LayerNorm], list(NO_DECAY)))
    embedded = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            shape = tuple(parameter.shape)
            yield Trained(shape, parameter.dtype, name in decaying, id(parameter) in embedded)


def run_optimizer(trained: tuple[Trained, ...], options: StepOptions) -> OptimizerStep:
    """Simulate clipping and the second step of the optimizer, when it has its state.

    Raises:
        RuntimeError: if it cannot be simulated; LibraryChanged if a changed library is why.
    """
    with _explained(f"A step of the optimizer {options.optimizer!r}"):
        return _run_optimizer(trained, options)


def _run_optimizer(trained: tuple[Trained, ...], options: StepOptions) -> OptimizerStep:
    meter = MemoryMeter("cpu", simulated=options.device)
    with fake_mode() as fake:
        with fake:
            parameters = [nn.Parameter(torch.empty(t.shape, dtype=t.dtype)) for t in trained]
        pairs = list(zip(parameters, trained, strict=True))
        # Two groups as in Trainer, whose weight decay is 0 unless it is set.
        groups = [
            {"params": [p for p, t in pairs if t.decays == decays], "weight_decay": 0.0}
            for decays in (True, False)
        ]
        groups = [group for group in groups if group["params"]]
        embedded = [p for p, t in pairs if t.in_embedding]
        optimizer = make_optimizer(options.optimizer, groups, embedded, fake, options.device)
        with fake:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()  # makes the state
            for parameter in parameters:
                meter.add(parameter, "weights")
            host = count_states(meter, optimizer)
            state = meter.allocations.levels()[-1, STATE]
            meter.allocations.start_run("clip")
            for parameter in parameters:
                meter.add(parameter.grad, "gradients")
            with meter:
                torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                meter.start("optimizer")
                optimizer.step()
                optimizer.zero_grad()
    levels = meter.allocations.levels()
    levels[:, WEIGHTS] = 0
    moments = [moment for moment in meter.allocations.moments(levels) if moment[0] != "load"]
    return OptimizerStep(moments, int(state), host)


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
