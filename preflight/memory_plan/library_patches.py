"""What is replaced in the libraries while a step runs on fake tensors, and private names of theirs.

The passes run the libraries' own code on CPU tensors without values. Where that would allocate
something else than a GPU, or than real tensors, a function is replaced, for the time of the run;
the docstring of each replacement says why. A library can change such a function with any version,
so its parameters are compared with those that were seen. All of it is in this module.

Used by lessons: 02, 04, 05a, 07, 08, 10.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pkgutil import resolve_name
from traceback import walk_tb
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# The versions with which all below was last looked at; those of constraints.txt.
SEEN = {
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
}
ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class LibraryChanged(RuntimeError):
    """A library is no longer what the prediction relies on: a name, or its parameters."""

    def __init__(self, library: str, problem: str) -> None:
        super().__init__(
            f"{library} {metadata.version(library)} {problem}. The prediction of memory relies on "
            f"it as it is in {library} {SEEN[library]}. Allowed are the versions in "
            "constraints.txt. Run: pip install -r requirements.txt -c constraints.txt"
        )


@dataclass(frozen=True)
class Name:
    """A function of a library by its path, with what replaces it and its parameters.

    A replacement takes the original before the parameters that were seen. `parameters` is for those
    that look at none; where nothing is replaced, it has the ones that are used.
    """

    path: str
    replacement: Callable[..., Any] | None = None
    parameters: str = ""

    def check(self) -> None:
        """Raise LibraryChanged if the name is gone, or has other parameters."""
        first = self.path.removeprefix("torch.ops.").partition(".")[0]
        library = first if first in SEEN else "torch"
        try:
            found = resolve_name(self.path)
        except (ImportError, AttributeError) as error:
            raise LibraryChanged(library, f"has no {self.path}") from error
        seen = self.parameters.split() or _parameters(self.replacement)[1:]
        now = _parameters(found)
        same = seen == now if self.replacement else set(seen) <= set(now)
        if seen and now and not same:
            raise LibraryChanged(
                library,
                f"has changed {self.path}: its parameters are ({', '.join(now)}), where "
                f"({', '.join(seen)}) are expected",
            )


def _parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters; none where it takes any, or does not say."""
    if inspect.isbuiltin(function):  # Python knows no parameters of it, but its operator does
        function = getattr(torch.ops.aten, function.__name__, None)
    schema = getattr(getattr(function, "default", None), "_schema", None)
    if schema is not None:
        return [argument.name for argument in schema.arguments]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [] if any(p.kind in ANY_NUMBER for p in parameters) else [p.name for p in parameters]


def _no_packing(original: Any, position_ids: torch.Tensor) -> None:
    """No rows are packed: under fake tensors, transformers would build a mask for them that it does
    not build otherwise."""


def _no_padding(
    original: Any,
    padding_mask: torch.Tensor | None,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    local_attention_size: int | None = None,
) -> bool:
    """Rows are equally long: transformers would see in the mask's values that it masks nothing, and
    leave it out."""
    return original(None, q_length, kv_length, q_offset, kv_offset, local_attention_size)


def _grouped_mm(
    original: Any,
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    *,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The product of mixtures of experts; PyTorch's own knows no shapes but for bfloat16."""
    if mat_a.dtype == torch.bfloat16:
        return original(mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)
    return _GroupedProduct.apply(mat_a, mat_b)


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


def _rand(original: Any, *size: Any, **options: Any) -> torch.Tensor:
    """A single random number, with which some adapters toss a coin, keeps its value: the middle."""
    return torch.tensor([0.5]) if size == (1,) and not options else original(*size, **options)


def _dropout(
    original: Any,
    input: torch.Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    """Dropout as on a GPU, which keeps a byte an element for the mask; a CPU keeps a number."""
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _attention(
    original: Any,
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
        return original(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def _layer_norm(
    original: Any,
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
    return original(input, normalized_shape, weight, bias, eps)


def _fused_loss_kernel(original: Any, *args: Any, **options: Any) -> None:
    """On a GPU, TRL's fused loss folds its tiles in kernels that allocate nothing."""


def _use_triton(original: Any, device: torch.device) -> bool:
    """On a GPU, TRL scores only the positions that have a label, which it copies out first."""
    return True


def _int8_matmul(
    original: Any,
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


def _int8_quantize(
    original: Any, A: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Quantize as if there were no outliers: how many there are depends on the values."""
    rows = A.numel() // A.shape[-1]
    outliers = A.new_empty(0, dtype=torch.int64) if threshold > 0 else None
    return A.new_empty(A.shape, dtype=torch.int8), A.new_empty(rows, dtype=torch.float32), outliers


def _int8_product(
    original: Any,
    A: torch.Tensor,
    CA: torch.Tensor,
    CB: torch.Tensor,
    SCA: torch.Tensor,
    SCB: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product without the part of the outliers, of which there are none."""
    product = torch.ops.bitsandbytes.int8_scaled_mm.default
    return product(CA, CB, SCA, SCB, bias=bias, dtype=A.dtype), A.new_empty(0)


def _fp8_linear(
    original: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    weight_scale_inv: torch.Tensor,
    block_size: list[int] | None = None,
    bias: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    allow_deepgemm: bool = True,
) -> torch.Tensor:
    """The product with weights in FP8, which is a GPU's: its kernel allocates the result alone."""
    return input.new_empty(*input.shape[:-1], len(weight))


def _fp8_grouped_matmul(
    original: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    weight_scale_inv: torch.Tensor,
    offsets: torch.Tensor,
    tokens_per_expert: torch.Tensor,
    block_size: list[int] | None,
) -> torch.Tensor:
    """The same for the experts of a mixture."""
    return input.new_empty(len(input), weight.shape[1])


ALWAYS = (
    Name("transformers.masking_utils.find_packed_sequence_indices", _no_packing),
    Name("torch.nn.functional.grouped_mm", _grouped_mm),
    Name("torch.rand", _rand),
    Name("transformers.integrations.finegrained_fp8.fp8_linear", _fp8_linear),
    Name("transformers.integrations.finegrained_fp8.fp8_grouped_matmul", _fp8_grouped_matmul),
)
ON_GPU = (
    Name("torch.nn.functional.dropout", _dropout),
    Name("torch.nn.functional.scaled_dot_product_attention", _attention),
    Name("torch.nn.functional.layer_norm", _layer_norm),
    Name(
        "trl.kernels.chunked_logprob._forward_tile",
        _fused_loss_kernel,
        "tile tile_stride targets running_max sum_exp x_sum_exp sq_sum_exp z_sum max_before_target "
        "target_logit vocab_start n_cols logit_scale softcap inv_t HAS_SOFTCAP HAS_ENTROPY "
        "HAS_LOG_SUM_SQ_PROBS HAS_MEAN_LOGITS HAS_IS_TOP1 BLOCK_SIZE",
    ),
    Name(
        "trl.kernels.chunked_logprob._backward_tile",
        _fused_loss_kernel,
        "tile tile_stride targets log_z entropy grad_logprobs grad_entropy vocab_start n_cols "
        "logit_scale softcap inv_t HAS_SOFTCAP HAS_LOGPROB_GRAD HAS_ENTROPY_GRAD BLOCK_SIZE",
    ),
    Name("trl.kernels.chunked_logprob._addmm_fp32", _fused_loss_kernel, "acc a b"),
    Name("trl.trainer.utils._use_triton", _use_triton),
    Name("bitsandbytes.matmul", _int8_matmul),
    Name("bitsandbytes.functional.int8_vectorwise_quant", _int8_quantize),
    Name("torch.ops.bitsandbytes.int8_mixed_scaled_mm", _int8_product),
)
UNPADDED = Name("transformers.masking_utils._ignore_causal_mask_sdpa", _no_padding)
# What is called as it is, and the operators that the meter's `scratch` knows by their names.
CALLED = (
    Name("accelerate.utils.operations.convert_to_fp32", None, "tensor"),
    Name("bitsandbytes.autograd._functions.MatMul8bitLt.forward", None, "A B out bias state"),
    Name(
        "bitsandbytes.functional.quantize_4bit",
        None,
        "A blocksize compress_statistics quant_type quant_storage",
    ),
    Name("bitsandbytes.functional.name2qmap"),
    Name("bitsandbytes.optim.optimizer.GlobalOptimManager.initialize", None, "self"),
    Name("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward", None, "query key"),
    Name("torch.ops.bitsandbytes.gemm_4bit", None, "A B shapeB absmax blocksize absmax_8bit"),
    Name("torch.ops.bitsandbytes.int8_scaled_mm", None, "A B row_stats col_stats bias dtype"),
    Name(
        "transformers.trainer_pt_utils.get_parameter_names",
        None,
        "model forbidden_layer_types forbidden_layer_names",
    ),
    Name("transformers.Trainer.get_optimizer_cls_and_kwargs", None, "args"),
    Name("trl.trainer.utils.add_fused_lm_head", None, "model outputs"),
)
# What the steps of two trainers call, looked at only for these: their modules load slowly.
CALLED_BY = {
    "dpo": (
        Name("trl.DPOTrainer._compute_loss", None, "self model inputs return_outputs"),
        Name("trl.trainer.utils.disable_dropout_in_model", None, "model"),
    ),
    "grpo": (
        Name("trl.GRPOTrainer._compute_loss", None, "self model inputs"),
        Name(
            "trl.GRPOTrainer._get_per_token_logps_and_entropies",
            None,
            "self model input_ids attention_mask logits_to_keep batch_size",
        ),
        Name("trl.models.utils.disable_gradient_checkpointing", None, "model"),
        Name("trl.trainer.utils.use_adapter", None, "model adapter_name"),
    ),
}


def check_libraries(device: str, trainer: str = "sft") -> None:
    """Look at all that the simulation of a trainer's step on a device ("cpu" or "cuda") relies on.

    Raises:
        LibraryChanged: if a library no longer has a name, or has changed its parameters.
    """
    for name in (*_replaced(device), UNPADDED, *CALLED, *CALLED_BY.get(trainer, ())):
        name.check()


def _replaced(device: str) -> tuple[Name, ...]:
    return (*ALWAYS, *(ON_GPU if device == "cuda" else ()))


@contextmanager
def patched(device: str, masked: bool = True) -> Iterator[None]:
    """Run what is inside with what is to be replaced for a device ("cpu" or "cuda").

    `masked` says whether attention masks that are given have something to mask.
    """
    with ExitStack() as stack:
        for name in (*_replaced(device), *(() if masked else (UNPADDED,))):
            module, _, function = name.path.rpartition(".")
            replacement = partial(name.replacement, resolve_name(name.path))
            stack.enter_context(patch.object(resolve_name(module), function, replacement))
        yield


def ready_for_fake(optimizer: Any, fake: Any, in_32_bits: list[torch.nn.Parameter]) -> None:
    """Give a bitsandbytes optimizer fake code books, and settings of its own: the manager of
    settings is shared in the whole process, by the ids of parameters.

    Raises:
        LibraryChanged: if its optimizers no longer keep these.
    """
    try:
        books = optimizer.name2qmap
        manager = type(optimizer.mng)
        optimizer.name2qmap = {name: fake.from_tensor(book) for name, book in books.items()}
        optimizer.mng = manager.__new__(manager)
        optimizer.mng.initialize()
        for parameter in in_32_bits:
            optimizer.mng.pid2config[id(parameter)] = {"optim_bits": 32}
    except AttributeError as error:
        problem = f"has changed its optimizer {type(optimizer).__name__} ({error})"
        raise LibraryChanged("bitsandbytes", problem) from error


def changed_library(error: BaseException) -> LibraryChanged | None:
    """Return what an error in a simulation means if a changed library can be its cause.

    That is so where the last library that it went through is of another version than the one seen,
    and the error one that a changed name or parameter raises.
    """
    if not isinstance(error, AttributeError | ImportError | NameError | TypeError):
        return None
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").split(".")[0] for frame in frames]
    library = next((package for package in reversed(packages) if package in SEEN), None)
    if library is None or library not in other_versions():
        return None
    return LibraryChanged(library, f"fails with {type(error).__name__}: {error}")


def other_versions() -> dict[str, str]:
    """Return the libraries that are installed in another version than the one seen."""
    installed = {name: metadata.version(name).partition("+")[0] for name in SEEN}
    return {name: version for name, version in installed.items() if version != SEEN[name]}
