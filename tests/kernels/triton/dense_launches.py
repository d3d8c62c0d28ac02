"""Launches of everything but attention at the shapes of real models, to be compiled (see :mod:`.compiling`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from deepseek.kernels.low_rank import AdapterRows, LowRankUpdates, Part
from deepseek.kernels.sampling import GREEDY
from deepseek.kernels.triton import linear, norm, quantized_moe, sampling
from deepseek.kernels.triton.activation import gated_activation, gated_activation_int8
from deepseek.kernels.triton.low_rank import low_rank
from deepseek.kernels.triton.moe import moe
from deepseek.kernels.triton.quantize import empty_int8_rows, quantize
from deepseek.kernels.triton.support import Chip
from deepseek.kernels.triton.tiles import experts_tile, float_rows_tile, int8_rows_tile, splits_for
from deepseek.kernels.triton.unpack import unpacked
from deepseek.kernels.triton.weights import Int4Weight, Int8Weight, QuantizedExperts, QuantizedWeight

H100 = Chip(132, 227 * 1024)
CPU = torch.device("cpu")


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def int8_weight(outs: int, columns: int, group: int | None = None) -> Int8Weight:
    group = group or columns
    scale = empty(columns // group, outs, dtype=torch.float32)
    return Int8Weight(empty(outs, columns, dtype=torch.int8), scale, group)


def int4_weight(outs: int, columns: int, group: int, zero_points: bool = True) -> Int4Weight:
    width = min(group, 64)
    panels = -(-columns // (2 * width))
    scale = empty(2 * panels * width // group, outs, dtype=torch.float16)
    q = empty(panels, outs, width, dtype=torch.uint8)
    steps = empty(outs, dtype=torch.float32)
    return Int4Weight(q, scale, scale.clone() if zero_points else None, steps, group, columns)


def int8_rows(rows: int, weight: QuantizedWeight, dtype: torch.dtype, bias: bool = False) -> None:
    outs, columns = weight.shape
    tile = int8_rows_tile(rows, outs, weight, H100)
    splits = splits_for(tile, rows, outs, columns, H100)
    x, b = empty_int8_rows(rows, columns, CPU), empty(outs, dtype=dtype) if bias else None
    linear.linear_int8(x, weight, b, dtype, tile=tile, splits=splits)


def w8a8(rows: int, outs: int, columns: int, dtype: torch.dtype, bias: bool = False) -> None:
    int8_rows(rows, int8_weight(outs, columns), dtype, bias)


def weight_only(rows: int, weight: QuantizedWeight, dtype: torch.dtype, bias: bool = False) -> None:
    outs, columns = weight.shape
    tile = float_rows_tile(rows, weight, H100)
    splits = splits_for(tile, rows, outs, columns, H100)
    b = empty(outs, dtype=dtype) if bias else None
    linear.linear_weight_only(empty(rows, columns, dtype=dtype), weight, b, tile=tile, splits=splits)


def experts(rows: int, count: int, choices: int, dim: int, inner: int, dtype: torch.dtype) -> None:
    gate_up = empty(count, 2 * inner, dim, dtype=dtype)
    down = empty(count, dim, inner, dtype=dtype)
    ids = torch.zeros(rows, choices, dtype=torch.int64)
    tile = experts_tile(rows * choices, count, dtype.itemsize, H100)
    moe(empty(rows, dim, dtype=dtype), gate_up, down, ids, torch.zeros(rows, choices), "silu", tile=tile)


def quantized_experts(rows: int, bits: int, dtype: torch.dtype, group: int | None = None) -> None:
    """Those of DeepSeek-V2-Lite: 64, of which 6 are chosen, 1408 wide."""
    count, choices, dim, inner = 64, 6, 2048, 1408

    def stack(outs: int, columns: int) -> QuantizedExperts:
        weight = int8_weight(count * outs, columns, group) if bits == 8 else int4_weight(count * outs, columns, 32)
        return QuantizedExperts(weight, count)

    ids = torch.zeros(rows, choices, dtype=torch.int64)
    x, weights = empty(rows, dim, dtype=dtype), torch.zeros(rows, choices)
    with patch.object(quantized_moe, "chip_of", lambda device: H100):
        moe(x, stack(2 * inner, dim), stack(dim, inner), ids, weights, "silu")


def adapters(rows: int, rank: int, count: int, dtype: torch.dtype, segments: int) -> None:
    """Of query, key and value of 7B; ``segments`` rows or parts of the batch, each with the next adapter."""
    columns, outs = (0, 3584, 4096), (3584, 512, 512)
    each = rows // segments
    own = tuple((i % count, i * each, (i + 1) * each) for i in range(segments))
    updates = LowRankUpdates(AdapterRows(own))
    for number in range(count):
        for column, width in zip(columns, outs, strict=True):
            a, b = empty(rank, 3584, dtype=dtype), empty(width, rank, dtype=dtype)
            updates.add(number, Part(column, a, b, empty(width, dtype=dtype) if number else None))
    low_rank(empty(rows, 3584, dtype=dtype), empty(rows, 4608, dtype=dtype), empty(4608, dtype=dtype), updates)


def norms(rows: int, dim: int, dtype: torch.dtype) -> None:
    x, residual, weight = empty(rows, dim, dtype=dtype), empty(rows, dim, dtype=dtype), empty(dim, dtype=dtype)
    norm.rms_norm(x, weight, 1e-6)
    norm.rms_norm_int8(x, weight, 1e-6)
    norm.add_rms_norm(x, residual, weight, 1e-6)
    norm.add_rms_norm_int8(x, residual, weight, 1e-6)
    quantize(x)


def head_norms(rows: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    norm.rms_norm(empty(rows, heads + 8, dim, dtype=dtype)[:, :heads], empty(dim, dtype=dtype), 1e-6)


def activations(rows: int, dim: int, kind: str, dtype: torch.dtype) -> None:
    gate_up = empty(rows, 2 * dim, dtype=dtype)
    gated_activation(gate_up, kind)
    gated_activation_int8(gate_up, kind)


def samples(rows: int, vocab: int, dtype: torch.dtype) -> None:
    sampling.choose_tokens(empty(rows, vocab, dtype=dtype), sampling.Choices.of([GREEDY] * rows, "cpu"))


STEADY = (272, 273, 288, 303)
"""Numbers of rows for which there must be one compilation: multiples of 16, and others."""


def steady(rows: int, dtype: torch.dtype) -> None:
    """What a layer launches in steps of any size."""
    int8_rows(rows, int8_weight(4608, 3584), dtype)
    int8_rows(rows, int4_weight(4608, 3584, 32), dtype)
    norms(rows, 3584, dtype)
    activations(rows, 18944, "silu", dtype)
    quantized_experts(rows, 8, dtype)
    experts(rows, 64, 6, 2048, 1408, dtype)
    adapters(rows, 16, 1, dtype, 1)


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    yield "norms, 7B", partial(norms, 5, 3584, bf16)
    yield "norms, 405B", partial(norms, 1, 16384, fp16)
    yield "norms, 135M", partial(norms, 3, 576, fp32)
    yield "norms of heads", partial(head_norms, 3, 32, 128, bf16)
    yield "activation, 7B", partial(activations, 3, 18944, "silu", bf16)
    yield "activation, gemma", partial(activations, 3, 2048, "gelu_tanh", fp16)
    for rows in (1, 17, 64, 100, 8192):
        yield f"W8A8, {rows} rows", partial(w8a8, rows, 4608, 3584, bf16, True)
    for rows in STEADY:
        yield f"steady, {rows} rows", partial(steady, rows, bf16)
    yield "W8A8, 1 row, narrow", partial(w8a8, 1, 3584, 18944, bf16)
    yield "W8A8, 300 rows, odd sizes", partial(w8a8, 300, 1001, 577, fp16)
    for rows, group in ((1, 32), (17, 64), (64, 32), (2048, 64), (1, 128)):
        yield f"W4A16, {rows} rows, group {group}", partial(weight_only, rows, int4_weight(4608, 3584, group), bf16)
    yield "W4A16, fp16, symmetric", partial(weight_only, 16, int4_weight(37888, 3584, 32, False), fp16, True)
    for rows, group in ((17, 32), (64, 64), (300, 128), (8192, 32), (8192, 64)):
        yield f"W4A8, {rows} rows, group {group}", partial(int8_rows, rows, int4_weight(4608, 3584, group), bf16, True)
    yield "W4A8, symmetric, odd sizes", partial(int8_rows, 100, int4_weight(1001, 608, 32, False), fp16)
    yield "unpacking", partial(unpacked, int4_weight(4608, 3584, 32))
    yield "unpacking, wide groups, symmetric", partial(unpacked, int4_weight(37888, 3584, 128, False))
    yield "W8A16, 1 row", partial(weight_only, 1, int8_weight(3584, 18944), bf16)
    yield "W8A16, 16 rows, fp16", partial(weight_only, 16, int8_weight(4608, 3584), fp16, True)
    yield "W8A16, groups, 1 row", partial(weight_only, 1, int8_weight(3584, 3584, 64), bf16)
    yield "W8A16, groups, 500 rows", partial(weight_only, 500, int8_weight(576, 576, 192), bf16)
    for rows in (1, 400, 3000):
        yield f"deepseek-v2-lite experts, {rows} rows", partial(experts, rows, 64, 6, 2048, 1408, bf16)
    for rows in (1, 400, 3000):
        for bits in (8, 4):
            name = f"deepseek-v2-lite INT{bits} experts, {rows} rows"
            yield name, partial(quantized_experts, rows, bits, bf16)
    yield "INT8 experts in groups, fp16", partial(quantized_experts, 400, 8, fp16, 64)
    yield "adapters, 1 row", partial(adapters, 1, 16, 1, bf16, 1)
    yield "adapters, 64 rows of 8", partial(adapters, 64, 64, 8, fp16, 64)
    yield "adapters, 2048 rows of 2", partial(adapters, 2048, 8, 2, bf16, 2)
    yield "adapters of odd ranks", partial(adapters, 4, 5, 2, bf16, 4)
    yield "experts in fp32", partial(experts, 3, 4, 2, 96, 72, fp32)
    yield "sampling, qwen", partial(samples, 3, 152064, fp32)
    yield "sampling, bf16", partial(samples, 1, 32000, bf16)
