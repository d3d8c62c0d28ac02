"""Launches of attention kernels at the shapes of real models, to be compiled (see :mod:`.compiling`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from deepseek.kernels.paging import KVScales, PagedLayout
from deepseek.kernels.triton.attention import paged_attention
from deepseek.kernels.triton.mla import mla_attention
from deepseek.kernels.triton.write_kv import rotary_write_kv

# Caches are never read: the memory of a launch that is not made need not exist.
SLOTS = 64


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def layout(*sequences: tuple[int, int], page: int = 64) -> PagedLayout:
    """(cached, new) tokens per sequence."""
    starts = [0]
    for _, new in sequences:
        starts.append(starts[-1] + new)
    contexts = tuple(cached + new for cached, new in sequences)
    pages = tuple(range(-(-context // page)) for context in contexts)
    return PagedLayout(page, tuple(starts), contexts, pages, torch.zeros(starts[-1], dtype=torch.int64))


STEPS = {
    "decode": ((4096, 1), (100, 1)),
    "prompt": ((0, 300),),
    "mixed": ((4096, 1), (64, 200), (2000, 4)),
}


def attention(
    heads: int, kv_heads: int, key: int, value: int, dtype: torch.dtype, step: str, window: int | None, int8: bool,
    page: int = 64,
) -> None:  # fmt: skip
    batch = layout(*STEPS[step], page=page)
    stored = torch.int8 if int8 else dtype
    query = empty(batch.query_starts[-1], heads, key, dtype=dtype)
    keys, values = (empty(SLOTS, kv_heads, width, dtype=stored) for width in (key, value))
    scales = KVScales(*(empty(SLOTS, kv_heads, dtype=torch.float16) for _ in range(2))) if int8 else None
    paged_attention(query, keys, values, batch, 0.1, window, scales)


def latent(
    heads: int,
    nope: int,
    rope: int,
    value: int,
    rank: int,
    dtype: torch.dtype,
    step: str,
    mode: str,
    int8: bool = False,
) -> None:
    batch = layout(*STEPS[step])
    rows = batch.query_starts[-1]
    scales = KVScales(*(empty(8192, 1, dtype=torch.float32) for _ in range(2))) if int8 else None
    mla_attention(
        empty(rows, heads, nope, dtype=dtype),
        empty(rows, heads, rope, dtype=dtype),
        empty(8192, 1, rank + rope, dtype=torch.int8 if int8 else dtype),
        empty(heads, nope, rank, dtype=dtype),
        empty(heads, value, rank, dtype=dtype),
        batch,
        0.1,
        mode,
        scales,
    )


def write(
    heads: int, kv_heads: int, key: int, value: int, turned: int, dtype: torch.dtype, int8: bool, pairs: bool
) -> None:
    rows = 5
    query, own = (empty(rows, n, key, dtype=dtype) for n in (heads, kv_heads))
    stored = torch.int8 if int8 else dtype
    caches = [empty(SLOTS, kv_heads, width, dtype=stored) for width in (key, value)]
    scales = KVScales(*(empty(SLOTS, kv_heads, dtype=torch.float16) for _ in range(2))) if int8 else None
    angles = empty(rows, turned // 2, dtype=torch.float32)
    values = empty(rows, kv_heads, value, dtype=dtype)
    rotary_write_kv(query, own, values, angles, angles, *caches, torch.arange(rows), pairs, scales)


def launches() -> Iterator[tuple[str, Callable[[], object]]]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for step in STEPS:
        yield f"qwen2.5-7b {step}", partial(attention, 28, 4, 128, 128, bf16, step, None, False)
    yield "llama-3.1-8b prompt, INT8", partial(attention, 32, 8, 128, 128, fp16, "prompt", None, True)
    yield "llama-3.1-8b decode, INT8", partial(attention, 32, 8, 128, 128, bf16, "decode", None, True)
    yield "smollm2-135m mixed, pages of 16", partial(attention, 9, 3, 64, 64, bf16, "mixed", None, False, 16)
    yield "gemma-3 mixed, window", partial(attention, 8, 4, 256, 256, bf16, "mixed", 512, False)
    yield "phi-3 mixed, 96 wide", partial(attention, 32, 32, 96, 96, fp16, "mixed", 2047, False)
    yield "fp32 mixed", partial(attention, 8, 2, 64, 64, fp32, "mixed", None, False)
    yield "deepseek-v2-lite decode", partial(latent, 16, 128, 64, 128, 512, bf16, "decode", "auto")
    yield "deepseek-v2-lite prompt", partial(latent, 16, 128, 64, 128, 512, bf16, "prompt", "expanded")
    yield "deepseek-v2-lite prompt, absorbed", partial(latent, 16, 128, 64, 128, 512, bf16, "prompt", "absorbed")
    yield "deepseek-v2-lite decode, INT8", partial(latent, 16, 128, 64, 128, 512, bf16, "decode", "auto", True)
    yield "deepseek-v2 decode", partial(latent, 128, 128, 64, 128, 512, bf16, "decode", "auto")
    for int8 in (False, True):
        yield f"qwen2.5-7b writes, INT8 {int8}", partial(write, 28, 4, 128, 128, 128, bf16, int8, False)
        yield f"deepseek-v2-lite writes, INT8 {int8}", partial(write, 16, 1, 64, 512, 64, bf16, int8, True)
    yield "phi-3 writes, 96 wide", partial(write, 32, 32, 96, 96, 96, fp16, False, False)
    yield "a part of a key turns", partial(write, 8, 2, 128, 128, 64, bf16, False, False)
