"""Triton's kernels by themselves at the shapes of real models: right, next to the reference, and how fast.

The tests of :mod:`tests.kernels.triton` cover every case at small sizes; here are large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.low_rank import AdapterRows, LowRankUpdates, Part
from deepseek.kernels.triton.linear import linear, linear_int8, linear_weight_only
from deepseek.kernels.triton.low_rank import low_rank
from deepseek.kernels.triton.moe import moe
from deepseek.kernels.triton.quantize import quantize as quantize_rows
from deepseek.kernels.triton.weights import QuantizedExperts, QuantizedWeight, pack_quantized
from deepseek.quant.schemes import quantize

CHECKED_ROWS = 16
"""Rows that the slow reference computes of a large batch: rows do not depend on each other."""


@dataclass(frozen=True)
class KernelCase:
    """One kernel at one size.

    Attributes:
        run: one call; returns its result.
        expected: fp32, of the first rows of the result.
        limit: of the norm of their difference over that of ``expected``.
        operations: of one call, 0 where memory is what counts.
        bytes: of weights that one call reads.
    """

    name: str
    run: Callable[[], Tensor]
    expected: Tensor
    limit: float
    operations: float = 0.0
    bytes: float = 0.0

    def error(self) -> float:
        """Of the first rows. A result that is not finite is infinitely wrong."""
        actual = self.run()[: len(self.expected)].float()
        if not bool(actual.isfinite().all()):
            return float("inf")
        return float((actual - self.expected).norm() / self.expected.norm())


@dataclass(frozen=True)
class Sizes:
    """Of dense layers [outs, columns]; of experts count, chosen, width and inner width; of adapters rank and number."""

    dense: tuple[int, int] = (4608, 3584)
    rows: tuple[int, ...] = (1, 64, 512, 8192)
    experts: tuple[int, int, int, int] = (64, 6, 2048, 1408)
    expert_rows: tuple[int, ...] = (1, 64, 4096)
    rank: int = 16
    adapters: int = 8
    adapted_rows: tuple[int, ...] = (1, 64, 2048)


def kernel_cases(device: str, sizes: Sizes, dtype: torch.dtype = torch.bfloat16) -> Iterator[KernelCase]:
    """All of them, one after another, so that memory holds the weights of few."""
    yield from _dense(device, sizes, dtype)
    for bits in (8, 4):
        yield from _experts(device, sizes, dtype, bits)
    yield from _adapters(device, sizes, dtype)


def _random(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device).mul_(shape[-1] ** -0.5).to(dtype)


def _dense(device: str, sizes: Sizes, dtype: torch.dtype) -> Iterator[KernelCase]:
    outs, columns = sizes.dense
    plain = _random(outs, columns, device=device, dtype=dtype)
    int8, int4 = (pack_quantized(quantize(plain, bits), device) for bits in (8, 4))
    for rows in sizes.rows:
        x = torch.randn(rows, columns, device=device).to(dtype)
        forms: list[tuple[str, QuantizedWeight | Tensor, Callable[[], Tensor], float]] = [
            ("bf16", plain, partial(linear, x, plain), 1e-2),
            ("W8A16", int8, partial(linear_weight_only, x, int8, None), 1e-2),
            ("W8A8", int8, lambda x=x: linear_int8(quantize_rows(x), int8, None, dtype), 3e-2),  # type: ignore[misc]
            ("W4A16", int4, partial(linear_weight_only, x, int4, None), 1e-2),
            ("W4A8", int4, lambda x=x: linear_int8(quantize_rows(x), int4, None, dtype), 3e-2),  # type: ignore[misc]
            ("INT4, as chosen", int4, partial(linear, x, int4), 3e-2),
        ]
        for form, weight, run, limit in forms:
            values = weight.float() if isinstance(weight, Tensor) else weight.dequantize()
            expected = F.linear(x[:CHECKED_ROWS].float(), values)
            operations = 2.0 * rows * outs * columns
            yield KernelCase(f"{form}, {rows} rows", run, expected, limit, operations, weight.nbytes)


def _experts(device: str, sizes: Sizes, dtype: torch.dtype, bits: int) -> Iterator[KernelCase]:
    count, chosen, dim, inner = sizes.experts
    gate_up, gate_up_values = _stack(count, 2 * inner, dim, device, dtype, bits)
    down, down_values = _stack(count, dim, inner, device, dtype, bits)
    weight_bytes = gate_up.matrix.nbytes + down.matrix.nbytes
    for rows in sizes.expert_rows:
        x = torch.randn(rows, dim, device=device).to(dtype)
        ids = torch.rand(rows, count, device=device).topk(chosen).indices
        weights = torch.full((rows, chosen), 1 / chosen, device=device)
        few = slice(0, CHECKED_ROWS)
        expected = reference.moe(x[few].float(), gate_up_values, down_values, ids[few], weights[few], "silu")
        operations = 6.0 * rows * chosen * dim * inner
        used = min(1.0, rows * chosen / count)
        run = partial(moe, x, gate_up, down, ids, weights, "silu")
        yield KernelCase(f"INT{bits} experts, {rows} rows", run, expected, 4e-2, operations, used * weight_bytes)
        if bits == 8:
            run = partial(moe, x, gate_up_values, down_values, ids, weights, "silu")
            used *= gate_up_values.nbytes + down_values.nbytes
            yield KernelCase(f"bf16 experts, {rows} rows", run, expected, 2e-2, operations, used)


def _stack(
    count: int, outs: int, columns: int, device: str, dtype: torch.dtype, bits: int
) -> tuple[QuantizedExperts, Tensor]:
    """Random experts, and their values [count, outs, columns]."""
    values = torch.empty(count, outs, columns, dtype=dtype, device=device)
    stack: QuantizedExperts | None = None
    for expert in range(count):
        own = pack_quantized(quantize(_random(outs, columns, device=device, dtype=dtype), bits), device)
        stack = stack or QuantizedExperts.like(own, count)
        stack.put(expert, own)
        values[expert] = own.dequantize()
    assert stack is not None
    return stack, values


def _adapters(device: str, sizes: Sizes, dtype: torch.dtype) -> Iterator[KernelCase]:
    outs, columns = sizes.dense
    for rows in sizes.adapted_rows:
        count = min(rows, sizes.adapters)
        each = rows // count
        updates = LowRankUpdates(AdapterRows(tuple((n, n * each, (n + 1) * each) for n in range(count))))
        for number in range(count):
            a = _random(sizes.rank, columns, device=device, dtype=dtype)
            updates.add(number, Part(0, a, _random(outs, sizes.rank, device=device, dtype=dtype), None))
        x = torch.randn(rows, columns, device=device).to(dtype)
        y = torch.randn(rows, outs, device=device).to(dtype)
        expected = y.float()
        reference.low_rank(x, expected, None, updates)

        def run(x: Tensor = x, y: Tensor = y, updates: LowRankUpdates = updates) -> Tensor:
            own = y.clone()
            low_rank(x, own, None, updates)
            return own

        read = float(sum(part.a.nbytes + part.b.nbytes for own in updates.parts.values() for part in own))
        operations = 2.0 * rows * sizes.rank * (outs + columns)
        yield KernelCase(f"{count} adapters, {rows} rows, beside a copy", run, expected, 1e-2, operations, read)
