"""The plain-torch backend, tuned for CPUs: few dispatches, no copies of the cache where a view will do. On a GPU it is
what remains where Triton cannot run.

Numbers behind the choices are in docs/log.md; the shapes were SmolLM2's, one token and 32 and 256 rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels.int8_cache import quantize
from deepseek.kernels.low_rank import LowRankUpdates
from deepseek.kernels.paging import KVScales
from deepseek.kernels.sparse_reference import index_pages
from deepseek.kernels.torch_attention import mla_attention, paged_attention


def pack_linear(weight: Tensor) -> Tensor:
    # oneDNN multiplies bf16 on AMX tiles, and otherwise rearranges the matrix for them again in every call.
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _has_amx():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed
    return weight


@cache
def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # A few small kernels, half the time of F.rms_norm's: x / hypot(|x| / sqrt(n), sqrt(eps)) * weight.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).mul_(1.0 / math.sqrt(x.shape[-1]))
    return torch.div(x, norm.hypot_(_scalar(math.sqrt(eps), x.device))).mul_(weight).to(x.dtype)


_SCALARS: dict[tuple[float, torch.device], Tensor] = {}


def _scalar(value: float, device: torch.device) -> Tensor:
    """A one-element tensor of a constant: hypot takes no Python number."""
    tensor = _SCALARS.get((value, device))
    if tensor is None:
        tensor = _SCALARS[value, device] = torch.full((), value, dtype=torch.float32, device=device)
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


def write_kv(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    scales: KVScales | None = None,
) -> None:
    if scales is not None:
        key, key_scales = quantize(key, scales.key.dtype)
        value, value_scales = quantize(value, scales.value.dtype)
        scales.key.index_copy_(0, slots, key_scales)
        scales.value.index_copy_(0, slots, value_scales)
    key_cache.index_copy_(0, slots, key)
    value_cache.index_copy_(0, slots, value)


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


def low_rank(x: Tensor, y: Tensor, bias: Tensor | None, updates: LowRankUpdates) -> None:
    for number, begin, end in updates.rows.segments:
        for column, a, b, gain in updates.parts.get(number, ()):
            columns = slice(column, column + len(b))
            own = y[begin:end, columns]
            if gain is not None:
                own.mul_(gain)
                if bias is not None:
                    own.add_(bias[columns] * (1 - gain))
            own.addmm_(x[begin:end] @ a.T, b.T)


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
