"""Make a step on fake CPU tensors allocate what it would on real ones, or on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

_attention = torch.nn.functional.scaled_dot_product_attention
_random = torch.rand
_layer_norm = torch.nn.functional.layer_norm
_grouped_mm = torch.nn.functional.grouped_mm


class LibraryChanged(RuntimeError):
    """A library no longer has a name on which the prediction leans."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _true(*args: Any, **kwargs: Any) -> bool:
    return True


def _gpu_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """Dropout as on a GPU, which keeps a byte an element for the mask; a CPU keeps a number."""
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _gpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as on a GPU: dropout needs no memory in the fused kernels, and in float32 with
    shared key and value heads only the unfused path is left (see the function's documentation)."""
    half = query.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    with ExitStack() as stack:
        if enable_gqa and not half:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return _attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def _gpu_layer_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Layer norm as on a GPU, where autocast computes it in float32."""
    if torch.is_autocast_enabled("cpu"):
        input = input.float()
        weight, bias = (t if t is None else t.float() for t in (weight, bias))
    return _layer_norm(input, normalized_shape, weight, bias, eps)


def _gpu_int8_matmul(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor | None = None,
    state: Any = None,
    threshold: float = 0.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """bitsandbytes' 8-bit product as on a GPU; on a CPU it dequantizes the weights in training."""
    from bitsandbytes.autograd._functions import MatMul8bitLt

    if threshold > 0.0:
        state.threshold = threshold
    return MatMul8bitLt.apply(A, B, out, bias, state)


def _int8_quantize(A: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Quantize as if there were no outliers: how many there are depends on the values."""
    rows = A.numel() // A.shape[-1]
    outliers = A.new_empty(0, dtype=torch.int64) if threshold > 0 else None
    return A.new_empty(A.shape, dtype=torch.int8), A.new_empty(rows, dtype=torch.float32), outliers


def _int8_product(
    A: torch.Tensor, CA: torch.Tensor, CB: torch.Tensor, *rest: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scale_a, scale_b, _, bias = (*rest, None)[:4]
    product = torch.ops.bitsandbytes.int8_scaled_mm.default
    return product(CA, CB, scale_a, scale_b, bias=bias, dtype=A.dtype), A.new_empty(0)


class _GroupedProduct(torch.autograd.Function):
    """A product of each group of rows with its expert's matrix: shapes only."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, matrices)
        return rows.new_empty(len(rows), matrices.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(t.new_empty(t.shape) if needed else None for t, needed in pairs)


def _grouped_product(
    rows: torch.Tensor, matrices: torch.Tensor, *, offs: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of mixtures of experts; PyTorch's own knows no shapes but for bfloat16."""
    if rows.dtype == torch.bfloat16:
        return _grouped_mm(rows, matrices, offs=offs)
    return _GroupedProduct.apply(rows, matrices)


def _rand(*size: Any, **options: Any) -> torch.Tensor:
    """A single random number, with which some adapters toss a coin, keeps its value: the middle."""
    return torch.tensor([0.5]) if size == (1,) and not options else _random(*size, **options)


_ALWAYS = [
    # Under fake tensors, transformers would build a mask that it does not build otherwise.
    ("transformers.masking_utils", "find_packed_sequence_indices", _nothing),
    ("torch.nn.functional", "grouped_mm", _grouped_product),
    ("torch", "rand", _rand),
]
_GPU = [
    ("torch.nn.functional", "dropout", _gpu_dropout),
    ("torch.nn.functional", "scaled_dot_product_attention", _gpu_attention),
    ("torch.nn.functional", "layer_norm", _gpu_layer_norm),
    # On a GPU, TRL's fused loss folds its tiles in kernels that allocate nothing, and scores only
    # the positions that have a label, which it copies out first.
    ("trl.kernels.chunked_logprob", "_forward_tile", _nothing),
    ("trl.kernels.chunked_logprob", "_backward_tile", _nothing),
    ("trl.kernels.chunked_logprob", "_addmm_fp32", _nothing),
    ("trl.trainer.utils", "_use_triton", _true),
    ("bitsandbytes", "matmul", _gpu_int8_matmul),
    ("bitsandbytes.functional", "int8_vectorwise_quant", _int8_quantize),
    ("torch.ops.bitsandbytes", "int8_mixed_scaled_mm", _int8_product),
]


class NoValues(TorchDispatchMode):
    """Answers what a step asks of values, which fake tensors do not have.

    A selection by a mask takes everything; a test ("is any of them infinite?") says no; a whole
    number is 0. A float that is asked for still fails: nothing sensible can be said of it.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype in _WHOLE:
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


_WHOLE = (torch.bool, torch.int64, torch.int32)


@contextmanager
def imitate(device: str) -> Iterator[None]:
    """Run what is inside as on real tensors of a device ("cpu" or "cuda").

    Raises:
        LibraryChanged: if a library no longer has a name that is replaced here.
    """
    with ExitStack() as stack:
        for module, name, replacement in [*_ALWAYS, *(_GPU if device == "cuda" else [])]:
            stack.enter_context(_replaced(module, name, replacement))
        stack.enter_context(NoValues())
        yield


def _replaced(module: str, name: str, replacement: Callable[..., Any]) -> Any:
    library = module.split(".")[0]
    try:
        if module == "torch.ops.bitsandbytes":
            owner = torch.ops.bitsandbytes
        else:
            owner = importlib.import_module(module)
        getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise LibraryChanged(
            f"{library} {metadata.version(library)} has no {module}.{name}, on which the "
            "prediction leans. Allowed are the versions in constraints.txt. Run: pip install -r "
            "requirements.txt -c constraints.txt"
        ) from error
    return patch.object(owner, name, replacement)
