"""Native attention against the reference, and its promise: a row's result has the same bits whatever else is computed,
on however many threads, on either instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.cpu.extension import native, obstacle
from deepseek.kernels.paging import PagedLayout
from tests.kernels.cases import Ragged, assert_same, randn
from tests.kernels.native_cache import NativeCache, attention, context, mla

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))

ISAS = [] if obstacle() else [isa for isa in ("avx2", "avx512") if isa in native().available_isas()]
KINDS = ["fp16", "int8"]

CASES = {
    "one token": Ragged(((0, 1),), page=16),
    "one page less one": Ragged(((0, 15),), page=16),
    "one page": Ragged(((0, 16),), page=16),
    "one page and one": Ragged(((0, 17),), page=16),
    "one larger page less one": Ragged(((0, 63),), page=64),
    "one larger page": Ragged(((0, 64),), page=64),
    "one larger page and one": Ragged(((0, 65),), page=64),
    "odd page": Ragged(((0, 50), (90, 1)), page=48),
    "page of three quarters": Ragged(((180, 20), (400, 1)), scattered=True, page=192),
    "largest page": Ragged(((250, 10), (300, 1)), page=256),
    "decode at a page's end": Ragged(((63, 1),), page=64),
    "decode at a page's start": Ragged(((64, 1),), page=64),
    "decode batch": Ragged(((15, 1), (0, 1), (70, 1), (32, 1)), scattered=True, page=16),
    "chunk behind a prefix": Ragged(((64, 33),), page=64),
    "mixed": Ragged(((40, 1), (0, 50), (20, 30), (100, 3)), scattered=True, page=16),
    "a partition's end": Ragged(((254, 1), (255, 1), (256, 1), (257, 1), (511, 2), (250, 20)), True, page=64),
}

# heads, kv_heads, key_dim, value_dim
HEADS = [
    (4, 4, 16, 16),
    (6, 2, 32, 48),
    (3, 1, 64, 64),
    (4, 2, 80, 80),
    (2, 1, 96, 32),
    (4, 1, 256, 256),
    (1, 1, 512, 512),
]


def filled(case: Ragged, kv_heads: int, key_dim: int, value_dim: int, kind: str) -> NativeCache:
    cache = NativeCache.broken(case.slots // case.page, case.page, kv_heads, key_dim, value_dim, kind)
    slots = context(case.layout())
    cache.write(randn(len(slots), kv_heads, key_dim, seed=2), randn(len(slots), kv_heads, value_dim, seed=3), slots)
    return cache


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads,kv_heads,key_dim,value_dim", HEADS)
@pytest.mark.parametrize("name", CASES)
def test_attention(name: str, heads: int, kv_heads: int, key_dim: int, value_dim: int, kind: str, isa: str) -> None:
    case = CASES[name]
    cache = filled(case, kv_heads, key_dim, value_dim, kind)
    query = randn(case.rows, heads, key_dim, seed=1)
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 0.2)
    assert_same(attention(query, cache, case.layout(), 0.2, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 60, 256, 300])
@pytest.mark.parametrize("name", ["one larger page and one", "mixed", "a partition's end"])
def test_windows(name: str, window: int, kind: str, isa: str) -> None:
    case = CASES[name]
    cache = filled(case, 2, 16, 32, kind)
    query = randn(case.rows, 6, 16, seed=1)
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 0.3, window)
    assert_same(attention(query, cache, case.layout(), 0.3, window, isa), expected)


def test_pages_before_the_window_are_not_touched() -> None:
    case = Ragged(((300, 1), (310, 5)), page=16)
    cache, layout = filled(case, 1, 16, 16, "fp16"), case.layout()
    query = randn(case.rows, 2, 16, seed=1)
    expected = attention(query, cache, layout, 0.3, 20)
    for pages in layout.pages:
        cache.keys[list(pages[:17])] = cache.values[list(pages[:17])] = np.nan
    assert same_bits(attention(query, cache, layout, 0.3, 20), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", range(1, 17))
def test_group_sizes(group: int, isa: str) -> None:
    case = Ragged(((70, 1), (3, 1), (0, 19)), page=32)
    cache = filled(case, 2, 32, 32, "fp16")
    query = randn(case.rows, 2 * group, 32, seed=1)
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 0.2)
    assert_same(attention(query, cache, case.layout(), 0.2, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_long_context(kind: str, threads: int, isa: str) -> None:
    case = Ragged(((2999, 1), (2990, 4)), scattered=True, page=64)
    cache = filled(case, 2, 32, 32, kind)
    query = randn(case.rows, 6, 32, seed=1) * 3
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 0.5)
    assert_same(attention(query, cache, case.layout(), 0.5, isa=isa, threads=threads), expected)


def sub_batch(layout: PagedLayout, sequence: int, first: int, last: int) -> PagedLayout:
    """Queries [first, last) of one sequence alone, the later ones not yet there."""
    rows = layout.query_starts[sequence + 1] - layout.query_starts[sequence]
    return PagedLayout(
        page_size=layout.page_size,
        query_starts=(0, last - first),
        context_lens=(layout.context_lens[sequence] - rows + last,),
        pages=(layout.pages[sequence],),
        write_slots=layout.write_slots[:0],
    )


INVARIANT = Ragged(((700, 1), (0, 90), (230, 61), (530, 20), (0, 1), (1300, 1)), scattered=True, page=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("heads,kv_heads", [(3, 3), (6, 2), (9, 1)])
def test_bits_depend_on_nothing_else(heads: int, kv_heads: int, window: int | None, kind: str) -> None:
    """Batch composition, chunks, threads and instruction set."""
    layout = INVARIANT.layout()
    cache = filled(INVARIANT, kv_heads, 48, 32, kind)
    query = randn(INVARIANT.rows, heads, 48, seed=1)
    whole = attention(query, cache, layout, 0.2, window)
    assert_same(whole, reference.paged_attention(query, *cache.dequantized(), layout, 0.2, window))
    for isa in ISAS:
        for threads in (1, 2, 3, 8):
            assert same_bits(attention(query, cache, layout, 0.2, window, isa, threads), whole), (isa, threads)
        for sequence in range(layout.num_sequences):
            start, stop = layout.query_starts[sequence], layout.query_starts[sequence + 1]
            for chunk in (1, 7, 16, stop - start):
                for first in range(0, stop - start, chunk):
                    last = min(first + chunk, stop - start)
                    part = sub_batch(layout, sequence, first, last)
                    rows = slice(start + first, start + last)
                    actual = attention(query[rows], cache, part, 0.2, window, isa, threads=1 + chunk % 2)
                    assert same_bits(actual, whole[rows]), (isa, sequence, chunk, first)


wide = pytest.mark.skipif(obstacle() is not None or "amx" not in native().available_isas(), reason="no matrix unit")


@wide
@pytest.mark.parametrize("heads,kv_heads,key_dim,value_dim", HEADS)
@pytest.mark.parametrize("window", [None, 20, 300])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.page % 32 == 0])
def test_wide_attention(name: str, window: int | None, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> None:
    """bf16 keeps 8 bits of queries, keys, weights and values."""
    case = CASES[name]
    cache = filled(case, kv_heads, key_dim, value_dim, "fp16")
    query = randn(case.rows, heads, key_dim, seed=1)
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 0.2, window)
    actual = attention(query, cache, case.layout(), 0.2, window, "amx", narrow_rows=0)
    assert not same_bits(actual, attention(query, cache, case.layout(), 0.2, window, "amx"))
    assert (actual - expected).norm() < 0.02 * expected.norm()


@wide
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("heads,kv_heads", [(3, 3), (6, 2), (9, 1)])
def test_wide_bits_depend_on_nothing_else(heads: int, kv_heads: int, window: int | None) -> None:
    layout = INVARIANT.layout()
    cache = filled(INVARIANT, kv_heads, 48, 32, "fp16")
    query = randn(INVARIANT.rows, heads, 48, seed=1)
    narrow = attention(query, cache, layout, 0.2, window, "amx")
    whole = attention(query, cache, layout, 0.2, window, "amx", narrow_rows=0)
    border = layout.query_starts[3]
    for threads in (1, 2, 3, 8):
        assert same_bits(attention(query, cache, layout, 0.2, window, "amx", threads, narrow_rows=0), whole)
        mixed = attention(query, cache, layout, 0.2, window, "amx", threads, narrow_rows=border)
        assert same_bits(mixed, torch.cat([narrow[:border], whole[border:]]))
    for sequence in range(layout.num_sequences):
        start, stop = layout.query_starts[sequence], layout.query_starts[sequence + 1]
        for chunk in (1, 7, 16, stop - start):
            for first in range(0, stop - start, chunk):
                last = min(first + chunk, stop - start)
                part, rows = sub_batch(layout, sequence, first, last), slice(start + first, start + last)
                actual = attention(query[rows], cache, part, 0.2, window, "amx", 1 + chunk % 2, narrow_rows=0)
                assert same_bits(actual, whole[rows]), (sequence, chunk, first)


@wide
def test_a_broken_sequence_harms_no_other_wide_one() -> None:
    case = Ragged(((40, 1), (0, 50), (20, 30), (100, 3)), scattered=True, page=64)
    layout = case.layout()
    cache, query = filled(case, 2, 16, 16, "fp16"), randn(case.rows, 6, 16, seed=1)
    clean = attention(query, cache, layout, 0.3, isa="amx", narrow_rows=0)
    slots = torch.tensor(reference.context_slots(layout, 1))
    cache.write(torch.full((len(slots), 2, 16), np.nan), torch.full((len(slots), 2, 16), np.inf), slots)
    rows = slice(layout.query_starts[1], layout.query_starts[2])
    actual = attention(query, cache, layout, 0.3, isa="amx", threads=2, narrow_rows=0)
    assert actual[rows].isnan().all()
    actual[rows] = clean[rows]
    assert same_bits(actual, clean)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [1, 3])
def test_tokens_to_come_do_not_matter(group: int, kind: str, isa: str) -> None:
    """Not even NaN and infinity in a later token of the same chunk."""
    case = Ragged(((20, 77), (300, 30)), page=32)
    layout = case.layout()
    cache = filled(case, 2, 16, 16, kind)
    query = randn(case.rows, 2 * group, 16, seed=1)
    clean = attention(query, cache, layout, 0.3, isa=isa)
    broken = [(0, 60), (1, 311)]
    for sequence, row in broken:
        slot = layout.write_slots[layout.query_starts[sequence] + row - (20, 300)[sequence]].reshape(1)
        cache.write(torch.full((1, 2, 16), np.inf), torch.full((1, 2, 16), np.nan), slot)
    actual = attention(query, cache, layout, 0.3, isa=isa)
    for sequence, row in broken:
        start, stop = layout.query_starts[sequence], layout.query_starts[sequence + 1]
        first = start + row - (20, 300)[sequence]
        assert same_bits(actual[start:first], clean[start:first])
        assert actual[first:stop].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_sequence_harms_no_other(kind: str, isa: str) -> None:
    case = CASES["mixed"]
    layout = case.layout()
    cache, query = filled(case, 2, 16, 16, kind), randn(case.rows, 6, 16, seed=1)
    clean = attention(query, cache, layout, 0.3, isa=isa)
    slots = torch.tensor(reference.context_slots(layout, 1))
    cache.write(torch.full((len(slots), 2, 16), np.nan), torch.full((len(slots), 2, 16), np.inf), slots)
    rows = slice(layout.query_starts[1], layout.query_starts[2])
    query[rows] = np.nan
    for threads in (1, 2):
        actual = attention(query, cache, layout, 0.3, isa=isa, threads=threads)
        assert actual[rows].isnan().all()
        actual[rows] = clean[rows]
        assert same_bits(actual, clean)


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores(isa: str) -> None:
    case = CASES["a partition's end"]
    cache = filled(case, 1, 16, 16, "fp16")
    query = randn(case.rows, 2, 16, seed=1) * 3000
    expected = reference.paged_attention(query, *cache.dequantized(), case.layout(), 1.0)
    assert_same(attention(query, cache, case.layout(), 1.0, isa=isa), expected, tolerance=2e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_infinite_scores(isa: str, sign: float) -> None:
    """Minus infinity takes no part, also where a whole partition has it; plus infinity and nothing else make NaN."""
    case = Ragged(((600, 3), (5, 20)), page=64)
    layout = case.layout()
    cache = filled(case, 1, 16, 16, "fp16")
    slots = context(layout)
    keys = torch.zeros(len(slots), 1, 16)
    keys[:300, 0, 0], keys[603:606, 0, 0] = 1000.0, 1000.0  # the scores of these overflow
    cache.write(keys, randn(len(slots), 1, 16, seed=3), slots)
    query = torch.zeros(case.rows, 2, 16)
    query[..., 0] = sign * 1e37
    expected = reference.paged_attention(query, *cache.dequantized(), layout, 1.0)
    assert expected.isnan().any() == (sign > 0)
    assert_same(attention(query, cache, layout, 1.0, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["one token", "mixed", "a partition's end"])
def test_writing(name: str, threads: int, isa: str) -> None:
    case = CASES[name]
    layout = case.layout()
    slots = layout.write_slots
    keys, values = randn(case.rows, 2, 48, seed=1) * 5, randn(case.rows, 2, 32, seed=2)
    keys[0, 0] = 0.0
    for kind in KINDS:
        cache = NativeCache.broken(case.slots // case.page, case.page, 2, 48, 32, kind)
        cache.write(keys, values, slots, isa, threads)
        for stored, given in zip(cache.dequantized(), (keys, values), strict=True):
            if kind == "fp16":
                assert torch.equal(stored[slots], given.half().float())
            else:  # rounding to 1/127 of the largest magnitude is wrong by half of that
                half_step = given.abs().amax(-1, keepdim=True) / 127 / 2
                assert ((stored[slots] - given).abs() <= half_step * 1.0001).all()
            others = torch.ones(len(stored), dtype=torch.bool).index_fill(0, slots, False)
            assert stored[others].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_int8_of_extremes(isa: str) -> None:
    rows = torch.zeros(5, 1, 16)
    rows[0], rows[1], rows[2, 0, 3], rows[3, 0, 3] = 1e-42, 3e38, np.nan, -np.inf
    cache = NativeCache.broken(1, 16, 1, 16, 16, "int8")
    cache.write(rows, rows, torch.arange(5), isa)
    for stored in cache.dequantized():
        assert torch.allclose(stored[0], rows[0], rtol=0.01, atol=0)
        assert torch.allclose(stored[1], rows[1], rtol=1e-5)
        assert stored[2].isnan().all()
        assert not stored[3].isfinite().any()
        assert torch.equal(stored[4], rows[4])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim,half", [(2, 1), (16, 8), (64, 32), (80, 40), (96, 17), (128, 16)])
def test_rotate(dim: int, half: int, interleaved: bool, isa: str) -> None:
    heads, angles = randn(3, dim, seed=1), randn(1, half, seed=2) * 10
    expected = reference.rotary(heads[None], angles.cos(), angles.sin(), interleaved)[0]
    native().rotate(heads, angles[0].cos(), angles[0].sin(), interleaved, isa)
    assert_same(heads, expected, tolerance=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("half", [None, 8, 16, 24])
def test_rope_and_write(half: int | None, normed: bool, kind: str, isa: str) -> None:
    case = CASES["mixed"]
    heads, kv_heads, dim, value_dim = 4, 2, 48, 32
    slots = case.layout().write_slots
    qkv = randn(case.rows, heads * dim + kv_heads * (dim + value_dim) + 16, seed=1)  # rows are longer than needed
    positions = torch.randint(0, 200, (case.rows,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    angles = randn(200, half, seed=2) * 10 if half else None
    cos, sin = (angles.cos(), angles.sin()) if angles is not None else (None, None)
    norms = [randn(dim, seed=4), randn(dim, seed=5)] if normed else [None, None]
    split = [heads * dim, kv_heads * dim, kv_heads * value_dim, 16]
    query, key, value, rest = (part.clone() for part in qkv.split(split, dim=1))
    turned = []
    for part, norm in zip((query, key), norms, strict=True):
        part = part.view(case.rows, -1, dim)
        if norm is not None:
            part = reference.rms_norm(part, norm, 1e-6)
        if cos is not None and sin is not None:
            part = reference.rotary(part, cos[positions.long()], sin[positions.long()])
        turned.append(part)
    caches = [NativeCache.broken(case.slots // case.page, case.page, kv_heads, dim, value_dim, kind) for _ in range(2)]
    results = []
    for cache, threads in zip(caches, (1, 2), strict=True):
        own = qkv.clone()
        arguments = (own, heads, positions, cos, sin, False, *norms, 1e-6, *cache.arrays, slots, isa, threads)
        native().rope_and_write(*arguments)
        results.append(own)
    assert torch.equal(results[0], results[1])
    assert_same(results[0][:, : split[0]], turned[0].reshape(case.rows, -1))
    assert torch.equal(results[0][:, -16:], rest)
    expected = NativeCache.broken(case.slots // case.page, case.page, kv_heads, dim, value_dim, kind)
    actual_keys = results[0].split(split, dim=1)[1].view(case.rows, kv_heads, dim)
    assert_same(actual_keys, turned[1])
    expected.write(actual_keys, value.view(case.rows, kv_heads, value_dim), slots, isa)
    for cache in caches:
        for a, b in zip(cache.arrays, expected.arrays, strict=True):
            assert a is b or np.array_equal(a, b, equal_nan=a.dtype != np.int8)


def latents(case: Ragged, rank: int, rope: int, isa: str) -> tuple[np.ndarray, Tensor]:
    """A latent cache and its content as fp32 [slots, 1, rank + rope]."""
    cache = np.full((case.slots // case.page, case.page, rank + rope), np.nan, np.float16)
    slots = context(case.layout())
    rows = randn(len(slots), rank + rope, seed=3)
    native().write_latent(rows, cache.view(np.uint16), slots, isa, 2)
    stored = torch.from_numpy(cache.astype(np.float32).reshape(-1, 1, rank + rope))
    assert torch.equal(stored[slots, 0], rows.half().float())
    return cache.view(np.uint16), stored


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads,rank,rope", [(1, 16, 16), (5, 32, 16), (16, 64, 32), (60, 48, 0)])
@pytest.mark.parametrize("name", CASES)
def test_mla(name: str, heads: int, rank: int, rope: int, isa: str) -> None:
    case, nope, value_dim = CASES[name], 24, 20
    cache, stored = latents(case, rank, rope, isa)
    up = randn(heads, nope + value_dim, rank, seed=4) * rank**-0.5
    query = randn(case.rows, heads, nope + rope, seed=1)
    folded = torch.cat([torch.einsum("thn,hnr->thr", query[..., :nope], up[:, :nope]), query[..., nope:]], dim=-1)
    actual = mla(folded, cache, rank, case.layout(), 0.1, isa, threads=2)
    expected = reference.mla_attention(
        query[..., :nope], query[..., nope:], stored, up[:, :nope], up[:, nope:], case.layout(), 0.1
    )
    assert_same(torch.einsum("thr,hvr->thv", actual, up[:, nope:]), expected, tolerance=5e-5)


def test_bits_of_mla_depend_on_nothing_else() -> None:
    heads, rank, rope = 20, 64, 16
    layout = INVARIANT.layout()
    cache, _ = latents(INVARIANT, rank, rope, "auto")
    query = randn(INVARIANT.rows, heads, rank + rope, seed=1)
    whole = mla(query, cache, rank, layout, 0.1, "auto", 1)
    for isa in ISAS:
        for threads in (1, 2, 3, 8):
            assert same_bits(mla(query, cache, rank, layout, 0.1, isa, threads), whole)
        for sequence in range(layout.num_sequences):
            start, stop = layout.query_starts[sequence], layout.query_starts[sequence + 1]
            for chunk in (1, 7, stop - start):
                for first in range(0, stop - start, chunk):
                    last = min(first + chunk, stop - start)
                    rows = slice(start + first, start + last)
                    actual = mla(query[rows], cache, rank, sub_batch(layout, sequence, first, last), 0.1, isa, 2)
                    assert same_bits(actual, whole[rows])


def test_arrays_that_do_not_fit_are_refused() -> None:
    case = CASES["one page"]
    cache, layout = filled(case, 2, 16, 16, "fp16"), case.layout()
    query = randn(case.rows, 4, 16)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        attention(query[:, :3], cache, layout, 1.0)
    with pytest.raises(ValueError, match="end with the number of rows"):
        attention(query[:-1], cache, layout, 1.0)
    with pytest.raises(ValueError, match="outside the cache"):
        cache.write(randn(1, 2, 16), randn(1, 2, 16), torch.tensor([2 * 16]))
    with pytest.raises(ValueError, match="instruction set"):
        attention(query, cache, layout, 1.0, isa="mmx")
