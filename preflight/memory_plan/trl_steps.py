"""The steps of DPOTrainer and GRPOTrainer on fake tensors: their own losses, and a generation.

The losses are the trainers' own methods, called on a trainer that was never set up: what they read
of it is set here, from the defaults of its config. What needs values is done as the trainers do it,
with the same calls: GRPO's batch is made of completions that `generate` would have written.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import operations
from torch import nn
from transformers import GenerationConfig, StoppingCriteria

from course_utils.memory.measure import unwrapped
from course_utils.memory.meter import MemoryMeter
from preflight.memory_plan.fake_model import NoValues
from preflight.memory_plan.options import StepOptions

PAD = 0  # an id as good as any other, where there are no values


def autocasting(model: nn.Module, dtype: torch.dtype | None, values: NoValues) -> None:
    """Give a model accelerate's forward pass, which autocasts; inside no float may be asked for."""
    forward = model.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _floats(values, False):
            with _autocast(dtype):
                output = forward(*args, **kwargs)
            return output if dtype is None else operations.convert_to_fp32(output)

    model.forward = wrapped


def dpo_loss(
    model: nn.Module, reference: nn.Module | None, options: StepOptions, values: NoValues
) -> torch.Tensor:
    """Return the loss of a batch of pairs, which are twice as many rows."""
    from trl import DPOConfig, DPOTrainer

    args = _config(DPOConfig, precompute_ref_log_probs=not options.reference)
    trainer = _trainer(DPOTrainer, args, model, reference, options)
    vars(trainer).update(
        precompute_ref_logps=args.precompute_ref_log_probs,
        loss_types=args.loss_type,
        loss_weights=[1.0] * len(args.loss_type),
        _tp_size=1,
        **{name: getattr(args, name) for name in DPO_SETTINGS},
    )
    tokens = torch.zeros(2 * options.batch_size, options.length, dtype=torch.long)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "completion_mask": torch.ones_like(tokens),
    }
    if not options.reference:
        inputs |= {
            f"ref_{answer}_logps": torch.zeros(options.batch_size)
            for answer in ("chosen", "rejected")
        }
    with _floats(values, True):
        return trainer._compute_loss(model, inputs, False)


def grpo_loss(
    model: nn.Module,
    reference: nn.Module | None,
    options: StepOptions,
    meter: MemoryMeter,
    values: NoValues,
    begin: Callable[[], None],
) -> torch.Tensor:
    """Return the loss of a batch of completions, after all of a step were written and scored.

    `begin` is called before the first pass that has gradients.
    """
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer.utils import use_adapter

    rows, length = options.generated_rows, options.completion_length
    args = _config(
        GRPOConfig,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        num_generations=options.num_generations,
        max_completion_length=length,
        beta=0.04 if options.reference else 0.0,  # any other than 0 asks a reference
    )
    trainer = _trainer(GRPOTrainer, args, model, reference, options)
    vars(trainer).update(
        current_gradient_accumulation_steps=args.gradient_accumulation_steps,
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        _entropy_bonus_enabled=False,
        **{name: getattr(args, name) for name in GRPO_SETTINGS},
    )
    meter.start("generate")
    with torch.no_grad(), disable_gradient_checkpointing(model):
        _generate(model, args, options, meter)
    inputs = {
        "prompt_ids": torch.zeros(rows, options.length - length, dtype=torch.long),
        "prompt_mask": torch.ones(rows, options.length - length, dtype=torch.long),
        "completion_ids": torch.zeros(rows, length, dtype=torch.long),
        "completion_mask": torch.ones(rows, length, dtype=torch.long),
        "advantages": torch.zeros(rows),
    }
    if options.reference:
        with torch.no_grad(), disable_gradient_checkpointing(model):
            whole = [
                torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], dim=1)
                for kind in ("ids", "mask")
            ]
            off = use_adapter(model, None) if reference is None else nullcontext()
            with off, _floats(values, True):
                inputs["ref_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
                    reference or model, *whole, length, batch_size=options.batch_size
                )
            del whole
    begin()
    batch = {name: tensor[: options.batch_size] for name, tensor in inputs.items()}
    batch["num_items_in_batch"] = torch.tensor(rows * length)
    with _floats(values, True):
        return trainer._compute_loss(model, batch)


DPO_SETTINGS = (
    "beta", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing",
    "use_weighting",
)  # fmt: skip
GRPO_SETTINGS = (
    "beta", "top_entropy_quantile", "off_policy_mask_threshold", "importance_sampling_level",
    "loss_type", "use_vllm", "vllm_importance_sampling_correction", "max_completion_length",
)  # fmt: skip


class OneProcess:
    """What a trainer's loss asks of accelerate, where the step runs in one process."""

    device = torch.device("cpu")
    num_processes = 1
    is_main_process = False  # which would report how long it took

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def autocast(self) -> AbstractContextManager:
        return _autocast(self.dtype)

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


def _trainer(
    kind: type, args: Any, model: nn.Module, reference: nn.Module | None, options: StepOptions
) -> Any:
    """Return a trainer that can compute its loss and nothing else."""
    trainer = kind.__new__(kind)
    text = model.config.get_text_config()
    share = getattr(text, "router_aux_loss_coef", 0.0)
    vars(trainer).update(
        args=args,
        model=model,
        ref_model=reference,
        accelerator=OneProcess(options.autocast),
        aux_loss_enabled=hasattr(text, "output_router_logits") and share != 0.0,
        router_aux_loss_coef=share,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
    )
    return trainer


def _config(kind: type, **arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return kind(output_dir=folder, report_to="none", use_cpu=True, bf16=False, **arguments)


class _Enough(Exception):
    """A token is sampled, and what follows takes no more memory."""


class _StopAtOnce(StoppingCriteria):
    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise _Enough


def _generate(model: nn.Module, args: Any, options: StepOptions, meter: MemoryMeter) -> None:
    """Write the first token and the last, by `generate`: between them the cache only grows."""
    rows, length = options.generated_rows, options.length
    config = GenerationConfig(
        max_new_tokens=args.max_completion_length, do_sample=True, pad_token_id=PAD,
        bos_token_id=PAD, eos_token_id=PAD, temperature=args.temperature, top_p=args.top_p,
        top_k=args.top_k, min_p=args.min_p, repetition_penalty=args.repetition_penalty,
        use_cache=True, disable_compile=True,
    )  # fmt: skip
    caches: list[Any] = []
    hook = unwrapped(model).register_forward_hook(
        lambda _, inputs, output: caches.append(getattr(output, "cache", None))
    )

    def write(upto: int, **cache: Any) -> None:
        tokens = torch.zeros(rows, upto, dtype=torch.long)
        try:
            model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
                stopping_criteria=[_StopAtOnce()],
                **cache,
            )
        except _Enough:
            pass

    prompt = length - args.max_completion_length
    write(prompt)
    hook.remove()
    cache = caches.pop()
    more = length - 2 - prompt
    if more > 0 and cache is not None:
        meter.allocations.start_region(("generate 2", "before"))
        _grow(cache, more, meter)
        write(length - 1, cache=cache)
    del cache
    meter.allocations.start_region(("generate 3", "before"))


def _grow(cache: Any, more: int, meter: MemoryMeter) -> None:
    """Lengthen a cache by tokens that the model need not see, without the meter's eyes on it."""
    meter.paused = True
    for index, layer in enumerate(cache.layers):
        if isinstance(getattr(layer, "keys", None), torch.Tensor):
            states = (
                held.new_empty(*held.shape[:-2], more, held.shape[-1])
                for held in (layer.keys, layer.values)
            )
            cache.update(*states, index)
    meter.paused = False
    for layer in cache.layers:
        for held in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(held, torch.Tensor):
                meter.add(held, "temporaries")


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


@contextmanager
def _floats(values: NoValues, answered: bool) -> Iterator[None]:
    """Let floats that are asked for be answered, or not, for a while."""
    before, values.floats = values.floats, answered
    try:
        yield
    finally:
        values.floats = before
