"""Fake tensors: a shape, a dtype and a device, and no values; a model is made of them.

Used by lessons: 02, 04, 07, 08, 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

WHOLE_NUMBERS = (torch.bool, torch.int64, torch.int32)


@contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """Give a fake mode; the random state is afterwards what it was before.

    Warnings are for real runs: bitsandbytes says that it does not page on a CPU, say, when it is a
    GPU that is simulated.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield FakeTensorMode()


class NoValues(TorchDispatchMode):
    """Answers what a step asks of values, which fake tensors do not have.

    A selection by a mask takes everything; a test ("is any of them infinite?") says no; a whole
    number is 0. A float that is asked for still fails: nothing sensible can be said of it.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype in WHOLE_NUMBERS:
            if getattr(args[0], "constant", None) is None:  # a fake tensor may know a single value
                return False if args[0].dtype == torch.bool else 0
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if len(masks) == 1 and args[1][-1] is masks[0]:
                if func is torch.ops.aten.index_put.default:
                    return torch.empty_like(args[0])
                before, shape = len(args[1]) - 1, args[0].shape
                after = shape[before + masks[0].dim() :]
                return args[0].new_empty(*shape[:before], masks[0].numel(), *after)
        if func is torch.ops.aten.masked_select.default:
            return args[0].new_empty(args[1].numel())
        return func(*args, **(kwargs or {}))


def make_fake(model: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> None:
    """Replace every tensor that the model's modules hold by a fake CPU tensor; ties are kept."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the old one keeps its id taken

    def replace(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in made:
                made[id(value)] = (_fake(value, fake, dtype), value)
            return made[id(value)][0]
        if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return type(value)(replace(v) for v in value)
        if type(value) is dict and any(isinstance(v, torch.Tensor) for v in value.values()):
            return {key: replace(v) for key, v in value.items()}
        return value

    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in list(held.items()):
                if name not in ("_parameters", "_buffers", "_modules"):
                    held[name] = replace(value)


def _fake(tensor: torch.Tensor, fake: FakeTensorMode, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(tensor, bnb.nn.Params4bit):
        return _fake_4bit(tensor, fake, dtype)
    kind = torch.int8 if isinstance(tensor, bnb.nn.Int8Params) else tensor.dtype
    with fake:
        new = torch.empty(tensor.shape, dtype=kind)
        if not isinstance(tensor, nn.Parameter):
            return new
        parameter = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if isinstance(tensor, bnb.nn.Int8Params):
            parameter.CB, parameter.SCB = new, torch.empty(tensor.shape[0], dtype=torch.float32)
    return parameter


def _fake_4bit(weight: bnb.nn.Params4bit, fake: FakeTensorMode, dtype: torch.dtype) -> nn.Parameter:
    """Return what a 4-bit weight is once bitsandbytes has quantized it.

    Two codes to a byte; a float32 scale a block; with double quantization the scales as bytes, with
    a float32 scale for 256 of them (bitsandbytes/functional.py, quantize_4bit).
    """
    blocks = -(-weight.numel() // weight.blocksize)
    with fake:
        packed = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8)
        if weight.quant_storage.itemsize > 1:
            size = weight.quant_storage.itemsize
            packed = torch.empty(-(-len(packed) // size), 1, dtype=weight.quant_storage)
        second = offset = None
        if weight.compress_statistics:
            absmax, offset = torch.empty(blocks, dtype=torch.uint8), torch.empty(())
            second = bnb.functional.QuantState(
                absmax=torch.empty(-(-blocks // 256)),
                blocksize=256,
                code=torch.empty(256),
                dtype=torch.float32,
            )
        else:
            absmax = torch.empty(blocks)
        parameter = nn.Parameter(packed, requires_grad=False)
        parameter.quant_state = bnb.functional.QuantState(
            absmax=absmax,
            shape=weight.shape,
            code=torch.empty(16),
            blocksize=weight.blocksize,
            quant_type=weight.quant_type,
            dtype=dtype,
            offset=offset,
            state2=second,
        )
    return parameter
