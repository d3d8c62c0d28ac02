"""Matrix products with quantized weights: against exact integers, and against the values that the weights stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels import reference
from deepseek.kernels.triton import linear
from deepseek.kernels.triton.quantize import Int8Rows, quantize
from deepseek.kernels.triton.support import Chip
from deepseek.kernels.triton.tiles import Tile, int8_tile, splits_for, weight_only_tile
from deepseek.kernels.triton.unpack import unpacked
from deepseek.kernels.triton.weights import Int4Weight, Int8Weight, pack_quantized
from deepseek.quant.schemes import quantize as quantize_weight
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SMALL = Tile(16, 32, 32, warps=4, stages=2)


def integers(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator).to(DEVICE)


def int8_weight(outs: int, columns: int) -> Int8Weight:
    scale = randn(1, outs, seed=4).abs().to(DEVICE) * 1e-3
    return Int8Weight(integers(outs, columns, 2), scale, columns)


def int8_rows(rows: int, columns: int) -> Int8Rows:
    return Int8Rows(integers(rows, columns, 1), randn(rows, seed=3).abs().to(DEVICE))


def exact_w8a8(x: Int8Rows, weight: Int8Weight, bias: Tensor | None) -> Tensor:
    sums = x.q.cpu().long() @ weight.q.cpu().long().T
    result = sums.to(DEVICE).float() * x.scale[:, None] * weight.scale
    return result if bias is None else result + bias.float()


def matrix(bits: int, outs: int, columns: int, group: int, minimum: bool) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(outs + columns)
    groups = columns // group
    # Values of fp16, so that packing does not change them.
    scale = (torch.rand(outs, groups, generator=generator) * 0.1 + 0.01).half().float()
    low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
    q = torch.randint(low, high, (outs, columns), generator=generator).to(dtype)
    minima = (torch.rand(outs, groups, generator=generator)).half().float() if minimum else None
    return QuantizedMatrix(bits, group, q, scale, minima)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_floating_weights(dtype: torch.dtype, bias: bool) -> None:
    x, weight = randn(5, 33, seed=1, dtype=dtype).to(DEVICE), randn(17, 33, seed=2, dtype=dtype).to(DEVICE)
    b = randn(17, seed=3, dtype=dtype).to(DEVICE) if bias else None
    expected = reference.linear(x, weight, b)
    assert_same(linear.linear(x, linear.pack_linear(weight), b), expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 64, 65, 128, 129])
def test_w8a8_at_the_borders_of_row_tiles(rows: int) -> None:
    x, weight = int8_rows(rows, 96), int8_weight(33, 96)
    assert_same(linear.linear_int8(x, weight, None, torch.float32), exact_w8a8(x, weight, None), tolerance=1e-6)


@pytest.mark.parametrize("outs", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 96, 100])
def test_w8a8_at_the_borders_of_tiles(outs: int, columns: int) -> None:
    x, weight = int8_rows(17, columns), int8_weight(outs, columns)
    bias = randn(outs, seed=5).to(DEVICE)
    actual = linear.linear_int8(x, weight, bias, torch.float32, tile=SMALL)
    assert_same(actual, exact_w8a8(x, weight, bias), tolerance=1e-6)


def test_w8a8_does_not_depend_on_how_it_is_cut() -> None:
    x, weight = int8_rows(17, 160), int8_weight(33, 160)
    bias = randn(33, seed=5).to(DEVICE)
    whole = linear.linear_int8(x, weight, bias, torch.float32, tile=SMALL, splits=1)
    for splits in (2, 3, 5):
        assert torch.equal(linear.linear_int8(x, weight, bias, torch.float32, tile=SMALL, splits=splits), whole)
    for row in (0, 16):
        alone = Int8Rows(x.q[row : row + 1], x.scale[row : row + 1])
        assert torch.equal(linear.linear_int8(alone, weight, bias, torch.float32), whole[row : row + 1])


def test_w8a8_of_extremes() -> None:
    x = Int8Rows(torch.full((1, 4096), -127, dtype=torch.int8).to(DEVICE), torch.ones(1).to(DEVICE))
    weight = Int8Weight(torch.full((2, 4096), -128, dtype=torch.int8).to(DEVICE), torch.ones(1, 2).to(DEVICE), 4096)
    assert linear.linear_int8(x, weight, None, torch.float32).tolist() == [[127.0 * 128 * 4096] * 2]


def int4_bound(x: Int8Rows, weight: Int4Weight) -> Tensor:
    """How far rounding each weight by half a step can move each result, and fp32 a little more."""
    return 0.501 * x.dequantize().abs().sum(dim=1)[:, None] * weight.steps + 1e-5


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65])
def test_w4a8(rows: int, group: int, minimum: bool) -> None:
    own = matrix(4, 65, 3 * group, group, minimum)  # an odd number of groups: the last panel is padded
    x, weight, bias = int8_rows(rows, 3 * group), pack_quantized(own, DEVICE), randn(65, seed=3).to(DEVICE)
    assert isinstance(weight, Int4Weight)
    expected = F.linear(x.dequantize(), own.dequantize(torch.float32).to(DEVICE), bias)
    actual = linear.linear_int8(x, weight, bias, torch.float32)
    assert ((actual - expected).abs() <= int4_bound(x, weight)).all()
    assert (actual - expected).norm() < 1e-2 * expected.norm()


def test_w4a8_does_not_depend_on_how_it_is_cut() -> None:
    x, weight = int8_rows(33, 320), pack_quantized(matrix(4, 65, 320, 32, minimum=True), DEVICE)
    whole = linear.linear_int8(x, weight, None, torch.float32, splits=1)
    for tile in (Tile(16, 32, 32, warps=4, stages=2), Tile(64, 64, 32, warps=4, stages=3)):
        for splits in (1, 2, 5):
            assert torch.equal(linear.linear_int8(x, weight, None, torch.float32, tile=tile, splits=splits), whole)
    for row in (0, 32):
        alone = Int8Rows(x.q[row : row + 1], x.scale[row : row + 1])
        assert torch.equal(linear.linear_int8(alone, weight, None, torch.float32), whole[row : row + 1])


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("outs,columns,group", [(1, 32, 32), (31, 96, 32), (33, 192, 64), (65, 128, 128)])
def test_unpacked_weights_are_those_of_w4a8(outs: int, columns: int, group: int, minimum: bool) -> None:
    x, weight = int8_rows(5, columns), pack_quantized(matrix(4, outs, columns, group, minimum), DEVICE)
    assert isinstance(weight, Int4Weight)
    whole = unpacked(weight)
    assert ((whole.dequantize() - weight.dequantize()).abs() <= 0.501 * weight.steps[:, None]).all()
    expected = linear.linear_int8(x, weight, None, torch.float32)
    assert (linear.linear_int8(x, whole, None, torch.float32) - expected).norm() <= 1e-3 * expected.norm()


def test_prompts_unpack_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pack_quantized(matrix(4, 5, 32, 32, minimum=True), DEVICE)
    asked: list[int] = []
    monkeypatch.setattr(linear, "unpacked", lambda own: asked.append(1) or unpacked(own))
    for rows, times in ((511, 0), (512, 1)):
        x = randn(rows, 32, seed=1).to(DEVICE)
        expected = F.linear(x, weight.dequantize())
        assert (linear.linear(x, weight) - expected).norm() < 2e-2 * expected.norm()
        assert len(asked) == times


@pytest.mark.parametrize("low", [False, True])
def test_w4a8_of_extremes(low: bool) -> None:
    """Groups of all lowest or all highest weights keep their sign and size; an output of zeros stays zero."""
    q = torch.full((3, 64), 0 if low else 15, dtype=torch.uint8)
    scale, minimum = torch.full((3, 2), 0.5), torch.full((3, 2), 4.0)
    scale[1], minimum[1] = 0.0, 0.0
    own = pack_quantized(QuantizedMatrix(4, 32, q, scale, minimum), DEVICE)
    x = Int8Rows(torch.full((1, 64), 127, dtype=torch.int8, device=DEVICE), torch.ones(1, device=DEVICE))
    value = -4.0 if low else 3.5
    actual = linear.linear_int8(x, own, None, torch.float32)[0].tolist()
    assert actual[1] == 0.0
    assert actual[0] == actual[2] == pytest.approx(value * 127 * 64, abs=4.0 / 127 / 2 * 127 * 64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [16, 17])
def test_linear_with_int4_weights(rows: int, dtype: torch.dtype) -> None:
    """Few rows meet the weights as they are; more are INT8, and so are the weights then."""
    x, own = randn(rows, 64, seed=1, dtype=dtype).to(DEVICE), matrix(4, 40, 64, 32, minimum=True)
    weight, bias = pack_quantized(own, DEVICE), randn(40, seed=3, dtype=dtype).to(DEVICE)
    actual = linear.linear(x, weight, bias)
    few = linear.linear_weight_only(x, weight, bias)
    many = linear.linear_int8(quantize(x), weight, bias, dtype)
    assert torch.equal(actual, few if rows <= 16 else many)
    expected = F.linear(x.float(), own.dequantize(torch.float32).to(DEVICE), bias.float())
    assert (actual.float() - expected).norm() < (2e-2 if rows > 16 else TOLERANCE[dtype]) * expected.norm()


@pytest.mark.parametrize("bits,columns,group", [(4, 96, 32), (4, 192, 64), (8, 96, 32), (8, 33, 33)])
@pytest.mark.parametrize("minimum", [False, True])
def test_packed_weights_keep_their_values(bits: int, columns: int, group: int, minimum: bool) -> None:
    own = matrix(bits, 5, columns, group, minimum and bits == 4)
    packed = pack_quantized(own, DEVICE)
    assert torch.equal(packed.dequantize().cpu(), own.dequantize(torch.float32))
    arrays = [value for value in (packed.q, packed.scale, getattr(packed, "minimum", None)) if value is not None]
    assert packed.nbytes >= sum(value.nbytes for value in arrays)


def test_many_bands_of_rows() -> None:
    """More row tiles than a band has, and a last band that is not full."""
    x, weight = int8_rows(16 * 9 + 1, 32), int8_weight(65, 32)
    actual = linear.linear_int8(x, weight, None, torch.float32, tile=SMALL)
    assert_same(actual, exact_w8a8(x, weight, None), tolerance=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [16, 17])
def test_linear_with_int8_weights(rows: int, dtype: torch.dtype) -> None:
    """Few rows stay as they are; more are quantized too."""
    x, own = randn(rows, 64, seed=1, dtype=dtype).to(DEVICE), quantize_weight(randn(40, 64, seed=2), 8)
    weight = pack_quantized(own, DEVICE)
    bias = randn(40, seed=3, dtype=dtype).to(DEVICE)
    values = own.dequantize(torch.float32).to(DEVICE)
    inputs = x.float() if rows <= 16 else quantize(x).dequantize()
    expected = F.linear(inputs, values, bias.float()).to(dtype)
    assert_same(linear.linear(x, weight, bias), expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 17, 33])
def test_w4a16(rows: int, group: int, minimum: bool) -> None:
    own = matrix(4, 65, 3 * group, group, minimum)  # an odd number of groups: the last panel is padded
    x, bias = randn(rows, 3 * group, seed=1).to(DEVICE), randn(65, seed=3).to(DEVICE)
    expected = F.linear(x, own.dequantize(torch.float32).to(DEVICE), bias)
    actual = linear.linear_weight_only(x, pack_quantized(own, DEVICE), bias)
    assert_same(actual, expected, tolerance=1e-4)


@pytest.mark.parametrize("bits,group", [(4, 32), (4, 128), (8, 32), (8, 48), (8, 192), (8, 384)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 66])
def test_weight_only_in_16_bits(rows: int, dtype: torch.dtype, bits: int, group: int) -> None:
    own = matrix(bits, 33, 384, group, minimum=bits == 4)
    x = randn(rows, 384, seed=1, dtype=dtype).to(DEVICE)
    values = own.dequantize(torch.float32).to(DEVICE)
    if rows > 32:  # scales are applied to the weights, which are rounded
        values = values.to(dtype).float()
    actual = linear.linear_weight_only(x, pack_quantized(own, DEVICE), None)
    expected = (x.float() @ values.T).to(dtype)
    assert actual.dtype == dtype
    assert (actual.float() - expected.float()).norm() < (1e-2 if dtype == torch.bfloat16 else 1e-3) * expected.norm()


@pytest.mark.parametrize("bits,columns,group", [(4, 320, 32), (8, 320, 64), (8, 323, 323)])
@pytest.mark.parametrize("splits", [2, 3, 5])
def test_weight_only_in_parts(splits: int, bits: int, columns: int, group: int) -> None:
    own = matrix(bits, 33, columns, group, minimum=bits == 4)
    x, bias = randn(3, columns, seed=1).to(DEVICE), randn(33, seed=3).to(DEVICE)
    weight = pack_quantized(own, DEVICE)
    expected = F.linear(x, own.dequantize(torch.float32).to(DEVICE), bias)
    assert_same(linear.linear_weight_only(x, weight, bias, splits=splits), expected, tolerance=1e-4)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("bits,group", [(4, 32), (8, 64), (8, 128)])
def test_a_broken_row_harms_no_other(bits: int, group: int, rows: int) -> None:
    own = pack_quantized(matrix(bits, 33, 128, group, minimum=bits == 4), DEVICE)
    x = randn(rows, 128, seed=1).to(DEVICE)
    clean = linear.linear(x, own)
    x[1, 5] = float("nan")
    actual = linear.linear(x, own)
    assert actual[1].isnan().all()
    actual[1] = clean[1]
    assert torch.equal(actual, clean)


def test_a_slice_of_wider_rows() -> None:
    own = matrix(4, 20, 64, 32, minimum=True)
    x = randn(3, 100, seed=1).to(DEVICE)[:, 20:84]
    expected = F.linear(x, own.dequantize(torch.float32).to(DEVICE))
    assert_same(linear.linear(x, pack_quantized(own, DEVICE)), expected, tolerance=1e-4)


def test_no_rows() -> None:
    assert linear.linear(torch.empty(0, 64, device=DEVICE), int8_weight(5, 64)).shape == (0, 5)
    assert linear.linear_int8(int8_rows(0, 64), int8_weight(5, 64), None, torch.float32).shape == (0, 5)


@pytest.mark.parametrize(
    "own,message",
    [
        (matrix(4, 3, 48, 16, minimum=False), "groups of 16 columns have no GPU kernel; use 32, 64 or 128"),
        (matrix(8, 3, 48, 24, minimum=False), "groups of 24 columns have no GPU kernel; use a multiple of 16"),
        (matrix(8, 3, 48, 48, minimum=True), "zero points have no GPU kernel; use symmetric INT8"),
    ],
)
def test_what_cannot_be_packed(own: QuantizedMatrix, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pack_quantized(own, DEVICE)


@pytest.mark.parametrize("chip", [Chip(132, 227 * 1024), Chip(108, 163 * 1024), Chip(46, 99 * 1024)])
def test_tiles_fit_the_chip(chip: Chip) -> None:
    for rows in (1, 16, 17, 32, 33, 64, 65, 500, 8192):
        tile = int8_tile(rows, 4096, chip)
        assert (tile.rows + tile.outs) * tile.depth * tile.stages <= chip.shared_memory
        for depth, bits in ((32, 4), (64, 4), (64, 8)):
            tile = weight_only_tile(rows, depth, bits, chip)
            stage = 2 * tile.rows * depth * (8 // bits) + tile.outs * depth
            assert stage * tile.stages <= chip.shared_memory
            assert tile.stages >= 2


def test_only_few_rows_are_split() -> None:
    chip = Chip(132, 227 * 1024)
    tile = int8_tile(1, 1024, chip)
    assert splits_for(tile, 1, 1024, 16384, chip) == 8
    assert splits_for(tile, 1, 152064, 16384, chip) == 1
    assert splits_for(tile, 1, 1024, 1024, chip) == 1
    assert splits_for(int8_tile(2048, 1024, chip), 2048, 1024, 65536, chip) == 1
