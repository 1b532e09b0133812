"""What some kernels allocate inside and free before they return: no dispatcher sees it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch


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
