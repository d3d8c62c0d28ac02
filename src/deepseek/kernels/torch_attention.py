"""Attention of the plain-torch backend: contexts are read in place where they lie together, else gathered once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels.int8_cache import dequantize
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout
from deepseek.kernels.sparse_reference import attend_latents_sparsely, attend_sparsely


@dataclass(frozen=True, slots=True)
class _Part:
    """One sequence of a step: its query rows, the slots they see, and how.

    ``mask`` is added to the scores [queries, keys]; None with ``causal`` False means that every query sees every key.
    """

    start: int
    stop: int
    slots: slice | Tensor
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True, slots=True)
class _Group:
    """Single queries of several sequences, whose contexts are gathered into one padded batch.

    Attributes:
        rows: int64 [B], the query rows; None when they are all rows of the step.
        slots: int64 [B * length]; padding repeats a slot of the same sequence, so that no other's data is touched.
        mask: [B, 1, 1, length], added to the scores; None without padding.
        buffers: where keys and values are gathered to: fresh memory for each layer would cost page faults.
    """

    rows: Tensor | None
    slots: Tensor
    length: int
    mask: Tensor | None
    buffers: dict[str, Tensor]


GROUP_VIEW_LIMIT = 256
"""A context in consecutive pages is read in place when it is at least this long; shorter ones cost more in dispatch
than a copy does."""


def _parts(layout: PagedLayout, window: int | None, dtype: torch.dtype) -> list[_Part]:
    """Every sequence by itself; computed by the first layer of a step, shared by the others."""
    key = ("torch", "parts", window, dtype)
    parts: list[_Part] | None = layout.memo.get(key)
    if parts is None:
        parts = [_part(layout, index, window, dtype) for index in range(layout.num_sequences)]
        layout.memo[key] = parts
    return parts


def _part(layout: PagedLayout, index: int, window: int | None, dtype: torch.dtype) -> _Part:
    start, stop = layout.query_starts[index], layout.query_starts[index + 1]
    queries, context = stop - start, layout.context_lens[index]
    slots = layout.context_slots[index]
    first = 0 if window is None else max(0, context - queries - window + 1)
    if first:
        slots = slice(slots.start + first, slots.stop) if isinstance(slots, slice) else slots[first:]
    keys = context - first
    limited = window is not None and keys > window
    if queries == 1:
        return _Part(start, stop, slots, None, False)
    if queries == keys and not limited:
        return _Part(start, stop, slots, None, True)
    offset = keys - queries
    device = layout.write_slots.device
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(offset)
    if limited and window is not None:
        visible.triu_(offset - window + 1)
    mask = torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(visible.logical_not_(), -math.inf)
    return _Part(start, stop, slots, mask, False)


def _plan(layout: PagedLayout, window: int | None, dtype: torch.dtype) -> tuple[list[_Part], list[_Group]]:
    """Which sequences are computed alone and which together: one call for many short contexts instead of one each."""
    key = ("torch", "plan", window, dtype)
    plan: tuple[list[_Part], list[_Group]] | None = layout.memo.get(key)
    if plan is None:
        alone: list[_Part] = []
        together: list[_Part] = []
        for part in _parts(layout, window, dtype):
            in_place = isinstance(part.slots, slice) and part.slots.stop - part.slots.start >= GROUP_VIEW_LIMIT
            (alone if in_place or part.stop - part.start > 1 else together).append(part)
        groups = []
        for bucket in _buckets(together):
            if len(bucket) > 1:
                groups.append(_group(bucket, layout, dtype))
            else:
                alone += bucket
        plan = layout.memo[key] = (alone, groups)
    return plan


def _length(part: _Part) -> int:
    return part.slots.stop - part.slots.start if isinstance(part.slots, slice) else part.slots.shape[0]


def _buckets(parts: list[_Part]) -> list[list[_Part]]:
    """Contexts of similar length, so that padding stays below about a third."""
    buckets: list[list[_Part]] = []
    for part in sorted(parts, key=_length):
        if buckets and _length(part) <= 1.5 * _length(buckets[-1][0]) + 32:
            buckets[-1].append(part)
        else:
            buckets.append([part])
    return [sorted(bucket, key=lambda part: part.start) for bucket in buckets]


def _group(parts: list[_Part], layout: PagedLayout, dtype: torch.dtype) -> _Group:
    device = layout.write_slots.device
    lengths = [_length(part) for part in parts]
    longest = max(lengths)
    slots = torch.empty(len(parts), longest, dtype=torch.int64, device=device)
    for row, part in zip(slots, parts, strict=True):
        own = part.slots
        own = torch.arange(own.start, own.stop, device=device) if isinstance(own, slice) else own
        row[: own.shape[0]] = own
        row[own.shape[0] :] = own[0]
    mask = None
    if min(lengths) < longest:
        padding = torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]
        mask = torch.zeros(slots.shape, dtype=dtype, device=device).masked_fill_(padding, -math.inf)[:, None, None]
    everything = len(parts) == layout.query_starts[-1]
    rows = None if everything else torch.tensor([part.start for part in parts], device=device)
    return _Group(rows, slots.flatten(), longest, mask, {})


def _gather(cache: Tensor, scales: Tensor | None, group: _Group, name: str, dtype: torch.dtype) -> Tensor:
    """Contexts of a group as [B, heads, length, dim] of ``dtype``; overwrites what the layer before gathered."""
    flat = cache.flatten(1)
    buffer = group.buffers.get(name)
    if buffer is None or buffer.shape[1] != flat.shape[1]:
        buffer = group.buffers[name] = cache.new_empty(group.slots.shape[0], flat.shape[1])
    torch.index_select(flat, 0, group.slots, out=buffer)
    gathered = buffer.view(-1, group.length, *cache.shape[1:])
    if scales is not None:
        gathered = dequantize(gathered, scales[group.slots].view(gathered.shape[:3]), dtype)
    return gathered.transpose(1, 2)


def _context(cache: Tensor, scales: Tensor | None, slots: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a cache [num_slots, heads, dim] as [1, heads, length, dim] of ``dtype``: a view of a cache without
    ``scales`` when ``slots`` is a slice."""
    if scales is not None:
        return dequantize(cache[slots], scales[slots], dtype).transpose(0, 1).unsqueeze(0)
    _, heads, dim = cache.shape
    if isinstance(slots, slice):
        row, head, column = cache.stride()
        length = slots.stop - slots.start
        return cache.as_strided(
            (1, heads, length, dim), (0, head, row, column), cache.storage_offset() + slots.start * row
        )
    return cache.index_select(0, slots).transpose(0, 1).unsqueeze(0)


def _latent_context(
    cache: Tensor, scales: KVScales | None, slots: slice | Tensor, rank: int, dtype: torch.dtype
) -> Tensor:
    """Rows of a latent cache as [length, rank + rope] of ``dtype``."""
    if scales is None:
        return _context(cache, None, slots, dtype)[0, 0]
    latents = _context(cache[..., :rank], scales.key, slots, dtype)
    return torch.cat([latents, _context(cache[..., rank:], scales.value, slots, dtype)], dim=-1)[0, 0]


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
    scales: KVScales | None = None,
    index: IndexCache | None = None,
) -> Tensor:
    """Dense for all rows; those that are sparse are then computed again, by the reference."""
    output = _dense_attention(query, key_cache, value_cache, layout, scale, window, scales)
    if index is not None:
        attend_sparsely(query, key_cache, value_cache, index, layout, scale, output, scales)
    return output


def _dense_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None,
    scales: KVScales | None,
) -> Tensor:
    """One fused attention call per long or many-rowed sequence and one for all short single queries together; the
    query heads of a KV head are rows of the same small product."""
    rows, heads, key_dim = query.shape
    kv_heads, value_dim = value_cache.shape[1:]
    grouped = query.view(rows, kv_heads, heads // kv_heads, key_dim)
    alone, groups = _plan(layout, window, query.dtype)
    key_scales, value_scales = (None, None) if scales is None else (scales.key, scales.value)
    results: list[tuple[slice | Tensor, Tensor]] = []
    for group in groups:
        keys = _gather(key_cache, key_scales, group, "keys", query.dtype)
        values = _gather(value_cache, value_scales, group, "values", query.dtype)
        if group.rows is None:
            return _attend(grouped, keys, values, group.mask, False, scale).reshape(rows, heads, value_dim)
        queries = grouped.index_select(0, group.rows)
        results.append((group.rows, _attend(queries, keys, values, group.mask, False, scale)))
    for part in alone:
        keys = _context(key_cache, key_scales, part.slots, query.dtype)
        values = _context(value_cache, value_scales, part.slots, query.dtype)
        queries = grouped[part.start : part.stop]
        if part.stop - part.start == 1:
            attended = _attend(queries, keys, values, None, False, scale)
        else:
            # [kv_heads, group, queries, dim] against [kv_heads, group (stride 0), keys, dim]: nothing is copied.
            shape = (-1, heads // kv_heads, -1, -1)
            keys, values = keys.transpose(0, 1).expand(shape), values.transpose(0, 1).expand(shape)
            attended = _attend(queries.permute(1, 2, 0, 3), keys, values, part.mask, part.causal, scale)
            attended = attended.permute(2, 0, 1, 3)
        if part.stop - part.start == rows:
            return attended.reshape(rows, heads, value_dim)
        results.append((slice(part.start, part.stop), attended))
    output = query.new_empty(rows, kv_heads, heads // kv_heads, value_dim)
    for where, attended in results:
        output[where] = attended
    return output.view(rows, heads, value_dim)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Scaled dot-product attention; the fused CPU kernel wants equal widths, so narrower values get zero columns."""
    width = values.shape[-1]
    if width < query.shape[-1]:
        values = F.pad(values, (0, query.shape[-1] - width))
    result = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal, scale=scale)
    return result[..., :width]


def mla_attention(
    query_nope: Tensor,
    query_rope: Tensor,
    latent_cache: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    layout: PagedLayout,
    scale: float,
    mode: str = "auto",
    scales: KVScales | None = None,
    index: IndexCache | None = None,
) -> Tensor:
    _, nope, rank = key_up.shape
    value_dim = value_up.shape[1]
    # Multiplications per head and cached token: expanding pays rank * (nope + value_dim) once, absorbing pays the
    # wider rows (rank instead of nope, and of value_dim) for each query.
    break_even = rank * (nope + value_dim) / max(1, 2 * rank - nope - value_dim)
    output = query_nope.new_empty(query_nope.shape[0], query_nope.shape[1], value_dim)
    absorbed: list[tuple[_Part, Tensor]] = []
    folded: Tensor | None = None
    for part in _parts(layout, None, query_nope.dtype):
        rows = slice(part.start, part.stop)
        latent = _latent_context(latent_cache, scales, part.slots, rank, query_nope.dtype)
        if mode == "absorbed" or (mode == "auto" and part.stop - part.start <= break_even):
            if folded is None:
                folded = torch.cat([torch.bmm(query_nope.transpose(0, 1), key_up), query_rope.transpose(0, 1)], dim=-1)
            absorbed.append((part, _attend_latents(folded[:, rows], latent, part, scale)[..., :rank]))
        else:
            output[rows] = _mla_expanded(query_nope[rows], query_rope[rows], latent, key_up, value_up, part, scale)
    if absorbed:
        joined = torch.cat([attended for _, attended in absorbed], dim=1)
        values = torch.bmm(joined, value_up.transpose(1, 2)).transpose(0, 1)
        first = 0
        for part, _ in absorbed:
            last = first + part.stop - part.start
            output[part.start : part.stop] = values[first:last]
            first = last
    if index is not None and layout.sparse_rows:
        attend_latents_sparsely(
            query_nope, query_rope, latent_cache, key_up, value_up, index, layout, scale, output, scales
        )  # fmt: skip
    return output


def _attend_latents(query: Tensor, latent: Tensor, part: _Part, scale: float) -> Tensor:
    """``query`` [heads, queries, rank + rope] over ``latent`` [keys, rank + rope], as keys and as values.

    The values are really the first ``rank`` columns; taking all and dropping the last columns of the result saves a
    copy of the cache.
    """
    if query.shape[1] == 1:  # all heads as the rows of one product
        shared = latent[None, None]
        return _attend(query.transpose(0, 1)[None], shared, shared, part.mask, part.causal, scale)[0].transpose(0, 1)
    shared = latent.expand(1, query.shape[0], -1, -1)
    return _attend(query[None], shared, shared, part.mask, part.causal, scale)[0]


def _mla_expanded(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, key_up: Tensor, value_up: Tensor, part: _Part, scale: float
) -> Tensor:
    heads, nope, rank = key_up.shape
    rope = q_rope.shape[2]
    compressed = latent[:, :rank].expand(heads, -1, -1)
    keys = latent.new_empty(heads, latent.shape[0], nope + rope)
    keys[..., :nope] = torch.bmm(compressed, key_up.transpose(1, 2))
    keys[..., nope:] = latent[:, rank:]
    values = torch.bmm(compressed, value_up.transpose(1, 2))
    query = torch.cat([q_nope, q_rope], dim=-1).transpose(0, 1)
    return _attend(query[None], keys[None], values[None], part.mask, part.causal, scale)[0].transpose(0, 1)
