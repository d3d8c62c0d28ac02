"""Experts of integers: against the values that their weights stand for, and the reference's experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels import reference
from deepseek.kernels.triton.moe import moe
from deepseek.kernels.triton.quantized_moe import moe_quantized
from deepseek.kernels.triton.weights import QuantizedExperts, pack_quantized
from deepseek.quant.schemes import quantize
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE

EXPERTS, DIM, INNER = 5, 128, 64
FORMATS = ["int8", "int8 groups", "int4", "int4 symmetric", "int4 wide groups"]

# name -> the experts of each row
CHOICES: dict[str, list[list[int]]] = {
    "one row": [[4, 1]],
    "a tile less one": [[2]] * 15,
    "a tile and one": [[2]] * 17,
    "experts without rows": [[0, 4], [4, 0], [0, 1]],
    "every expert": [[i % 5, (i + 1 + i % 4) % 5] for i in range(23)],
    "the same one twice": [[3, 3], [3, 1]],
}


def rounded(weight: Tensor, kind: str) -> QuantizedMatrix:
    if kind == "int8":
        return quantize(weight, 8)
    if kind == "int8 groups":
        return quantize(weight, 8, group=32)
    own = quantize(weight, 4)
    if kind == "int4":
        assert own.minimum is not None
        return QuantizedMatrix(4, 32, own.q, own.scale, own.minimum.half().float())
    group = 32 if kind == "int4 symmetric" else 64
    scale = own.scale.view(len(weight), -1, group // 32)[:, :, 0].contiguous()
    return QuantizedMatrix(4, group, own.q, scale, 8 * scale)


def experts(kind: str, dim: int = DIM, inner: int = INNER) -> tuple[list[QuantizedExperts], list[Tensor]]:
    """[gate and up, down], and their values [experts, outs, columns]."""
    packed, values = [], []
    for seed, (outs, columns) in enumerate([(2 * inner, dim), (dim, inner)]):
        own = [rounded(randn(outs, columns, seed=10 * seed + e) * columns**-0.5, kind) for e in range(EXPERTS)]
        stack = QuantizedExperts.like(pack_quantized(own[0], DEVICE), EXPERTS)
        for expert, matrix in enumerate(own):
            stack.put(expert, pack_quantized(matrix, DEVICE))
        assert stack.shape == (EXPERTS, outs, columns)
        packed.append(stack)
        values.append(torch.stack([matrix.dequantize(torch.float32) for matrix in own]).to(DEVICE))
    return packed, values


def rows(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.tensor(CHOICES[name])
    return randn(len(ids), DIM, seed=1, dtype=dtype).to(DEVICE), ids.to(DEVICE), randn(*ids.shape, seed=5).to(DEVICE)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", CHOICES)
def test_rows_of_floats_meet_the_weights_as_they_are(name: str, kind: str) -> None:
    x, ids, weights = rows(name)
    packed, values = experts(kind)
    actual = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=False)
    assert_same(actual, reference.moe(x, *values, ids, weights, "silu"), tolerance=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", CHOICES)
def test_rows_of_integers_are_close(name: str, kind: str) -> None:
    x, ids, weights = rows(name)
    packed, values = experts(kind)
    actual = moe_quantized(x, *packed, ids, weights, "gelu_tanh", int8_rows=True)
    expected = reference.moe(x, *values, ids, weights, "gelu_tanh")
    assert (actual - expected).norm() < 2.5e-2 * expected.norm()


@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("int8_rows", [False, True])
def test_16_bits(int8_rows: bool, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    x, ids, weights = rows("every expert", dtype)
    packed, values = experts(kind)
    actual = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=int8_rows)
    expected = reference.moe(x.float(), *values, ids, weights, "silu")
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < (tolerance + 2.5e-2 * int8_rows) * expected.norm()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("count", [84, 85, 330])
def test_many_rows_become_integers(count: int, kind: str) -> None:
    """Up to an average of 16 rows an expert they stay floats; above, tiles grow with the average."""
    x, weights = randn(count, DIM, seed=1).to(DEVICE), torch.ones(count, 1, device=DEVICE)
    ids = (torch.arange(count) % EXPERTS)[:, None].to(DEVICE)
    packed, values = experts(kind)
    actual = moe(x, *packed, ids, weights, "silu")
    forced = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=count >= 85)
    assert torch.equal(actual, forced)
    expected = reference.moe(x, *values, ids, weights, "silu")
    assert (actual - expected).norm() < (2.5e-2 if count >= 85 else 1e-4) * expected.norm()


@pytest.mark.parametrize("int8_rows", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_depends_on_nothing_around_it(kind: str, int8_rows: bool) -> None:
    x, ids, weights = rows("every expert")
    packed, _ = experts(kind)
    clean = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=int8_rows)
    for row in (0, 7, 22):
        part = slice(row, row + 1)
        alone = moe_quantized(x[part], *packed, ids[part], weights[part], "silu", int8_rows=int8_rows)
        assert torch.equal(alone, clean[part])
    x[3, 4] = float("nan")
    actual = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=int8_rows)
    assert actual[3].isnan().all()
    actual[3] = clean[3]
    assert torch.equal(actual, clean)


@pytest.mark.parametrize("dim,inner", [(32, 32), (160, 96)])
def test_widths_that_do_not_fill_panels(dim: int, inner: int) -> None:
    packed, values = experts("int4", dim, inner)
    x, ids, weights = (
        randn(7, dim, seed=1).to(DEVICE),
        torch.tensor([[4, 2]] * 7).to(DEVICE),
        torch.ones(7, 2).to(DEVICE),
    )
    expected = reference.moe(x, *values, ids, weights, "silu")
    assert_same(moe_quantized(x, *packed, ids, weights, "silu", int8_rows=False), expected, tolerance=1e-4)
    close = moe_quantized(x, *packed, ids, weights, "silu", int8_rows=True)
    assert (close - expected).norm() < 2.5e-2 * expected.norm()


def test_slices_of_wider_tensors() -> None:
    x, ids, weights = rows("every expert")
    packed, _ = experts("int8")
    expected = moe(x, *packed, ids, weights, "silu")
    x, ids, weights = (torch.cat([t, t], dim=1)[:, : t.shape[1]] for t in (x, ids, weights))
    assert torch.equal(moe(x, *packed, ids, weights, "silu"), expected)


def test_no_rows() -> None:
    x, ids, weights = rows("one row")
    packed, _ = experts("int8")
    assert moe(x[:0], *packed, ids[:0], weights[:0], "silu").shape == (0, DIM)
