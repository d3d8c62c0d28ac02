"""The rotary embedding, and keys and values straight from it to their slots, as they are or as INT8."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton.flash import require

_QUERY_HEADS = 8
"""Query heads that a program of :func:`rotary_write_kv` turns."""


@triton.jit
def _round(x: tl.tensor) -> tl.tensor:
    """To the nearest integer, halves to even, for |x| < 2^22: at 1.5 * 2^23 an fp32 number has no fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _scale_of(highest: tl.tensor, scales: tl.tensor) -> tl.tensor:
    """fp32 scale for heads whose largest element is ``highest``, as ``scales`` will store it."""
    return (highest / 127.0).to(scales.dtype.element_ty).to(tl.float32)


@triton.jit
def _magnitude(x: tl.tensor) -> tl.tensor:
    """|x| of a fp32 tile [heads, columns], largest per head. NaN counts as infinity: what is broken stays broken."""
    return tl.max(tl.where(x == x, tl.abs(x), float("inf")), 1)


@triton.jit
def _to_int8(x: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """``x`` [heads, columns] in units of ``scale`` [heads]; a scale of zero is that of a head of zeros."""
    whole = _round(tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale)[:, None]))
    return tl.minimum(tl.maximum(whole, -127.0), 127.0).to(tl.int8)


@triton.jit
def _write_rows(
    source: tl.tensor,
    cache: tl.tensor,
    scales: tl.tensor,
    slot: tl.tensor,
    source_head: tl.tensor,
    cache_slot: tl.tensor,
    cache_head: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    QUANTIZED: tl.constexpr,
) -> None:
    """All heads of one row of ``source`` to ``slot``."""
    heads = tl.arange(0, HEADS_BLOCK)
    columns = tl.arange(0, WIDTH_BLOCK)
    mask = (heads < HEADS)[:, None] & (columns < WIDTH)[None, :]
    x = tl.load(source + heads[:, None] * source_head + columns[None, :], mask=mask, other=0)
    to = cache + slot * cache_slot + heads[:, None] * cache_head + columns[None, :]
    if QUANTIZED:
        x = x.to(tl.float32)
        scale = _scale_of(_magnitude(x), scales)
        tl.store(to, _to_int8(x, scale), mask=mask)
        tl.store(scales + slot * HEADS + heads, scale.to(scales.dtype.element_ty), mask=heads < HEADS)
    else:
        tl.store(to, x.to(cache.dtype.element_ty), mask=mask)


@triton.jit
def _pair_columns(pairs: tl.tensor, HALF: tl.constexpr, INTERLEAVED: tl.constexpr) -> tl.tensor:
    """Where the two elements of each rotary pair lie."""
    if INTERLEAVED:
        first = 2 * pairs
        second = 2 * pairs + 1
    else:
        first = pairs
        second = pairs + HALF
    return first, second


@triton.jit
def _rotary_write_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    slots: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    key_row: tl.tensor,
    key_head: tl.tensor,
    value_row: tl.tensor,
    value_head: tl.tensor,
    angle_row: tl.tensor,
    key_cache_slot: tl.tensor,
    key_cache_head: tl.tensor,
    value_cache_slot: tl.tensor,
    value_cache_head: tl.tensor,
    QUERY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    QUANTIZED: tl.constexpr,
) -> None:
    """Grid (rows, 2 + blocks of query heads): values, keys, queries."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = tl.load(slots + row)
    pairs = tl.arange(0, HALF_BLOCK)
    first, second = _pair_columns(pairs, HALF, INTERLEAVED)
    if part == 0:
        if slot >= 0:
            _write_rows(
                value + row * value_row, value_cache, value_scales, slot, value_head,
                value_cache_slot, value_cache_head, HEADS, VALUE, HEADS_BLOCK, VALUE_BLOCK, QUANTIZED,
            )  # fmt: skip
    else:
        c = tl.load(cos + row * angle_row + pairs, mask=pairs < HALF, other=0)[None, :]
        s = tl.load(sin + row * angle_row + pairs, mask=pairs < HALF, other=0)[None, :]
        if part == 1:
            if slot >= 0:
                heads = tl.arange(0, HEADS_BLOCK)
                mask = (heads < HEADS)[:, None] & (pairs < HALF)[None, :]
                base = key + row * key_row + heads[:, None] * key_head
                a = tl.load(base + first[None, :], mask=mask, other=0).to(tl.float32)
                b = tl.load(base + second[None, :], mask=mask, other=0).to(tl.float32)
                # Rounded as a rotation by itself rounds them.
                left = (a * c - b * s).to(key.dtype.element_ty)
                right = (b * c + a * s).to(key.dtype.element_ty)
                tail = 2 * HALF + tl.arange(0, TAIL_BLOCK)
                tail_mask = (heads < HEADS)[:, None] & (tail < KEY)[None, :]
                passed = tl.load(base + tail[None, :], mask=tail_mask, other=0)
                to = key_cache + slot * key_cache_slot + heads[:, None] * key_cache_head
                if QUANTIZED:
                    left = left.to(tl.float32)
                    right = right.to(tl.float32)
                    passed = passed.to(tl.float32)
                    highest = tl.maximum(tl.maximum(_magnitude(left), _magnitude(right)), _magnitude(passed))
                    scale = _scale_of(highest, key_scales)
                    tl.store(to + first[None, :], _to_int8(left, scale), mask=mask)
                    tl.store(to + second[None, :], _to_int8(right, scale), mask=mask)
                    tl.store(to + tail[None, :], _to_int8(passed, scale), mask=tail_mask)
                    scale = scale.to(key_scales.dtype.element_ty)
                    tl.store(key_scales + slot * HEADS + heads, scale, mask=heads < HEADS)
                else:
                    tl.store(to + first[None, :], left.to(key_cache.dtype.element_ty), mask=mask)
                    tl.store(to + second[None, :], right.to(key_cache.dtype.element_ty), mask=mask)
                    tl.store(to + tail[None, :], passed.to(key_cache.dtype.element_ty), mask=tail_mask)
        else:
            turned = (part - 2) * QUERY_BLOCK + tl.arange(0, QUERY_BLOCK)
            query_mask = (turned < QUERY_HEADS)[:, None] & (pairs < HALF)[None, :]
            place = query + row * query_row + turned[:, None] * query_head
            x = tl.load(place + first[None, :], mask=query_mask, other=0).to(tl.float32)
            y = tl.load(place + second[None, :], mask=query_mask, other=0).to(tl.float32)
            tl.store(place + first[None, :], (x * c - y * s).to(query.dtype.element_ty), mask=query_mask)
            tl.store(place + second[None, :], (y * c + x * s).to(query.dtype.element_ty), mask=query_mask)


def _warps(elements: int) -> int:
    return 1 if elements <= 512 else 4 if elements <= 4096 else 8


def _check(key: Tensor, cache: Tensor, scales: Tensor | None) -> None:
    require(key.stride(-1) == 1 and cache.stride(-1) == 1, "heads whose elements lie side by side")
    if scales is not None:
        require(str(cache.dtype) == "torch.int8", f"an INT8 cache when scales are given, not {cache.dtype}")
        require(scales.is_contiguous() and scales.shape == cache.shape[:2], "scales [num_slots, kv_heads], contiguous")
    else:
        require(cache.is_floating_point(), f"scales for a cache of {cache.dtype}")


def rotary_write_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    interleaved: bool = False,
    scales: KVScales | None = None,
) -> Tensor:
    """See :meth:`deepseek.kernels.ops.Ops.rotary_write_kv`; rows whose slot is negative are not written. Turns
    ``query`` in place, ``key`` stays as it is.

    Raises BackendUnavailableError for a memory layout or dtype that the kernel does not have.
    """
    _check(key, key_cache, scales.key if scales else None)
    _check(value, value_cache, scales.value if scales else None)
    require(query.stride(-1) == 1, "heads whose elements lie side by side")
    require(cos.stride() == sin.stride() and cos.stride(-1) == 1, "cosines and sines of one memory layout")
    rows, query_heads, key_dim = query.shape
    heads, value_dim = value.shape[1:]
    half = cos.shape[-1]
    if not rows:
        return query
    heads_block = triton.next_power_of_2(heads)
    query_block = min(_QUERY_HEADS, triton.next_power_of_2(query_heads))
    widest = triton.next_power_of_2(max(half, value_dim))
    _rotary_write_kernel[(rows, 2 + -(-query_heads // query_block))](
        query,
        key,
        value,
        cos,
        sin,
        key_cache,
        value_cache,
        scales.key if scales else key_cache,
        scales.value if scales else value_cache,
        slots.to(key.device, non_blocking=True),
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        cos.stride(0),
        *key_cache.stride()[:2],
        *value_cache.stride()[:2],
        QUERY_HEADS=query_heads,
        HEADS=heads,
        HALF=half,
        KEY=key_dim,
        VALUE=value_dim,
        QUERY_BLOCK=query_block,
        HEADS_BLOCK=heads_block,
        HALF_BLOCK=triton.next_power_of_2(half),
        TAIL_BLOCK=triton.next_power_of_2(max(1, key_dim - 2 * half)),
        VALUE_BLOCK=triton.next_power_of_2(value_dim),
        INTERLEAVED=interleaved,
        QUANTIZED=scales is not None,
        num_warps=_warps(heads_block * widest),
    )
    return query
