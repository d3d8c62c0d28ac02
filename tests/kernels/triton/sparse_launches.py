"""Launches of sparse attention's kernels at the shapes of real models, to be compiled (see :mod:`.compiling`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from deepseek.kernels.page_index import IndexCache, new_counters
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton.attention import paged_attention
from deepseek.kernels.triton.mla import mla_attention
from deepseek.kernels.triton.sparse_index import index_pages
from tests.kernels.triton.attention_launches import SLOTS, empty, layout

STEP = replace(layout((130_000, 1), (100, 1), (5000, 4)), errors=(0.02, 0.0, 0.02))


def index(heads: int, key: int, value: int) -> IndexCache:
    return IndexCache.allocate(1, heads, key, value, new_counters(torch.device("cpu")))


def attention(heads: int, kv_heads: int, width: int, dtype: torch.dtype, int8: bool) -> None:
    stored = torch.int8 if int8 else dtype
    keys, values = (empty(SLOTS, kv_heads, width, dtype=stored) for _ in range(2))
    scales = KVScales(*(empty(SLOTS, kv_heads, dtype=torch.float16) for _ in range(2))) if int8 else None
    own = index(kv_heads, width, width)
    query = empty(STEP.query_starts[-1], heads, width, dtype=dtype)
    index_pages(keys, values, own, STEP, scales)
    paged_attention(query, keys, values, STEP, 0.1, None, scales, own)


def latent(heads: int, nope: int, rope: int, value: int, rank: int, dtype: torch.dtype, int8: bool) -> None:
    rows = STEP.query_starts[-1]
    cache = empty(SLOTS, 1, rank + rope, dtype=torch.int8 if int8 else dtype)
    scales = KVScales(*(empty(SLOTS, 1, dtype=dtype) for _ in range(2))) if int8 else None
    own = index(1, rank + rope, rank)
    index_pages(cache, None, own, STEP, scales)
    query_nope, query_rope = (empty(rows, heads, width, dtype=dtype) for width in (nope, rope))
    key_up, value_up = empty(heads, nope, rank, dtype=dtype), empty(heads, value, rank, dtype=dtype)
    mla_attention(query_nope, query_rope, cache, key_up, value_up, STEP, 0.1, "auto", scales, own)


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    bf16, fp16 = torch.bfloat16, torch.float16
    yield "qwen2.5-7b", partial(attention, 28, 4, 128, bf16, False)
    yield "llama-3.1-8b, INT8", partial(attention, 32, 8, 128, fp16, True)
    yield "smollm2-135m", partial(attention, 9, 3, 64, fp16, False)
    yield "phi-3, 96 wide", partial(attention, 32, 32, 96, bf16, False)
    yield "gemma-3, 256 wide", partial(attention, 8, 4, 256, bf16, False)
    yield "fp32", partial(attention, 8, 2, 64, torch.float32, False)
    yield "deepseek-v2-lite", partial(latent, 16, 128, 64, 128, 512, bf16, False)
    yield "deepseek-v2-lite, INT8", partial(latent, 16, 128, 64, 128, 512, bf16, True)
