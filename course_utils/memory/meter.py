"""The meter: follows every storage that a training step allocates, on real and on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils.memory.allocations import PHASE_OF, Ledger
from course_utils.memory.kernels import scratch
from course_utils.memory.step_memory import PHASES

# PyTorch's CUDA allocator hands out multiples of this (kMinBlockSize in CUDACachingAllocator).
CUDA_BLOCK = 512


class MemoryMeter(TorchDispatchMode):
    """Books every storage on one kind of device that operations allocate, and when it is freed.

    Enter it as a context. It sees what PyTorch's dispatcher sees, so real and fake tensors alike;
    what a kernel allocates inside is added where it is known (see `kernels`). It changes no result.

    `device` is the kind of device whose storages count, `block` the multiple to which the
    allocator rounds, and `imitated` the device as which kernels are taken ("cuda" when a GPU's step
    is simulated on fake CPU tensors).
    """

    def __init__(self, device: str = "cpu", block: int = 1, imitated: str | None = None) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.device, self.block, self.imitated = device, block, imitated or device
        self.in_head = False  # between the last hidden state and its gradient
        self.allocator: dict[str, int] = {}
        # By the id of a storage: the storage, and its number in the ledger.
        self._known: dict[int, tuple[weakref.ref, int]] = {}

    def add(self, tensor: torch.Tensor, category: str | None = None) -> None:
        """Book a tensor's storage; if it is booked already, a category given replaces the old."""
        if tensor.device.type != self.device:
            return
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors have none
            return
        key = id(storage)
        if key in self._known and self._known[key][0]() is storage:
            if category is not None:
                self.ledger.entries[self._known[key][1]].category = category
            return
        if storage.nbytes():
            number = self.ledger.born(self._rounded(storage.nbytes()), category)
            gone = weakref.ref(storage, lambda ref: self._forget(key, ref))
            self._known[key] = (gone, number)

    def _rounded(self, size: int) -> int:
        return -(-size // self.block) * self.block

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Do not count a tensor's storage, wherever it shows up."""
        storage = tensor.untyped_storage()
        key, number = id(storage), self.ledger.born(0, "temporaries")
        self._known[key] = (weakref.ref(storage, lambda ref: self._forget(key, ref)), number)

    def _forget(self, key: int, ref: weakref.ref) -> None:
        if key in self._known and self._known[key][0] is ref:
            self.ledger.died(self._known.pop(key)[1])

    def start(self, kind: str) -> None:
        """Say that another kind of work starts: a phase, or "recompute"."""
        if kind == self.ledger.kind:
            return
        if self.device == "cuda" and PHASE_OF.get(kind, kind) != self._phase:
            self.read_allocator()
            torch.cuda.reset_peak_memory_stats()
        self.ledger.start_run(kind)

    def read_allocator(self) -> None:
        """Note CUDA's own peak since the phase started."""
        if self.device == "cuda" and self._phase in PHASES[1:]:
            now = torch.cuda.max_memory_allocated()
            self.allocator[self._phase] = max(now, self.allocator.get(self._phase, 0))

    @property
    def _phase(self) -> str:
        return PHASE_OF.get(self.ledger.kind, self.ledger.kind)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._current_graph_task_id() != -1:
            # Inside backward, autograd is on only where checkpointing computes a layer again.
            self.start("recompute" if torch.is_grad_enabled() else "backward")
        elif self._phase == "backward":
            self.start("clip")
        category = "logits and loss" if self.in_head else None
        for tensor in tensors_in((args, kwargs)):
            self.add(tensor, None)
        inside = scratch(func, args, kwargs, self.imitated)
        held = [self.ledger.born(self._rounded(size), "temporaries") for size in inside]
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._add_result(tensor, category)
        for number in held:
            self.ledger.died(number)
        return result

    def _add_result(self, tensor: torch.Tensor, category: str | None) -> None:
        before = len(self.ledger.entries)
        self.add(tensor)
        if len(self.ledger.entries) > before:
            self.ledger.entries[-1].category = category


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def static_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's tensors with their categories: parameters, buffers, what modules keep else.

    In a model that PEFT wraps, what is trained and what bears the method's prefix (lora_, say) is
    "adapters", the rest "weights". A quantized parameter's scales come with it.
    """
    wrapped = hasattr(model, "peft_config")
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if wrapped else None
    seen: set[int] = set()
    for name, module in model.named_modules():
        named = {**module._parameters, **module._buffers, **vars(module)}
        for own_name, value in named.items():
            for tensor in tensors_in(value):
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
                of_method = prefix is not None and prefix in f"{name}.{own_name}"
                category = "adapters" if wrapped and (trained or of_method) else "weights"
                yield category, tensor
                yield from ((category, part) for part in _quantization(tensor))


def _quantization(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the scales and code books that bitsandbytes keeps beside a quantized parameter."""
    state = getattr(tensor, "quant_state", None)
    for holder in (tensor, state, getattr(state, "state2", None)):
        for name in ("absmax", "code", "offset", "CB", "SCB"):
            value = getattr(holder, name, None)
            if isinstance(value, torch.Tensor):
                yield value
