"""The tuned plain-torch backend for CPUs: few dispatches, no copies of the cache where a view will do.

Numbers behind the choices are in docs/log.md; the shapes were SmolLM2's, one token and 32 and 256 rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels.paging import PagedLayout


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype != torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    # Four small kernels, half the time of F.rms_norm's six: x / hypot(|x| / sqrt(n), sqrt(eps)) * weight.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(1.0 / math.sqrt(x.shape[-1]))
    return torch.div(x, norm.hypot_(_scalar(math.sqrt(eps)))).mul_(weight)


_SCALARS: dict[float, Tensor] = {}


def _scalar(value: float) -> Tensor:
    """A one-element tensor of a constant: hypot takes no Python number."""
    tensor = _SCALARS.get(value)
    if tensor is None:
        tensor = _SCALARS[value] = torch.tensor(value, dtype=torch.float32)
    return tensor


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = residual.add_(x)
    return rms_norm(total, weight, eps), total


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """In place for fp32."""
    half = cos.shape[-1]
    turned = x[..., : 2 * half]
    wide = turned if x.dtype == torch.float32 else turned.float()
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
    else:
        a, b = wide[..., :half], wide[..., half:]
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    a_sin = a * s
    a.mul_(c).addcmul_(b, s, value=-1)
    b.mul_(c).add_(a_sin)
    if wide is not turned:
        turned.copy_(wide)
    return x


def gated_activation(gate_up: Tensor, kind: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    if kind == "silu":
        return F.silu(gate).mul_(up)
    if kind == "gelu_tanh":
        return F.gelu(gate, approximate="tanh").mul_(up)
    raise ValueError(f"unknown activation {kind!r}")


def write_kv(key: Tensor, value: Tensor | None, key_cache: Tensor, value_cache: Tensor | None, slots: Tensor) -> None:
    key_cache.index_copy_(0, slots, key)
    if value is not None and value_cache is not None:
        value_cache.index_copy_(0, slots, value)


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


def _plan(layout: PagedLayout, window: int | None, dtype: torch.dtype) -> list[_Part]:
    """What attention needs to know of a layout; computed by the first layer of a step, shared by the others."""
    key = ("torch", window, dtype)
    plan: list[_Part] | None = layout.memo.get(key)
    if plan is None:
        plan = [_plan_part(layout, i, window, dtype) for i in range(layout.num_sequences)]
        layout.memo[key] = plan
    return plan


def _plan_part(layout: PagedLayout, index: int, window: int | None, dtype: torch.dtype) -> _Part:
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
    visible = torch.ones(queries, keys, dtype=torch.bool, device=layout.write_slots.device).tril_(offset)
    if limited and window is not None:
        visible.triu_(offset - window + 1)
    mask = torch.zeros(queries, keys, dtype=dtype, device=visible.device).masked_fill_(
        visible.logical_not_(), -math.inf
    )
    return _Part(start, stop, slots, mask, False)


def _context(cache: Tensor, slots: slice | Tensor) -> Tensor:
    """Rows of a cache [num_slots, heads, dim] as [1, heads, length, dim]: a view when ``slots`` is a slice."""
    _, heads, dim = cache.shape
    if isinstance(slots, slice):
        row, head, column = cache.stride()
        length = slots.stop - slots.start
        return cache.as_strided(
            (1, heads, length, dim), (0, head, row, column), cache.storage_offset() + slots.start * row
        )
    return cache.index_select(0, slots).transpose(0, 1).unsqueeze(0)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """One fused attention call per sequence; the query heads of a KV head are rows of the same small product."""
    rows, heads, key_dim = query.shape
    kv_heads, value_dim = value_cache.shape[1:]
    grouped = query.view(rows, kv_heads, heads // kv_heads, key_dim)
    outputs = []
    for part in _plan(layout, window, query.dtype):
        keys, values = _context(key_cache, part.slots), _context(value_cache, part.slots)
        queries = grouped[part.start : part.stop]
        if part.stop - part.start == 1:
            outputs.append(_attend(queries, keys, values, part, scale))
        else:
            # [kv_heads, group, queries, dim] against [kv_heads, group (stride 0), keys, dim]: nothing is copied.
            shape = (-1, heads // kv_heads, -1, -1)
            keys, values = keys.transpose(0, 1).expand(shape), values.transpose(0, 1).expand(shape)
            outputs.append(_attend(queries.permute(1, 2, 0, 3), keys, values, part, scale).permute(2, 0, 1, 3))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).reshape(rows, heads, value_dim)


def _attend(query: Tensor, keys: Tensor, values: Tensor, part: _Part, scale: float) -> Tensor:
    """Scaled dot-product attention; the fused CPU kernel wants equal widths, so narrower values get zero columns."""
    width = values.shape[-1]
    if width < query.shape[-1]:
        values = F.pad(values, (0, query.shape[-1] - width))
    result = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=part.mask, is_causal=part.causal, scale=scale
    )
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
) -> Tensor:
    _, nope, rank = key_up.shape
    value_dim = value_up.shape[1]
    # Multiplications per head and cached token: expanding pays rank * (nope + value_dim) once, absorbing pays the
    # wider rows (rank instead of nope, and of value_dim) for each query.
    break_even = rank * (nope + value_dim) / max(1, 2 * rank - nope - value_dim)
    output = query_nope.new_empty(query_nope.shape[0], query_nope.shape[1], value_dim)
    absorbed: list[tuple[_Part, Tensor]] = []
    folded: Tensor | None = None
    for part in _plan(layout, None, query_nope.dtype):
        rows = slice(part.start, part.stop)
        latent = _context(latent_cache, part.slots)[0, 0]
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
    return output


def _attend_latents(query: Tensor, latent: Tensor, part: _Part, scale: float) -> Tensor:
    """``query`` [heads, queries, rank + rope] over ``latent`` [keys, rank + rope], as keys and as values.

    The values are really the first ``rank`` columns; taking all and dropping the last columns of the result saves a
    copy of the cache.
    """
    if query.shape[1] == 1:  # all heads as the rows of one product
        shared = latent[None, None]
        return _attend(query.transpose(0, 1)[None], shared, shared, part, scale)[0].transpose(0, 1)
    shared = latent.expand(1, query.shape[0], -1, -1)
    return _attend(query[None], shared, shared, part, scale)[0]


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
    return _attend(query[None], keys[None], values[None], part, scale)[0].transpose(0, 1)


def moe(x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor, kind: str) -> Tensor:
    """Rows sorted by expert, so that each expert's weights are read once."""
    chosen = expert_ids.flatten()
    order = chosen.argsort(stable=True)
    rows = order.div(expert_ids.shape[1], rounding_mode="floor")
    gathered = x.index_select(0, rows)
    results = torch.empty_like(gathered)
    start = 0
    for expert, count in enumerate(torch.bincount(chosen, minlength=gate_up.shape[0]).tolist()):
        if count:
            stop = start + count
            inner = gated_activation(F.linear(gathered[start:stop], gate_up[expert]), kind)
            torch.mm(inner, down[expert].T, out=results[start:stop])
            start = stop
    weighted = results * expert_weights.flatten().index_select(0, order).unsqueeze(1)
    return torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add_(0, rows, weighted).to(x.dtype)


def functions() -> Mapping[str, Callable[..., Any]]:
    """op name -> function, for the registry."""
    return {
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "rotary": rotary,
        "gated_activation": gated_activation,
        "write_kv": write_kv,
        "paged_attention": paged_attention,
        "mla_attention": mla_attention,
        "moe": moe,
    }
