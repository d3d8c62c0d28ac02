"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) over a paged cache of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import KVScales, LayerCache, PagedLayout
from deepseek.layers.linear import Linear
from deepseek.layers.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Heads and the widths of their parts; ``interleaved`` says how rotary pairs lie."""

    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rank: int
    scale: float
    interleaved: bool


class LatentAttention:
    """Keys and values of all heads are linear in one latent per token; the cache holds [latent | rotated shared key].

    Attributes:
        query_down, query_norm: the low-rank query path's first half; None when queries are projected directly.
        query: [heads * (nope + rope), hidden or query rank].
        latent_down: [rank + rope, hidden].
        latent_norm: norm of the latent.
        key_up: [heads, nope, rank]; value_up: [heads, value_dim, rank]; as
            :meth:`deepseek.models.weights.WeightSource.latent_up` packed them.
        output: [hidden, heads * value_dim].
        mode: ``auto``, ``expanded`` or ``absorbed``; see :meth:`deepseek.kernels.ops.Ops.mla_attention`.
    """

    def __init__(
        self,
        ops: Ops,
        shape: LatentShape,
        *,
        query_down: Linear | None,
        query_norm: RMSNorm | None,
        query: Linear,
        latent_down: Linear,
        latent_norm: RMSNorm,
        key_up: Any,
        value_up: Any,
        output: Linear,
        mode: str = "auto",
    ) -> None:
        self._ops = ops
        self.shape = shape
        self.query_down = query_down
        self.query_norm = query_norm
        self.query = query
        self.latent_down = latent_down
        self.latent_norm = latent_norm
        self.key_up = key_up
        self.value_up = value_up
        self.output = output
        self.mode = mode

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: PagedLayout,
        cache: LayerCache,
    ) -> Tensor:
        """``x`` [T, hidden] -> [T, hidden]; writes the rows' latents to the cache. Its index is used as in
        :class:`deepseek.layers.attention.Attention`."""
        ops, shape = self._ops, self.shape
        rows, scales = x.shape[0], cache.scales
        compressed = x
        if self.query_down is not None and self.query_norm is not None:
            compressed = self.query_norm(self.query_down(x))
        query = self.query(compressed).view(rows, shape.heads, shape.nope_dim + shape.rope_dim)
        query_nope, query_rope = query[..., : shape.nope_dim], query[..., shape.nope_dim :]
        down = self.latent_down(x).unsqueeze(1)
        latent = self.latent_norm(down[..., : shape.rank])
        latents, rotated = cache.keys[..., : shape.rank], cache.keys[..., shape.rank :]
        query_rope = ops.rotary_write_kv(
            query_rope,
            down[..., shape.rank :],
            latent,
            *rotation,
            rotated,
            latents,
            layout.write_slots,
            shape.interleaved,
            None if scales is None else KVScales(key=scales.value, value=scales.key),
        )
        if cache.page_index is not None:
            ops.index_pages(cache.keys, None, cache.page_index, layout, scales)
        attended = ops.mla_attention(
            query_nope,
            query_rope,
            cache.keys,
            self.key_up,
            self.value_up,
            layout,
            shape.scale,
            self.mode,
            scales,
            cache.page_index,
        )
        return self.output(attended.reshape(rows, shape.heads * shape.value_dim))
