"""Sparse attention's kernels against the reference: what is indexed, what is read, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepseek.attention.index import PAGE
from deepseek.errors import BackendUnavailableError
from deepseek.kernels import reference
from deepseek.kernels.int8_cache import quantize
from deepseek.kernels.page_index import IndexCache, new_counters, stats_of
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton import sparse
from deepseek.kernels.triton.attention import paged_attention
from deepseek.kernels.triton.mla import mla_attention
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


def text_like(slots: int, heads: int, dim: int, seed: int) -> Tensor:
    """[slots, heads, dim] that drift from page to page, as keys of text do."""
    drift = randn(slots // PAGE, heads, dim, seed=seed).cumsum(0).repeat_interleave(PAGE, 0) * 0.1
    return drift + randn(slots, heads, dim, seed=seed + 1)


def check(
    case: Ragged,
    errors: tuple[float, ...],
    heads: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    tolerance: float = 0.02,
    *,
    sharpness: float = 1.5,
) -> None:
    """Outputs, relative to their length, and what is counted. ``sharpness``: how far log weights spread."""
    query_heads, kv_heads, key_dim, value_dim = heads
    layout = replace(case.layout(), errors=errors)
    query = (sharpness * randn(case.rows, query_heads + 2, key_dim, seed=1)).to(dtype)[:, :query_heads]
    keys = text_like(case.slots, kv_heads, key_dim, seed=2).to(dtype)
    values = text_like(case.slots, kv_heads, value_dim, seed=4).to(dtype)
    everything = Ragged(tuple((0, sum(sequence)) for sequence in case.sequences), case.scattered, PAGE)
    index = index_of(case, kv_heads, key_dim, value_dim, torch.device("cpu"))
    reference.index_pages(keys, values, index, everything.layout())
    here = IndexCache(*(array.to(DEVICE, copy=True) for array in (
        index.codes, index.alphas, index.key_means, index.value_means, index.scalars, index.counters
    )))  # fmt: skip
    scale = key_dim**-0.5
    expected = reference.paged_attention(query, keys, values, layout, scale, index=index)
    actual = paged_attention(query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), layout, scale, index=here)
    apart = (actual.cpu().float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    assert apart.max() < tolerance
    counted, truth = stats_of(here.counters), stats_of(index.counters)
    for name in ("outputs", "context_tokens", "dense_bytes", "pieces"):
        scaled = dtype.itemsize // 2 if name == "dense_bytes" else 1
        assert getattr(counted, name) == getattr(truth, name) * scaled, name
    shared = query_heads // kv_heads <= 16  # more heads choose in lanes of 16, not all together
    for name in ("read_tokens", "unread_weight", "estimated_error", "error_bound") if shared else ():
        assert getattr(counted, name) == pytest.approx(getattr(truth, name), rel=0.05, abs=1e-3), name


# Of pages and pieces: contexts whose middles have no page, one, sixteen and seventeen.
EDGES = [63, 383, 384, 385, 256 + 17 * 64 - 1, 256 + 17 * 64, 256 + 18 * 64, 2000]


@pytest.mark.parametrize("context", EDGES)
def test_a_row_reads_what_weighs(context: int) -> None:
    check(Ragged(((context - 1, 1),), True, PAGE), (0.05,), (3, 1, 16, 16))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.02)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    check(Ragged(((699, 1),), True, PAGE), (0.1,), (4, 2, 64, 64), dtype, tolerance)


def test_sparse_and_dense_rows_in_one_batch() -> None:
    """A dense row, a sparse one, drafts behind a row, and a prompt; keys of more than one block of codes."""
    case = Ragged(((420, 1), (600, 1), (520, 2), (0, 20)), True, PAGE)
    check(case, (0.0, 0.1, 0.02, 0.0), (8, 1, 132, 24))


def test_more_heads_than_a_lane_has() -> None:
    check(Ragged(((600, 1),), True, PAGE), (0.02,), (20, 1, 16, 16), tolerance=0.05)


def test_rows_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory holds the scratch of one row only."""
    monkeypatch.setattr(sparse, "SCRATCH_BYTES", 1)
    check(Ragged(((420, 1), (600, 1), (450, 2)), True, PAGE), (0.1, 0.1, 0.1), (2, 2, 16, 16))


@pytest.mark.parametrize("sharpness", [0.0, 8.0, 40.0])
def test_even_and_sharp_attention(sharpness: float) -> None:
    """Of equal weights next to nothing is read; where log weights spread by hundreds, pages whose codes say nothing."""
    check(Ragged(((1499, 1),), True, PAGE), (0.05,), (3, 1, 16, 16), sharpness=sharpness)


def integers(case: Ragged, heads: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """A cache of integers that look like a text's, and its scales."""
    return quantize(text_like(case.slots, heads, width, seed), torch.float32)


@pytest.mark.parametrize("latent", [False, True])
def test_int8_cache(latent: bool) -> None:
    """Of latents the keys have two scales, one for the part that is also the value."""
    case = Ragged(((699, 1), (420, 2)), True, PAGE)
    everything = Ragged(((0, 700), (0, 422)), True, PAGE).layout()
    layout = replace(case.layout(), errors=(0.1, 0.05))
    kv_heads, main, other = (1, 24, 8) if latent else (2, 16, 16)
    (first, first_scales), (second, second_scales) = (
        integers(case, kv_heads, width, seed) for width, seed in ((main, 5), (other, 50))
    )
    cache, values = (torch.cat([first, second], -1), None) if latent else (first, second)
    scales = KVScales(first_scales, second_scales)
    index, here = (index_of(case, kv_heads, cache.shape[2], main, device) for device in (torch.device("cpu"), DEVICE))
    reference.index_pages(cache, values, index, everything, scales)
    there = KVScales(*(scale.to(DEVICE) for scale in (scales.key, scales.value)))
    cache_there, values_there = (None if x is None else x.to(DEVICE) for x in (cache, values))
    assert cache_there is not None
    index_pages(cache_there, values_there, here, everything, there)
    if values is None or values_there is None:
        query = (randn(3, 4, 20, seed=1), randn(3, 4, other, seed=2))
        up = (randn(4, 20, main, seed=3) / 4, randn(4, 12, main, seed=4) / 4)
        expected = reference.mla_attention(*query, cache, *up, layout, 0.3, "auto", scales, index)
        moved = [x.to(DEVICE) for x in (*query, cache, *up)]
        actual = mla_attention(*moved, layout, 0.3, "auto", there, here)  # type: ignore[call-arg,arg-type]
    else:
        rows = randn(3, 6, main, seed=1)
        expected = reference.paged_attention(rows, cache, values, layout, 0.3, None, scales, index)
        actual = paged_attention(rows.to(DEVICE), cache_there, values_there, layout, 0.3, None, there, here)
    assert ((actual.cpu() - expected).norm(dim=-1) < 0.02 * expected.norm(dim=-1)).all()
    counted, truth = stats_of(here.counters), stats_of(index.counters)
    assert counted.dense_bytes == truth.dense_bytes
    assert counted.read_tokens == pytest.approx(truth.read_tokens, rel=0.05)
    assert counted.read_bytes == pytest.approx(truth.read_bytes, rel=0.05)
    assert truth.read_tokens < truth.context_tokens


@pytest.mark.parametrize(("page", "width", "named"), [
    (32, 16, "pages of 64 tokens for sparse attention, not 32"), (PAGE, 1040, "keys of 16 to 1024 elements"),
    (PAGE, 8, "keys of 16 to 1024 elements"),
])  # fmt: skip
def test_what_cannot_be_indexed_is_named(page: int, width: int, named: str) -> None:
    case = Ragged(((0, 70),), page=page)
    keys = randn(case.slots, 1, width)
    with pytest.raises(BackendUnavailableError, match=named):
        index_pages(keys, keys, index_of(case, 1, width, width, DEVICE), case.layout())
