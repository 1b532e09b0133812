"""The quantization of the course against bitsandbytes: the same levels, codes, scales and bytes."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import load_file

from course_utils import quantization
from course_utils.paths import POCKET_MODEL

WEIGHTS = {
    name: weight.float()
    for name, weight in load_file(POCKET_MODEL / "model.safetensors").items()
    if "proj" in name
}
FOUR_BIT = ("nf4", "fp4")


def restored_by_table(packed: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """Return the weights that bitsandbytes' own codes and scales stand for.

    Not by `bnb.dequantize_4bit`: on a CPU, version 0.50 gives wrong weights wherever a row is not
    a whole number of blocks.
    """
    pairs = packed.flatten()
    codes = torch.stack([pairs >> 4, pairs & 15], dim=1).reshape(-1, state.blocksize)
    table = bnb.get_4bit_type(state.quant_type, device="cpu")
    return (table[codes.long()] * state.absmax[:, None]).view(state.shape)


@pytest.mark.parametrize("kind", FOUR_BIT)
def test_levels_are_those_of_bitsandbytes(kind: str) -> None:
    """A level that is off makes every lesson figure wrong by a little, and nothing fails."""
    theirs = bnb.get_4bit_type(kind, device="cpu").unique()  # sorted; FP4's two zeros as one
    assert torch.equal(quantization.levels(kind), theirs)


@pytest.mark.parametrize("kind", FOUR_BIT)
@pytest.mark.parametrize("block_size", [32, 64, 128, 256, 512, 1024])
def test_restored_weights_equal_those_of_bitsandbytes(kind: str, block_size: int) -> None:
    """Every matrix of the pocket model, to the bit, at each block size that its size allows."""
    for name, weight in WEIGHTS.items():
        mine = quantization.quantize(weight, kind, block_size)
        packed, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type=kind)
        assert torch.equal(mine.scales, state.absmax), name
        assert torch.equal(mine.dequantize(), restored_by_table(packed, state)), name
        if weight.shape[1] % block_size == 0:
            assert torch.equal(mine.dequantize(), bnb.dequantize_4bit(packed, state)), name
        assert mine.code_bytes == packed.nbytes
        assert mine.scale_bytes == state.absmax.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_and_sizes(dtype: torch.dtype) -> None:
    """A last block that is not full, and weights in 16 bits."""
    torch.manual_seed(0)
    weight = torch.randn(7, 100).to(dtype)
    mine = quantization.quantize(weight, "nf4", 64)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()[:700]
    assert torch.equal(mine.codes, codes)
    assert torch.equal(mine.scales, state.absmax)
    assert mine.dequantize().shape == weight.shape


def test_double_quantization_but_for_ties() -> None:
    """Bytes and most scales are equal; on a CPU bitsandbytes rounds ties on a coarser grid."""
    ties = scales = 0
    for name, weight in WEIGHTS.items():
        mine = quantization.quantize(weight, "nf4", 64, double_quant=True)
        _, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
        stored = (state.absmax, state.state2.absmax, state.offset)
        assert mine.scale_bytes == sum(tensor.nbytes for tensor in stored), name
        ties += int((mine.scales != theirs).sum())
        scales += theirs.numel()
        # A tie moves a scale by one level: never by more than a fiftieth of the largest.
        assert (mine.scales - theirs).abs().max() <= 0.02 * state.state2.absmax.max(), name
    assert ties < 0.005 * scales


def test_int8_by_rows_is_that_of_bitsandbytes_but_for_ties() -> None:
    """LLM.int8 is absmax with blocks of a row; a value between two codes may fall either way."""
    for name, weight in WEIGHTS.items():
        mine = quantization.quantize(weight, "int8", weight.shape[1])
        theirs, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        off = (mine.codes.int() - 127 - theirs.flatten().int()).abs()
        assert torch.equal(mine.scales, scales), name
        assert off.max() <= 1, name
        assert (off > 0).float().mean() < 0.01, name


def test_bits_per_parameter_follow_the_paper() -> None:
    """QLoRA, section 3: half a bit for the scales, 0.127 after double quantization."""
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    assert quantization.explore(weight).bits_per_parameter == 4.5
    double = quantization.explore(weight, double_quant=True)
    assert double.bits_per_parameter == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert quantization.explore(weight, "int8", 1024).bits_per_parameter == 8 + 32 / 1024


def test_reports_say_what_the_errors_are() -> None:
    """The error, from the restored weights; nearly every error lies within the histogram."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    report = quantization.explore(weight, "fp4", 32, double_quant=True)
    errors = quantization.quantize(weight, "fp4", 32, double_quant=True).dequantize() - weight
    assert report.rms == pytest.approx(float(errors.square().mean().sqrt()))
    assert report.relative == pytest.approx(report.rms / float(weight.square().mean().sqrt()))
    assert report.largest == float(errors.abs().max())
    assert 0.98 * weight.numel() < sum(report.counts) <= weight.numel()
    assert len(report.edges) == len(report.counts) + 1
    assert "double quantization" in str(report)
    assert "bits per parameter" in report._repr_html_()


def test_weights_that_are_all_zero_stay_so() -> None:
    """A pruned layer or a fresh bias: no division by zero."""
    report = quantization.explore(torch.zeros(4, 64), "nf4", double_quant=True)
    assert report.rms == report.relative == report.largest == 0


@pytest.mark.parametrize(
    "weight, block_size, words",
    [
        (torch.ones(4, 64), 64.0, "block size is 64.0.*as an int"),
        (torch.tensor([1.0, torch.nan, torch.inf]), 64, "2 of 3 weights are NaN or inf"),
        (torch.ones(4, 64, dtype=torch.int8), 64, "floating-point"),
        (torch.ones(0), 64, "not empty"),
    ],
)
def test_bad_input_is_named(weight: torch.Tensor, block_size: int, words: str) -> None:
    """An already quantized weight or a diverged one, in plain words."""
    for call in (quantization.quantize, quantization.explore):
        with pytest.raises(ValueError, match=words):
            call(weight, "nf4", block_size)
