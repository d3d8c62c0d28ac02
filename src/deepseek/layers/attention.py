"""Grouped-query attention over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import LayerCache, PagedLayout
from deepseek.layers.linear import Linear
from deepseek.layers.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Heads, their width, the softmax scale, and how far back a query sees (None: everything)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None


class Attention:
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245); q, k and v are one matrix [q | k | v].

    With ``query_norm`` and ``key_norm`` each head is normalised before it is rotated (Qwen3, Gemma 3).
    """

    def __init__(
        self,
        ops: Ops,
        shape: AttentionShape,
        qkv: Linear,
        output: Linear,
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
    ) -> None:
        self._ops = ops
        self.shape = shape
        self.qkv = qkv
        self.output = output
        self.query_norm = query_norm
        self.key_norm = key_norm

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: PagedLayout,
        cache: LayerCache,
    ) -> Tensor:
        """``x`` [T, hidden] -> [T, hidden]; writes the rows' keys and values to the cache. With an index, full pages
        are indexed, and the layout's sparse rows attend sparsely."""
        keys, values, scales, index = cache
        assert values is not None
        ops, shape = self._ops, self.shape
        rows, turned = x.shape[0], shape.heads + shape.kv_heads
        qkv = self.qkv(x).view(rows, turned + shape.kv_heads, shape.head_dim)
        query, key, value = qkv[:, : shape.heads], qkv[:, shape.heads : turned], qkv[:, turned:]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = ops.rotary_write_kv(query, key, value, *rotation, keys, values, layout.write_slots, False, scales)
        if index is not None:
            ops.index_pages(keys, values, index, layout, scales)
        attended = ops.paged_attention(query, keys, values, layout, shape.scale, shape.window, scales, index)
        return self.output(attended.reshape(rows, shape.heads * shape.head_dim))
