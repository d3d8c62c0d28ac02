"""The truth of every op: slow, obvious, in fp32, one sequence and one query at a time. Nobody tunes this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deepseek.kernels.int8_cache import dequantize, quantize
from deepseek.kernels.low_rank import LowRankUpdates
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout
from deepseek.kernels.sparse_reference import attend_latents_sparsely, attend_sparsely, index_pages


def pack_linear(weight: Tensor) -> Tensor:
    return weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = x.float() @ weight.float().T
    if bias is not None:
        result = result + bias.float()
    return result.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    mean_square = (wide * wide).mean(dim=-1, keepdim=True)
    return (wide / torch.sqrt(mean_square + eps) * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = residual + x
    return rms_norm(total, weight, eps), total


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    half = cos.shape[-1]
    result = x.float().clone()
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        a, b = x[..., first].float(), x[..., second].float()
        c, s = cos[:, None, i], sin[:, None, i]
        result[..., first] = a * c - b * s
        result[..., second] = b * c + a * s
    return result.to(x.dtype)


def gated_activation(gate_up: Tensor, kind: str) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    if kind == "silu":
        activated = gate / (1.0 + torch.exp(-gate))
    elif kind == "gelu_tanh":
        activated = 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)))
    else:
        raise ValueError(f"unknown activation {kind!r}")
    return (activated * up).to(gate_up.dtype)


def write_kv(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    scales: KVScales | None = None,
) -> None:
    for row, slot in enumerate(slots.tolist()):
        if scales is None:
            key_cache[slot], value_cache[slot] = key[row], value[row]
        else:
            key_cache[slot], scales.key[slot] = quantize(key[row], scales.key.dtype)
            value_cache[slot], scales.value[slot] = quantize(value[row], scales.value.dtype)


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
    write_kv(rotary(key, cos, sin, interleaved), value, key_cache, value_cache, slots, scales)
    return rotary(query, cos, sin, interleaved)


def context_slots(layout: PagedLayout, sequence: int) -> list[int]:
    """Slot of each token of a sequence's context, in order, straight from the definition of a page."""
    pages, size = layout.pages[sequence], layout.page_size
    return [pages[p // size] * size + p % size for p in range(layout.context_lens[sequence])]


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
    all_keys, all_values = key_cache, value_cache
    if scales is not None:
        all_keys = dequantize(key_cache, scales.key, torch.float32)
        all_values = dequantize(value_cache, scales.value, torch.float32)
    heads, kv_heads = query.shape[1], key_cache.shape[1]
    result = query.new_zeros(query.shape[0], heads, value_cache.shape[2])
    for sequence, context_len in enumerate(layout.context_lens):
        start, stop = layout.query_starts[sequence], layout.query_starts[sequence + 1]
        slots = context_slots(layout, sequence)
        for row in range(start, stop):
            position = context_len - (stop - row)
            first = 0 if window is None else max(0, position - window + 1)
            visible = slots[first : position + 1]
            for head in range(heads):
                kv_head = head // (heads // kv_heads)
                keys, values = all_keys[visible, kv_head].float(), all_values[visible, kv_head].float()
                weights = torch.softmax(keys @ query[row, head].float() * scale, dim=0)
                result[row, head] = (weights @ values).to(result.dtype)
    if index is not None:
        attend_sparsely(query, key_cache, value_cache, index, layout, scale, result, scales)
    return result


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
    """Always expanded, whatever ``mode`` says: the two forms are the same function."""
    rank = key_up.shape[2]
    latent, key_rope = latent_cache[:, 0, :rank].float(), latent_cache[:, 0, rank:].float()
    if scales is not None:
        latent = dequantize(latent, scales.key[:, 0], torch.float32)
        key_rope = dequantize(key_rope, scales.value[:, 0], torch.float32)
    keys_nope = torch.einsum("sr,hnr->shn", latent, key_up.float())
    keys = torch.cat([keys_nope, key_rope[:, None].expand(-1, key_up.shape[0], -1)], dim=-1)
    values = torch.einsum("sr,hvr->shv", latent, value_up.float())
    query = torch.cat([query_nope, query_rope], dim=-1).float()
    result = paged_attention(query, keys, values, layout, scale).to(query_nope.dtype)
    if index is not None and layout.sparse_rows:
        attend_latents_sparsely(
            query_nope, query_rope, latent_cache, key_up, value_up, index, layout, scale, result, scales
        )  # fmt: skip
    return result


def moe(x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor, kind: str) -> Tensor:
    result = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for row in range(x.shape[0]):
        for expert, weight in zip(expert_ids[row].tolist(), expert_weights[row].tolist(), strict=True):
            inner = gated_activation(linear(x[row : row + 1], gate_up[expert]), kind)
            result[row] += weight * linear(inner, down[expert])[0].float()
    return result.to(x.dtype)


def low_rank(x: Tensor, y: Tensor, bias: Tensor | None, updates: LowRankUpdates) -> None:
    numbers = {row: number for number, start, stop in updates.rows.segments for row in range(start, stop)}
    for row, number in numbers.items():
        for column, a, b, gain in updates.parts.get(number, ()):
            columns = slice(column, column + len(b))
            own = y[row, columns].float()
            if gain is not None:
                kept = torch.zeros_like(own) if bias is None else bias[columns].float()
                own = (own - kept) * gain.float() + kept
            y[row, columns] = (own + b.float() @ (a.float() @ x[row].float())).to(y.dtype)


def functions() -> Mapping[str, Callable[..., Any]]:
    """op name -> function, for the registry."""
    return {
        "pack_linear": pack_linear,
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "gated_activation": gated_activation,
        "rotary_write_kv": rotary_write_kv,
        "index_pages": index_pages,
        "paged_attention": paged_attention,
        "mla_attention": mla_attention,
        "moe": moe,
        "low_rank": low_rank,
    }
