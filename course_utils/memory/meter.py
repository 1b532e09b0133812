"""The meter: follows every storage that a training step allocates, on real and on fake tensors.

What some kernels allocate inside and free before they return is seen by no dispatcher; where it is
large, `scratch` knows its size.

Used by lessons: 02, 04, 05a, 06, 07, 08, 10, 11a.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils.memory.allocations import PHASE_OF, Allocations
from course_utils.memory.step_memory import ALL_PHASES

# PyTorch's CUDA allocator hands out multiples of this (kMinBlockSize in CUDACachingAllocator).
CUDA_BLOCK = 512


class MemoryMeter(TorchDispatchMode):
    """Notes every storage on one kind of device that operations allocate, and when it is freed.

    Enter it as a context. It sees what PyTorch's dispatcher sees, so real and fake tensors alike;
    what a kernel allocates inside is added where it is known (see `scratch`). It changes no result.

    `device` is the kind of device whose storages count, `simulated` the device whose kernels they
    stand for ("cuda" when a GPU's step is simulated on fake CPU tensors).
    """

    def __init__(self, device: str = "cpu", simulated: str | None = None) -> None:
        super().__init__()
        self.allocations = Allocations()
        self.device, self.simulated = device, simulated or device
        self.block = CUDA_BLOCK if self.simulated == "cuda" else 1
        self.in_head = False  # between the last hidden state and its gradient
        self.paused = False  # while what is done is no part of the step
        self.allocator: dict[str, int] = {}
        # By the id of a storage: the storage, and its number among the allocations.
        self._known: dict[int, tuple[weakref.ref, int]] = {}

    def add(self, tensor: torch.Tensor, category: str | None = None) -> None:
        """Count a tensor's storage; where it is counted already, a given category replaces the
        old."""
        if tensor.device.type != self.device:
            return
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors have none
            return
        key = id(storage)
        if key in self._known and self._known[key][0]() is storage:
            if category is not None:
                self.allocations.storages[self._known[key][1]].category = category
            return
        if storage.nbytes():
            number = self.allocations.allocated(self._rounded(storage.nbytes()), category)
            gone = weakref.ref(storage, lambda ref: self._forget(key, ref))
            self._known[key] = (gone, number)

    def _rounded(self, size: int) -> int:
        return -(-size // self.block) * self.block

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Do not count a tensor's storage, wherever it shows up."""
        storage = tensor.untyped_storage()
        key, number = id(storage), self.allocations.allocated(0, "temporaries")
        self._known[key] = (weakref.ref(storage, lambda ref: self._forget(key, ref)), number)

    def _forget(self, key: int, ref: weakref.ref) -> None:
        if key in self._known and self._known[key][0] is ref:
            self.allocations.freed(self._known.pop(key)[1])

    def start(self, kind: str) -> None:
        """Note that another kind of work starts: a phase, or "recompute"."""
        if kind == self.allocations.kind:
            return
        if self.device == "cuda" and PHASE_OF.get(kind, kind) != self._phase:
            self.read_allocator()
            torch.cuda.reset_peak_memory_stats()
        self.allocations.start_run(kind)

    def read_allocator(self) -> None:
        """Note CUDA's own peak since the phase started."""
        if self.device == "cuda" and self._phase in ALL_PHASES[1:]:
            now = torch.cuda.max_memory_allocated()
            self.allocator[self._phase] = max(now, self.allocator.get(self._phase, 0))

    @property
    def _phase(self) -> str:
        return PHASE_OF.get(self.allocations.kind, self.allocations.kind)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if in_backward():
            # Inside backward, autograd is on only where checkpointing computes a layer again.
            self.start("recompute" if torch.is_grad_enabled() else "backward")
        elif self._phase == "backward":
            self.start("clip")
        if func is torch.ops.prim.device.default:
            # Two of three calls on fake tensors ask for a device; it is known without a dispatch.
            self.add(args[0])
            return args[0].device
        category = "logits and loss" if self.in_head else None
        for tensor in tensors_in((args, kwargs)):
            self.add(tensor, None)
        inside = [
            self.allocations.allocated(self._rounded(size), "temporaries")
            for size in scratch(func, args, kwargs, self.simulated)
        ]
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._add_result(tensor, category)
        for number in inside:
            self.allocations.freed(number)
        return result

    def _add_result(self, tensor: torch.Tensor, category: str | None) -> None:
        """Count a tensor that an operation gave; a view of what is counted keeps its category."""
        before = len(self.allocations.storages)
        self.add(tensor)
        if len(self.allocations.storages) > before:
            self.allocations.storages[-1].category = category


def in_backward() -> bool:
    """Return whether autograd works on a backward pass now."""
    return torch._C._current_graph_task_id() != -1


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
    """Yield the scales and code books that bitsandbytes keeps with a quantized parameter."""
    state = getattr(tensor, "quant_state", None)
    for holder in (tensor, state, getattr(state, "state2", None)):
        for name in ("absmax", "code", "offset", "CB", "SCB"):
            value = getattr(holder, name, None)
            if isinstance(value, torch.Tensor):
                yield value


def scratch(
    func: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any], device: str
) -> list[int]:
    """Return the bytes of each buffer that a kernel allocates inside on "cpu" or "cuda".

    Only kernels are known whose buffers are as large as a layer's weights or activations:

    - bitsandbytes' 4-bit product dequantizes the weight first (bitsandbytes 0.50,
      backends/default/ops.py and backends/cuda/ops.py; on a GPU always above 1536 tokens, below
      that depending on the model of the GPU: it is counted always);
    - its 8-bit product makes an int32 result first (backends/default/ops.py);
    - flash attention's backward on a GPU adds up the query's gradient in float32 and expands the
      gradients of shared key and value heads (flash-attention, csrc/flash_attn/flash_api.cpp,
      mha_bwd).
    """
    measure = _KNOWN.get(func.name())
    return measure(args, kwargs, device) if measure else []


def _four_bit_product(args: tuple, kwargs: dict[str, Any], device: str) -> list[int]:
    inputs, shape, blocksize = args[0], args[2], args[4]
    nested = kwargs.get("absmax_8bit") is not None
    scales = [-(-prod(shape) // blocksize) * 4] * 2 if nested else []
    return [*scales, prod(shape) * inputs.dtype.itemsize]


def _eight_bit_product(args: tuple, kwargs: dict[str, Any], device: str) -> list[int]:
    inputs, weight = args[:2]
    elements = inputs.numel() // inputs.shape[-1] * weight.shape[0]
    # The int32 result becomes float16; in another dtype it is then copied once more.
    copied = kwargs.get("dtype", torch.float16) != torch.float16
    return [elements * 4, *([elements * 2] if copied else [])]


def _mixed_eight_bit_product(args: tuple, kwargs: dict[str, Any], device: str) -> list[int]:
    """On real tensors, the product of the 8-bit parts runs inside this one."""
    return _eight_bit_product(args[1:3], {"dtype": args[0].dtype}, device)


def _flash_backward(args: tuple, kwargs: dict[str, Any], device: str) -> list[int]:
    if device != "cuda":
        return []
    query, key = args[1], args[2]
    batch, heads, length, size = query.shape
    rounded, wide = -(-length // 128) * 128, -(-size // 32) * 32
    sums = [batch * heads * rounded * 4, batch * heads * rounded * wide * 4]
    shared = key.shape[1] != heads
    expanded = batch * key.shape[2] * heads * size * key.dtype.itemsize
    return [*sums, *([expanded] * 2 if shared else [])]


_KNOWN: dict[str, Callable[[tuple, dict[str, Any], str], list[int]]] = {
    "bitsandbytes::gemm_4bit": _four_bit_product,
    "bitsandbytes::int8_scaled_mm": _eight_bit_product,
    "bitsandbytes::int8_mixed_scaled_mm": _mixed_eight_bit_product,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flash_backward,
}
