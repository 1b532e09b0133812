"""One training step on fake tensors: a pass forward and backward, and an optimizer's step.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import operations
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, Trainer, TrainingArguments, trainer_pt_utils

from course_utils.memory.allocations import Moment, Region, highest
from course_utils.memory.measure import attached, count_states, unwrapped
from course_utils.memory.meter import MemoryMeter, in_backward, tensors_in
from course_utils.memory.step_memory import CATEGORIES
from preflight.lora_targets.layers import without_numbers
from preflight.memory_plan.fake_model import NoValues, build_model, build_reference, fake_mode
from preflight.memory_plan.library_patches import patched, ready_for_fake
from preflight.memory_plan.options import SEVERAL_PASSES, StepOptions
from preflight.memory_plan.trl_steps import autocasting, dpo_loss, grpo_loss

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
class Pass:
    """A pass forward and backward, as if the optimizer had no state yet.

    Its moments in order; the levels at the end of the backward pass, and after its graph was freed;
    the parameters that it trains; and the regions of a simulated one, none if one came twice: a row
    for the highest moment of a region, a row for its last. `idle` names the modules whose trainable
    parameters got no gradient, such as the adapters of a vision tower that got no image.
    """

    moments: list[Moment]
    ended: np.ndarray
    freed: np.ndarray
    trained: tuple[Trained, ...]
    regions: dict[Region, np.ndarray] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


def simulated_pass(config: PretrainedConfig, options: StepOptions) -> Pass:
    """Simulate the passes of one batch.

    Raises:
        ValueError: if transformers or peft refuse the model with these options.
    """
    meter = MemoryMeter("cpu", simulated=options.device)
    with fake_mode() as fake:
        model = build_model(config, options, fake)
        reference = build_reference(config, options, fake)
        for one in filter(None, (model, reference)):
            if (layers := layers_of(one)) is not None:
                _mark_layers(meter, layers)
        values = NoValues()
        with (
            attached(meter, model, reference=reference),
            fake,
            patched(options.device, options.masked),
            values,
            meter,
        ):
            loss = _step_loss(model, reference, options, meter, values)
            loss.backward()
            meter.allocations.start_run("end")
            del loss  # and with it the graph, before clipping
        trained = tuple(_trained(model))
        idle = tuple(dict.fromkeys(map(without_numbers, _idle(unwrapped(model)))))
    allocations = meter.allocations
    levels = allocations.levels()
    regions = [(name, levels[rows]) for name, rows in allocations.between(allocations.regions)]
    once = len(dict(regions)) == len(regions)
    return Pass(
        moments=allocations.moments(levels),
        ended=levels[allocations.runs[-1][0]],
        freed=levels[-1],
        trained=trained,
        regions={name: np.array([highest(part), part[-1]]) for name, part in regions if once},
        idle=idle,
    )


def _step_loss(
    model: nn.Module,
    reference: nn.Module | None,
    options: StepOptions,
    meter: MemoryMeter,
    values: NoValues,
) -> torch.Tensor:
    """Return the loss of a trainer's step, after all that it does before the backward pass."""

    def begin() -> None:
        meter.start("forward")
        if options.gradient_accumulation_steps > 1:
            _add_gradients(meter, model)

    if options.trainer in SEVERAL_PASSES:
        for one in filter(None, (model, reference)):
            autocasting(one, options.autocast, values)
    if options.trainer == "grpo":
        return grpo_loss(model, reference, options, meter, values, begin)
    begin()
    if options.trainer == "dpo":
        return dpo_loss(model, reference, options, values)
    return _loss(model, options)


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """Return a model's decoder layers: the largest list, of those as long as its config says.

    Where none is as long, the largest of all; None where there is no list.
    """
    model = unwrapped(model)
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    size = {id(m): sum(p.numel() for p in m.parameters()) for m in lists}
    return max(lists, key=lambda m: (len(m) == count, size[id(m)]), default=None)


def _mark_layers(meter: MemoryMeter, layers: nn.ModuleList) -> None:
    """Mark in the meter's allocations where each layer's work starts, forward and backward.

    Where a phase has several passes, those after the first are numbered: "generate 2".
    """
    last = len(layers) - 1
    passes: Counter[str] = Counter()

    def start(phase: str, where: str | int) -> None:
        meter.allocations.start_region((phase, where))

    def forward(where: str | int) -> None:
        kind = meter.allocations.kind
        passes[kind] += where == 0
        start(kind if passes[kind] == 1 else f"{kind} {passes[kind]}", where)

    def before(index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        if in_backward():
            return
        forward(index)
        hidden = next(tensors_in((args, kwargs)), None)
        if index == 0 and hidden is not None and hidden.requires_grad:
            hidden.register_hook(lambda _: start("backward", "after"))

    def after(index: int, output: Any) -> None:
        if in_backward():
            return
        if index == last:
            forward("after")
        hidden = next(tensors_in(output), None)
        if hidden is not None and hidden.requires_grad:
            hidden.register_hook(lambda _: start("backward", index))

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: before(index, args, kwargs), with_kwargs=True
        )
        layer.register_forward_hook(lambda _, args, output, index=index: after(index, output))


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
    if options.masked:
        batch["attention_mask"] = torch.ones_like(tokens)
    if options.fused:
        batch["fused_lm_head"] = True
    if options.autocast is None:
        output = model(**batch)
    else:
        with torch.autocast("cpu", options.autocast):
            output = model(**batch)
        # As accelerate, after a forward pass in half precision.
        output = operations.convert_to_fp32(output)
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


def _idle(model: nn.Module, name: str = "") -> Iterator[str]:
    """Yield the names of the largest modules in which nothing that is trained got a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(parameter.grad is None for parameter in trained):
        yield name
    elif any(parameter.grad is None for parameter in trained):
        for child, module in model.named_children():
            yield from _idle(module, f"{name}.{child}".removeprefix("."))


def run_optimizer(
    trained: tuple[Trained, ...], options: StepOptions
) -> tuple[list[Moment], int, int]:
    """Simulate clipping and the second step of the optimizer, when it has its state.

    Returns its moments, with neither weights nor adapters, and the bytes of its state on the device
    and on the host.
    """
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
        optimizer = _make_optimizer(options, groups, embedded, fake)
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
    return moments, int(state), host


def _make_optimizer(
    asked: StepOptions,
    groups: list[dict[str, Any]],
    in_32_bits: list[nn.Parameter],
    fake: FakeTensorMode,
) -> torch.optim.Optimizer:
    """Return the optimizer that a trainer makes of a name, for fake parameters on the CPU.

    On a GPU, torch works on all parameters at once (`foreach`) where no other way is asked for.
    `in_32_bits` are parameters of embeddings, whose state the trainers keep so with bitsandbytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, optim=asked.optimizer, report_to="none", use_cpu=True
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    plain_torch = kind.__module__.startswith("torch.optim") and not options.get("fused")
    if asked.device == "cuda" and plain_torch:
        options["foreach"] = True
    if "bitsandbytes" not in kind.__module__:
        with fake:  # Adagrad makes its state here
            return kind(groups, **options)
    optimizer = kind(groups, **options)  # its code books are made of values
    ready_for_fake(optimizer, fake, in_32_bits)
    return optimizer
