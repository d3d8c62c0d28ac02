"""Native sparse attention against the reference in deepseek.attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek.attention.decode import sparse_decode
from deepseek.attention.index import PAGE, build_index
from deepseek.kernels.cpu.extension import native, obstacle
from tests.kernels.native_cache import NativeCache

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
ISAS = native().available_isas() if obstacle() is None else []


def text_like(tokens: int, heads: int, dim: int, seed: int, needle: int | None = None) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, heads, dim] that drift as those of text do. The key of a ``needle`` answers the first
    dimension's queries."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(tokens // 16 + 1, heads, dim, generator=generator)
    drift = steps.cumsum(0).repeat_interleave(16, 0)[:tokens] * 0.1
    keys = drift + torch.randn(tokens, heads, dim, generator=generator)
    values = torch.randn(tokens, heads, dim, generator=generator) + drift.flip(-1)
    if needle is not None:
        keys[needle] = 0.0
        keys[needle, :, 0] = 30.0
        values[needle] = 5.0
    return keys, values


@dataclass
class Index:
    """The arrays of an index; pages that are not indexed hold nonsense."""

    keys: Any
    values: Any
    codes: Any

    @classmethod
    def broken(cls, pages: int, kv_heads: int, key_dim: int, value_dim: int) -> Index:
        sizes = (16 + key_dim, 16 + value_dim, (key_dim // 8 + 1) * PAGE)
        return cls(*(np.full((kv_heads, pages, size), 0xFF, np.uint8) for size in sizes))

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        return self.keys, self.values, self.codes


@dataclass
class Case:
    """One sequence of a cache whose pages lie in no order."""

    cache: NativeCache
    index: Index
    pages: Any
    tokens: int
    rows: int

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, kind: str, rows: int = 1, isa: str = "auto", threads: int = 1) -> Case:
        tokens, heads, dim = keys.shape
        count = -(-tokens // PAGE)
        pages = np.random.default_rng(1).permutation(count + 2)[:count].astype(np.int32)[None]
        cache = NativeCache.broken(count + 2, PAGE, heads, dim, values.shape[2], kind)
        slots = torch.from_numpy(pages[0].astype(np.int64)).repeat_interleave(PAGE) * PAGE + torch.arange(PAGE).repeat(
            count
        )
        cache.write(keys, values, slots[:tokens], isa, threads)
        case = cls(cache, Index.broken(count + 2, heads, dim, values.shape[2]), pages, tokens, rows)
        native().index_kv(*cache.arrays, *case.index.arrays, *case.facts(tokens), isa, threads)
        return case

    def facts(self, rows: int) -> tuple[Any, Any, Any]:
        return np.array([0, rows], np.int32), np.array([self.tokens], np.int32), self.pages

    def attend(
        self, query: Tensor, error: float, isa: str = "auto", threads: int = 1
    ) -> tuple[Tensor, dict[str, float]]:
        out = torch.full((*query.shape[:2], self.cache.values.shape[3]), 7.0)
        stats = native().sparse_attention(
            query.contiguous(), out, *self.cache.arrays, *self.index.arrays, *self.facts(len(query)),
            np.array([error], np.float32), query.shape[2] ** -0.5, isa, threads,
        )  # fmt: skip
        return out, stats

    def stored(self) -> tuple[Tensor, Tensor]:
        """fp32 [tokens, heads, dim] in order."""
        order = [int(page) * PAGE + i for page in self.pages[0] for i in range(PAGE)][: self.tokens]
        keys, values = self.cache.dequantized()
        return keys[order], values[order]


def dense(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    group = query.shape[0] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    weights = torch.softmax(torch.einsum("hd,thd->ht", query * query.shape[1] ** -0.5, keys), -1)
    return torch.einsum("ht,thd->hd", weights, values)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Relative distance per head."""
    return (a - b).norm(dim=-1) / b.norm(dim=-1)


SHAPES = [(1, 1, 16), (3, 1, 64), (6, 2, 128), (7, 1, 48), (13, 1, 80)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("group,kv_heads,dim", SHAPES)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 383, 384, 385, 448, 1500, 6001])
def test_decode(tokens: int, group: int, kv_heads: int, dim: int, kind: str, isa: str) -> None:
    keys, values = text_like(tokens, kv_heads, dim, seed=tokens)
    case = Case.of(keys, values, kind)
    keys, values = case.stored()
    query = torch.randn(1, group * kv_heads, dim, generator=torch.Generator().manual_seed(5)) * 1.5
    actual, stats = case.attend(query, 0.05, isa)
    read = tails = 0.0
    for head in range(kv_heads):
        own = query[0, head * group : (head + 1) * group]
        index = build_index(keys[: tokens // PAGE * PAGE, head], values[: tokens // PAGE * PAGE, head])
        expected = sparse_decode(own * dim**-0.5, keys[:, head], values[:, head], index, 0.05)
        read += float(expected.read.sum())
        tails += float(expected.tail.sum())
        assert apart(actual[0, head * group : (head + 1) * group], expected.output).max() < 0.05
    assert stats["read_tokens"] == pytest.approx(read, rel=0.05)
    assert stats["tail"] == pytest.approx(tails, rel=0.1, abs=1e-3)
    if tokens < 384:  # there is no middle
        assert stats["read_tokens"] == kv_heads * tokens
        assert apart(actual[0], dense(query[0], keys, values)).max() < 1e-5


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_what_is_asked_for(kind: str) -> None:
    """Less error costs more reading; the error that is estimated and the bound hold."""
    keys, values = text_like(8000, 1, 64, seed=3)
    case = Case.of(keys, values, kind)
    keys, values = case.stored()
    query = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1)) * 2
    truth = dense(query[0], keys, values)
    found = []
    for error in (0.5, 0.1, 0.02, 0.004):
        actual, stats = case.attend(query, error)
        distance = apart(actual[0], truth)
        assert distance.mean() < 2 * error
        assert distance.mean() < stats["bound"] / stats["heads"] + 1e-4
        found.append((stats["read_tokens"], stats["bytes"], -float(distance.mean())))
    assert found == sorted(found)
    assert found[0][0] < 0.1 * 8000 < found[-1][0]


@pytest.mark.parametrize("scale", [8.0, 16.0, 24.0, 60.0])
def test_log_weights_that_vary_widely(scale: float) -> None:
    """A page's mean weight, were it normally distributed, lies far above all weights that there are: exp of their
    distance is 0. Keys and queries of some layers are like that."""
    keys, values = text_like(2000, 1, 128, seed=1)
    case = Case.of(keys, values, "fp16")
    query = torch.randn(1, 6, 128, generator=torch.Generator().manual_seed(5)) * scale
    actual, _ = case.attend(query, 0.02)
    assert apart(actual[0], dense(query[0], *case.stored())).max() < 0.02


def test_a_needle_is_found() -> None:
    for needle in (64, 1000, 4095, 4096, 7743):
        keys, values = text_like(8000, 1, 64, seed=4, needle=needle)
        case = Case.of(keys, values, "int8")
        query = torch.zeros(1, 3, 64)
        query[..., 0] = 8.0
        actual, stats = case.attend(query, 0.02)
        assert apart(actual[0], dense(query[0], *case.stored())).max() < 0.02
        assert stats["read_tokens"] < 0.1 * 8000


def test_logits_of_hundreds() -> None:
    """Estimates of weights far above all means of pages must not overflow."""
    keys, values = text_like(4000, 1, 64, seed=4)
    case = Case.of(keys * 20, values, "fp16")
    query = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1)) * 20
    actual, _ = case.attend(query, 0.02)
    assert apart(actual[0], dense(query[0], *case.stored())).max() < 0.02


def test_even_attention_reads_next_to_nothing() -> None:
    keys, values = text_like(8000, 1, 64, seed=5)
    case = Case.of(keys, values, "fp16")
    query = torch.zeros(1, 3, 64)
    actual, stats = case.attend(query, 0.02)
    assert stats["read_tokens"] <= 384
    assert apart(actual[0], dense(query[0], *case.stored())).max() < 0.02


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_bits_depend_on_nothing_else(kind: str) -> None:
    keys, values = text_like(9000, 2, 64, seed=6)
    case = Case.of(keys, values, kind)
    query = torch.randn(5, 6, 64, generator=torch.Generator().manual_seed(1))
    whole, _ = case.attend(query, 0.03)
    for isa in ISAS:
        same = Case.of(*text_like(9000, 2, 64, seed=6), kind, isa=isa, threads=3)
        for mine, theirs in zip(case.index.arrays, same.index.arrays, strict=True):
            assert np.array_equal(mine, theirs)
        for threads in (1, 2, 5):
            assert torch.equal(case.attend(query, 0.03, isa, threads)[0], whole)
    shorter = Case(case.cache, case.index, case.pages, 8998, 1)
    assert torch.equal(shorter.attend(query[2:3], 0.03)[0], whole[2:3])


@pytest.mark.parametrize("isa", ISAS)
def test_long_middles_are_filtered(isa: str) -> None:
    tokens = 140_000
    keys, values = text_like(tokens, 1, 32, seed=7)
    case = Case.of(keys, values, "int8", isa=isa)
    query = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2)) * 3
    actual, stats = case.attend(query, 0.03, isa, 2)
    assert apart(actual[1], dense(query[1], *case.stored())).mean() < 0.06
    assert stats["bytes"] < stats["dense_bytes"] / 10
    for threads in (1, 5):
        assert torch.equal(case.attend(query, 0.03, isa, threads)[0], actual)


@pytest.mark.parametrize("position", [100, 5000])
def test_what_is_not_finite_shows(position: int) -> None:
    keys, values = text_like(6000, 1, 64, seed=8)
    keys[position] = float("nan")
    case = Case.of(keys, values, "fp16")
    actual, _ = case.attend(torch.ones(1, 2, 64), 0.05)
    assert actual.isnan().all()


def causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Dense attention of the last rows of a context: query [rows, heads, dim]."""
    first = len(keys) - len(query)
    rows = [dense(query[i], keys[: first + i + 1], values[: first + i + 1]) for i in range(len(query))]
    return torch.stack(rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("group,kv_heads,dim", [(1, 1, 16), (3, 2, 64), (7, 1, 48), (60, 1, 32)])
@pytest.mark.parametrize("tokens", [64, 384, 448, 3000])
def test_prompts(tokens: int, group: int, kv_heads: int, dim: int, kind: str, isa: str) -> None:
    keys, values = text_like(tokens, kv_heads, dim, seed=tokens)
    case = Case.of(keys, values, kind)
    query = torch.randn(40, group * kv_heads, dim, generator=torch.Generator().manual_seed(5))
    truth = causal(query, *case.stored())
    exact, all_read = case.attend(query, 1e-4, isa, 2)
    assert apart(exact, truth).max() < 1e-4
    rough, read = case.attend(query, 0.1, isa, 2)
    assert apart(rough, truth).mean() < 0.25
    assert read["prefill_pages"] == all_read["prefill_pages"] == all_read["prefill_read"]
    if tokens > 448:
        assert read["prefill_read"] < read["prefill_pages"]


def test_bits_of_prompts_depend_on_nothing_else() -> None:
    """Neither on threads and instruction sets, nor on chunks of whole pages."""
    for group in (3, 7, 60):
        keys, values = text_like(2048, 1, 32, seed=6)
        case = Case.of(keys, values, "fp16")
        query = torch.randn(192, group, 32, generator=torch.Generator().manual_seed(1))
        whole, _ = case.attend(query, 0.02)
        for isa in ISAS:
            assert torch.equal(case.attend(query, 0.02, isa, 3)[0], whole)
        for first, last in ((0, 64), (64, 192), (128, 192)):
            shorter = Case(case.cache, case.index, case.pages, 2048 - 192 + last, 1)
            assert torch.equal(shorter.attend(query[first:last], 0.02)[0], whole[first:last])


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("tokens", [70, 400, 2500])
def test_latents(tokens: int, rows: int) -> None:
    """MLA: values are the first elements of keys."""
    heads, rank, rope = 5, 48, 16
    keys, _ = text_like(tokens, 1, rank + rope, seed=9)
    count = -(-tokens // PAGE)
    cache = np.full((count, PAGE, rank + rope), np.nan, np.float16)
    native().write_latent(keys[:, 0].contiguous(), cache.view(np.uint16), torch.arange(tokens), "auto", 2)
    stored = keys.half().float()
    index = Index.broken(count, 1, rank + rope, rank)
    facts = np.array([tokens], np.int32), np.arange(count, dtype=np.int32)[None]
    native().index_latents(cache.view(np.uint16), rank, *index.arrays, np.array([0, tokens], np.int32), *facts)
    query = torch.randn(rows, heads, rank + rope, generator=torch.Generator().manual_seed(1))
    starts, scale = np.array([0, rows], np.int32), (rank + rope) ** -0.5
    truth = causal(query, stored, stored[..., :rank])
    for error, limit in ((1e-4, 1e-3), (0.05, 0.2)):
        out = torch.full((rows, heads, rank), 7.0)
        native().sparse_mla(
            query, out, cache.view(np.uint16), *index.arrays, starts, *facts, np.array([error], np.float32), scale
        )
        assert apart(out, truth).mean() < limit
