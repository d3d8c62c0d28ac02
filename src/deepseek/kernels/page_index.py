"""What sparse attention knows of full pages, as it is stored beside a layer's cache.

What the numbers mean is said in :mod:`deepseek.attention.index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.attention.index import PAGE, PageIndex
from deepseek.attention.stats import AttentionStats

CODE_BLOCK = 128
"""Dimensions whose signs are 16 bytes."""
CODE_BYTES = 16
SCALARS = 8
PIECE = 16
"""Pages of a context that are chosen from together."""
SCRATCH_BYTES = 2**28
"""The most memory that a layer's sparse rows take on a GPU between kernels; more rows go in turns."""
COUNTER_ROWS = 32
COUNTERS = (
    "outputs",
    "context_tokens",
    "read_tokens",
    "read_bytes",
    "dense_bytes",
    "pieces",
    "unread_weight",
    "estimated_error",
    "error_bound",
)
"""Of :class:`deepseek.attention.stats.AttentionStats`, in the order of :attr:`IndexCache.counters`."""


def code_bytes(key_dim: int) -> int:
    """Bytes of a token's code: whole blocks."""
    return -(-key_dim // CODE_BLOCK) * CODE_BYTES


def index_bytes(heads: int, key_dim: int, value_dim: int) -> int:
    """Bytes that the index of a page takes in one layer."""
    return heads * (PAGE * (code_bytes(key_dim) + 1) + key_dim + value_dim + 4 * SCALARS)


@dataclass(frozen=True, slots=True)
class IndexCache:
    """The index of P pages of H heads. Where a page has not been full yet, it holds nonsense.

    Attributes:
        codes: uint8 [P, H, 64, B]. Bit i of byte 16 j + b is the sign of rotated dimension 128 j + 16 i + b, so that
            a bit of sixteen bytes is sixteen neighbours.
        alphas: uint8 [P, H, 64], in steps.
        key_means: int8 [P, H, key_dim], in steps.
        value_means: int8 [P, H, value_dim], in steps.
        scalars: fp32 [P, H, 8]: steps of key means, of alphas and of value means; noise, variance, spread, longest,
            and the squared norm of the mean value.
        counters: fp64 [32, 9], what has been read (:data:`COUNTERS`), of all layers together. Kernels add to the rows
            by turns, so that they seldom wait for each other.
    """

    codes: Tensor
    alphas: Tensor
    key_means: Tensor
    value_means: Tensor
    scalars: Tensor
    counters: Tensor

    @classmethod
    def allocate(cls, num_pages: int, heads: int, key_dim: int, value_dim: int, counters: Tensor) -> IndexCache:
        """On the device of ``counters``."""

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(num_pages, heads, *shape, dtype=dtype, device=counters.device)

        return cls(
            codes=empty(PAGE, code_bytes(key_dim), dtype=torch.uint8),
            alphas=empty(PAGE, dtype=torch.uint8),
            key_means=empty(key_dim, dtype=torch.int8),
            value_means=empty(value_dim, dtype=torch.int8),
            scalars=empty(SCALARS, dtype=torch.float32),
            counters=counters,
        )

    @property
    def heads(self) -> int:
        return self.codes.shape[1]

    @property
    def value_dim(self) -> int:
        return self.value_means.shape[2]

    @property
    def page_bytes(self) -> int:
        return index_bytes(self.heads, self.key_means.shape[2], self.value_dim)

    def copy_page(self, source: int, target: int) -> None:
        for array in (self.codes, self.alphas, self.key_means, self.value_means, self.scalars):
            array[target] = array[source]

    def write(self, page: int, head: int, index: PageIndex) -> None:
        """Store the index of one page."""
        key_step, value_step = (mean[0].abs().amax() / 127 for mean in (index.key_mean, index.value_mean))
        alpha_step = index.alpha[0].amax() / 255
        self.codes[page, head] = _packed(index.codes[0])
        self.alphas[page, head] = _steps(index.alpha[0], alpha_step)
        self.key_means[page, head] = _steps(index.key_mean[0], key_step)
        self.value_means[page, head] = _steps(index.value_mean[0], value_step)
        square = index.value_mean[0].square().sum()
        facts = (index.noise[0], index.variance[0], index.spread[0], index.longest[0])
        self.scalars[page, head] = torch.stack([key_step, alpha_step, value_step, *facts, square])

    def read(self, pages: Sequence[int], head: int) -> PageIndex:
        """The index of ``pages``, in their order."""
        where = torch.tensor(pages, dtype=torch.int64, device=self.codes.device)
        key_step, alpha_step, value_step, noise, variance, spread, longest, _ = self.scalars[where, head].unbind(-1)
        return PageIndex(
            key_mean=self.key_means[where, head] * key_step[:, None],
            codes=_unpacked(self.codes[where, head], self.key_means.shape[2]),
            alpha=self.alphas[where, head] * alpha_step[:, None],
            noise=noise,
            variance=variance,
            value_mean=self.value_means[where, head] * value_step[:, None],
            spread=spread,
            longest=longest,
        )


def new_counters(device: torch.device) -> Tensor:
    return torch.zeros(COUNTER_ROWS, len(COUNTERS), dtype=torch.float64, device=device)


def stats_of(counters: Tensor) -> AttentionStats:
    """What was counted. Waits for the device."""
    values = dict(zip(COUNTERS, counters.sum(0).tolist(), strict=True))
    sums = {name: values.pop(name) for name in ("unread_weight", "estimated_error", "error_bound")}
    return AttentionStats(**sums, **{name: int(value) for name, value in values.items()})


def _steps(x: Tensor, step: Tensor) -> Tensor:
    return torch.where(step > 0, torch.round(x / step), x)


def _packed(codes: Tensor) -> Tensor:
    """Signs [64, D] as bits, uint8 [64, B]."""
    size = code_bytes(codes.shape[1]) * 8
    bits = torch.zeros(PAGE, size, dtype=torch.int32, device=codes.device)
    bits[:, : codes.shape[1]] = codes > 0
    shifts = torch.arange(8, dtype=torch.int32, device=codes.device)[:, None]
    return (bits.view(PAGE, -1, 8, CODE_BYTES) << shifts).sum(2).flatten(1).to(torch.uint8)


def _unpacked(codes: Tensor, dim: int) -> Tensor:
    """fp32 [P, 64, D] of 1 and -1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)[:, None]
    blocks = codes.shape[2] // CODE_BYTES
    bits: Tensor = (codes.view(len(codes), PAGE, blocks, 1, CODE_BYTES) >> shifts) & 1
    return bits.flatten(2)[..., :dim] * 2.0 - 1.0
