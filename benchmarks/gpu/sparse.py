"""Sparse attention on the card: its kernels next to the dense ones and the reference, and whole steps."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from deepseek.attention.decode import sparse_decode
from deepseek.attention.index import PAGE
from deepseek.attention.policy import DEFAULT_ERROR, SparsePolicy
from deepseek.benchmark.filled import decode_filled
from deepseek.benchmark.gpu_rates import median_seconds
from deepseek.engine.engine import Engine
from deepseek.kernels.page_index import IndexCache, new_counters, stats_of
from deepseek.kernels.paging import PagedLayout
from deepseek.kernels.registry import bind

if TYPE_CHECKING:
    from benchmarks.gpu.measure import Figures, Measured

HEADS, KV_HEADS, WIDTH = 28, 4, 128
CONTEXTS = (4096, 32768, 131072)
STEP_CONTEXTS = (4000, 32000, 130_000)
"""A little below powers of two, which recordings are made for."""
_STEPS = 16


def text_like(tokens: int, seed: int, device: str) -> torch.Tensor:
    """bf16 [tokens, KV_HEADS, WIDTH] that drift from page to page, as keys of text do."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(count: int) -> torch.Tensor:
        return torch.randn(count, KV_HEADS, WIDTH, device=device, generator=generator)

    drift = noise(tokens // PAGE).cumsum(0).repeat_interleave(PAGE, 0) * 0.1
    return (drift + noise(tokens)).to(torch.bfloat16)


def measure_attention(figures: Figures, device: str, contexts: tuple[int, ...] = CONTEXTS) -> None:
    """One row's attention in one layer, dense and sparse, at heads of a 7B model; and how far the sparse one is from
    the dense one and from the reference."""
    for context in contexts:
        _measure_kernel(figures, device, context)


def _measure_kernel(figures: Figures, device: str, context: int) -> None:
    ops = bind(device)
    scale = WIDTH**-0.5
    keys, values = text_like(context, 1, device), text_like(context, 2, device)
    query = 2 * torch.randn(1, HEADS, WIDTH, device=device).to(torch.bfloat16)
    index = IndexCache.allocate(context // PAGE, KV_HEADS, WIDTH, WIDTH, new_counters(torch.device(device)))
    slots = torch.arange(context, device=device)
    pages = (range(context // PAGE),)
    whole = PagedLayout(PAGE, (0, context), (context,), pages, slots)
    indexing = median_seconds(lambda: ops.index_pages(keys, values, index, whole), device)
    row = PagedLayout(PAGE, (0, 1), (context,), pages, slots[-1:])
    sparse_row = replace(row, errors=(DEFAULT_ERROR,))

    def attend(layout: PagedLayout, own: IndexCache | None) -> torch.Tensor:
        return ops.paged_attention(query, keys, values, layout, scale, index=own)

    dense, sparse = attend(row, None).float(), attend(sparse_row, index).float()
    told = stats_of(index.counters)
    group = HEADS // KV_HEADS
    reference = torch.cat([
        sparse_decode(
            query[0, head * group : (head + 1) * group].float() * scale, keys[:, head].float(),
            values[:, head].float(), index.read(range(context // PAGE), head), DEFAULT_ERROR, whole_pieces=False,
        ).output
        for head in range(KV_HEADS)
    ])[None]  # fmt: skip
    name = f"attention, {context} tokens"
    dense_seconds = median_seconds(lambda: attend(row, None), device)
    sparse_seconds = median_seconds(lambda: attend(sparse_row, index), device)
    figures.put(f"{name}: dense", dense_seconds * 1e6, "us")
    figures.put(f"{name}: sparse", sparse_seconds * 1e6, "us")
    figures.put(f"{name}: sparse over dense", dense_seconds / sparse_seconds, "x")
    figures.put(f"{name}: index of a page", indexing / (context // PAGE) * 1e6, "us")
    figures.put(f"{name}: bytes read, of dense", told.read_bytes / told.dense_bytes, "")
    figures.put(f"{name}: mean error against dense", _apart(sparse, dense), "")
    figures.put(f"{name}: mean distance from the reference", _apart(sparse, reference), "")


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).mean())


def measure_steps(figures: Figures, measured: Measured, contexts: tuple[int, ...] = STEP_CONTEXTS) -> None:
    """Steps of one sequence behind contexts that are filled, dense and sparse, in an engine with an index."""
    engine: Any = measured.engine
    assert isinstance(engine, Engine)
    source = random.Random(1)
    beginning = [source.randrange(measured.info["vocab_size"]) for _ in range(2048)]
    for context in contexts:
        seconds = {}
        for mode, policy in (("dense", None), ("sparse", SparsePolicy(dense_until=1024))):
            before = engine.stats().attention
            spent = decode_filled(engine.model, engine.cache, beginning, context, _STEPS, engine.page_size, policy)
            seconds[mode] = spent / _STEPS
            figures.put(f"step behind {context} tokens, filled: {mode}", seconds[mode] * 1e3, "ms")
            after = engine.stats().attention
            if after.dense_bytes > before.dense_bytes:
                share = (after.read_bytes - before.read_bytes) / (after.dense_bytes - before.dense_bytes)
                figures.put(f"step behind {context} tokens, filled: bytes of attention, of dense", share, "")
        figures.put(
            f"step behind {context} tokens, filled: sparse over dense", seconds["dense"] / seconds["sparse"], "x"
        )
