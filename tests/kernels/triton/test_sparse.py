"""Sparse attention's kernels against the reference: what is indexed, what is read, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepseek.attention.index import PAGE
from deepseek.kernels import reference
from deepseek.kernels.page_index import IndexCache, new_counters
from deepseek.kernels.triton.sparse_index import index_pages
from tests.kernels.cases import Ragged, randn
from tests.kernels.triton.steps import DEVICE

# heads, kv_heads, key_dim, value_dim
HEADS = [(2, 2, 16, 16), (6, 2, 20, 12), (7, 1, 144, 130)]
FILLED = Ragged(((0, 63), (0, 64), (0, 65), (63, 1), (64, 1), (60, 150), (120, 7), (126, 3)), scattered=True, page=PAGE)


def index_of(case: Ragged, kv_heads: int, key_dim: int, value_dim: int, device: torch.device) -> IndexCache:
    """Filled with what no index holds."""
    index = IndexCache.allocate(case.slots // PAGE, kv_heads, key_dim, value_dim, new_counters(device))
    for array in (index.codes, index.alphas, index.key_means, index.value_means):
        array.fill_(77)
    index.scalars.fill_(-1.0)
    return index


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS)
def test_pages_are_indexed_when_they_are_full(heads: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    _, kv_heads, key_dim, value_dim = heads
    keys = (randn(FILLED.slots, kv_heads, key_dim, seed=1) + 3 * randn(key_dim, seed=3)).to(dtype)
    values = randn(FILLED.slots, kv_heads, value_dim, seed=2, dtype=dtype)
    expected = index_of(FILLED, kv_heads, key_dim, value_dim, torch.device("cpu"))
    actual = index_of(FILLED, kv_heads, key_dim, value_dim, DEVICE)
    reference.index_pages(keys, values, expected, FILLED.layout())
    index_pages(keys.to(DEVICE), values.to(DEVICE), actual, FILLED.layout())
    filled = (expected.scalars[:, 0, 0] >= 0).nonzero().flatten()
    assert len(filled) == 7
    assert torch.equal((actual.scalars[:, 0, 0].cpu() >= 0).nonzero().flatten(), filled)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.scalars.cpu(), expected.scalars, rtol=tolerance, atol=tolerance)
    for name in ("alphas", "key_means", "value_means"):
        apart = getattr(actual, name).cpu().int() - getattr(expected, name).int()
        assert apart.abs().max() <= (1 if dtype == torch.float32 else 2), name
        assert (apart != 0).float().mean() < (0.01 if dtype == torch.float32 else 0.2), name
    wrong = (actual.codes.cpu() ^ expected.codes).to(torch.int32)
    bits = sum(int(((wrong >> i) & 1).sum()) for i in range(8))
    assert bits < 0.01 * 8 * wrong.numel()
