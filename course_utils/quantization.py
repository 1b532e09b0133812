"""Weights in few bits: what rounding to a table of levels, block by block, costs and saves.

Used by lessons: all.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from transformers import BitsAndBytesConfig

from course_utils.display import Result

BITS = {"nf4": 4, "fp4": 4, "int4": 4, "int8": 8}
KINDS = tuple(BITS)
# bitsandbytes quantizes the scales of 4-bit weights in blocks of this many.
SCALES_PER_BLOCK = 256


@dataclass(frozen=True)
class Quantized:
    """A tensor as codes into a table of levels, and one scale for each block of weights.

    `codes` and `scales` are flat; with double quantization the scales are those that remain after
    it. Sizes are in bytes, tables of levels left out (64 bytes, or 1 KiB for int8; 1 KiB more with
    double quantization).
    """

    kind: str
    block_size: int
    double_quant: bool
    shape: tuple[int, ...]
    codes: torch.Tensor
    scales: torch.Tensor
    code_bytes: int
    scale_bytes: int

    def dequantize(self) -> torch.Tensor:
        """Return the weights that the codes and scales stand for, in float32."""
        table = levels(self.kind).to(self.codes.device)
        values = _blocks(table[self.codes.long()], self.block_size) * self.scales[:, None]
        return values.reshape(-1)[: self.codes.numel()].reshape(self.shape)


@dataclass(frozen=True)
class QuantizationReport(Result):
    """What a quantization costs (errors) and what it takes (bytes).

    `rms` is the root mean square of the errors, `relative` the same divided by that of the weights,
    `largest` the largest error. `counts` says how many errors lie between neighbouring `edges`.
    """

    kind: str
    block_size: int
    double_quant: bool
    parameters: int
    code_bytes: int
    scale_bytes: int
    rms: float
    relative: float
    largest: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The settings in a few words."""
        double = ", double quantization" if self.double_quant else ""
        return f"{self.kind}, blocks of {self.block_size}{double}"

    @property
    def bytes(self) -> int:
        """Codes and scales together, in bytes."""
        return self.code_bytes + self.scale_bytes

    @property
    def bits_per_parameter(self) -> float:
        """Bits for each weight, its share of the scales included."""
        return 8 * self.bytes / self.parameters

    def headers(self) -> tuple[str, str]:
        return ("", "measured")

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("quantization", self.name),
            ("parameters", f"{self.parameters:,}"),
            ("codes", f"{self.code_bytes:,} bytes"),
            ("scales", f"{self.scale_bytes:,} bytes"),
            ("bits per parameter", f"{self.bits_per_parameter:.3f}"),
            ("RMS error", f"{self.rms:.3g}, {self.relative:.2%} of the weights' own"),
            ("largest error", f"{self.largest:.3g}"),
        ]


def checked_arguments(**arguments: Any) -> dict[str, Any]:
    """Return the arguments, for `BitsAndBytesConfig(**arguments)`, if it takes them as they are.

    It drops a name that it does not know silently, quantizes nothing where no width is given,
    and of a wrong value says much later only that the conversion of the weights failed.

    Raises:
        ValueError: with all that is wrong.
    """
    known = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    wrong = []
    kind = arguments.get("bnb_4bit_quant_type", "nf4")
    if kind not in ("nf4", "fp4"):
        wrong.append(f"bnb_4bit_quant_type is {kind!r}. Allowed are nf4 and fp4. Give 'nf4'.")
    for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        dtype = arguments.get(name)
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            wrong.append(
                f"{name} is {dtype!r}. Allowed is a dtype of torch or its name. Give 'bfloat16', "
                "or 'float16' where the GPU has no bfloat16."
            )
    if not (arguments.get("load_in_4bit") or arguments.get("load_in_8bit")):
        wrong.append(
            "No width is given, so nothing would be quantized. Allowed is one of load_in_4bit=True "
            "and load_in_8bit=True. Add it."
        )
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"Write {close[0]}." if close else "Take it out."
            wrong.append(
                f"BitsAndBytesConfig has no {name}, and would drop it silently. {meant} "
                f"Allowed are {', '.join(known)}."
            )
    if wrong:
        raise ValueError("\n".join(wrong))
    return arguments


def levels(kind: str) -> torch.Tensor:
    """Return the values that a code can stand for, in rising order, the largest being 1.

    "nf4": quantiles of the normal distribution (QLoRA, arXiv 2305.14314, section 3). "fp4": a
    sign, two bits of exponent and one of mantissa, with the values of bitsandbytes; its two zeros
    are one level here. "int4" and "int8": evenly spaced, -7 to 7 and -127 to 127.

    Raises:
        ValueError: if there is no such kind.
    """
    _require_kind(kind)
    if kind == "nf4":
        # Half-way between 1 - 1/30 and 1 - 1/32, cut to the digits that bitsandbytes has.
        outer = 0.9677083
        quantile = NormalDist().inv_cdf
        positive = [quantile(p) for p in torch.linspace(outer, 0.5, 9)[:-1].tolist()]
        negative = [-quantile(p) for p in torch.linspace(outer, 0.5, 8)[:-1].tolist()]
        values = torch.tensor(sorted([*negative, 0.0, *positive]))
    elif kind == "fp4":
        positive = [0.0625, *(2.0**e * m for e in (1, 2, 3) for m in (1, 1.5))]
        values = torch.tensor(sorted([*(-v for v in positive), 0.0, *positive]))
    else:
        top = 7 if kind == "int4" else 127
        values = torch.arange(-top, top + 1, dtype=torch.float32)
    return values / values.max()


def quantize(
    weights: torch.Tensor, kind: str = "nf4", block_size: int = 64, double_quant: bool = False
) -> Quantized:
    """Return the weights as codes: in each block, the level nearest to weight / largest weight.

    Blocks run along the rows, as in bitsandbytes. With `double_quant` the scales, less their mean,
    are quantized too, to 8 bits in blocks of 256 (QLoRA, section 3); bitsandbytes does so for 4-bit
    weights alone, here it works for every kind.

    Raises:
        ValueError: if the kind is not known, the block size is not a whole number from 1 on, or the
            weights are none, of integers, infinite or NaN.
    """
    _require_kind(kind)
    sound_size = type(block_size) is int and block_size >= 1
    if not sound_size or not weights.is_floating_point() or not weights.numel():
        raise ValueError(
            f"The block size is {block_size!r}, the weights are {weights.numel()} of "
            f"{weights.dtype}. Blocks have 1 weight or more, as an int; weights are floating-point "
            "and not empty. bitsandbytes uses blocks of 64; pass a layer's weight."
        )
    flat = weights.detach().float().reshape(-1)
    odd = flat.numel() - int(flat.isfinite().sum())
    if odd:
        raise ValueError(
            f"{odd} of {flat.numel()} weights are NaN or infinite in float32. Allowed are finite "
            "weights: one that is not would spoil its whole block. Look for where the training "
            "diverged, or load the weights again."
        )
    codes, scales = _to_levels(flat, levels(kind).to(flat.device), block_size)
    scale_bytes = 4 * scales.numel()
    if double_quant:
        mean = scales.mean()
        table = _dynamic_levels().to(flat.device)
        inner, outer = _to_levels(scales - mean, table, SCALES_PER_BLOCK)
        restored = _blocks(table[inner.long()], SCALES_PER_BLOCK) * outer[:, None]
        scale_bytes = inner.numel() + 4 * outer.numel() + 4  # and the mean
        scales = restored.reshape(-1)[: inner.numel()] + mean
    return Quantized(
        kind, block_size, double_quant, tuple(weights.shape), codes, scales,
        (BITS[kind] * codes.numel() + 7) // 8, scale_bytes,
    )  # fmt: skip


def explore(
    weights: torch.Tensor,
    kind: str = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
    bins: int = 61,
) -> QuantizationReport:
    """Return what quantizing the weights so costs and saves; `plots.quantization_errors` draws it.

    Raises:
        ValueError: as `quantize` does.
    """
    small = quantize(weights, kind, block_size, double_quant)
    exact = weights.detach().float()
    errors = small.dequantize() - exact
    rms, size = (float(t.square().mean().sqrt()) for t in (errors, exact))
    reach = 4 * rms or 1.0  # no error at all: a histogram still needs a width
    counts = torch.histc(errors, bins=bins, min=-reach, max=reach)
    return QuantizationReport(
        kind, block_size, double_quant, errors.numel(), small.code_bytes, small.scale_bytes,
        rms, rms / size if size else 0.0, float(errors.abs().max()),
        tuple(torch.linspace(-reach, reach, bins + 1).tolist()), tuple(map(int, counts.tolist())),
    )  # fmt: skip


def _to_levels(
    flat: torch.Tensor, table: torch.Tensor, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest level of each value divided by its block's largest, and the largest."""
    blocks = _blocks(flat, block_size)
    scales = blocks.abs().amax(1)
    # Times the reciprocal, as bitsandbytes has it: a division rounds differently once in a while.
    shares = (blocks * (1 / scales.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    codes = torch.bucketize(shares, (table[1:] + table[:-1]) / 2)
    return codes.reshape(-1)[: flat.numel()].to(torch.uint8), scales


def _blocks(flat: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return a flat tensor as rows of a block each, the last filled with zeros."""
    return F.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def _dynamic_levels() -> torch.Tensor:
    """Return the 256 levels of the dynamic data type, finer near zero (arXiv 2110.02861)."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map()


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(
            f"There is no kind of quantization called {kind!r}. Allowed: {', '.join(KINDS)}. "
            "Choose one; QLoRA's is nf4."
        )
