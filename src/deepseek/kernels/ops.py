"""The signatures of all kernels. Models call these; which backend runs is bound once, when a model is loaded.

Rows of a ragged batch are called T; ``x`` and weights share one floating dtype unless said otherwise. Every op has a
slow and obvious truth in :mod:`deepseek.kernels.reference`; other backends are held to it by shared test cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepseek.kernels.low_rank import LowRankUpdates
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout


@dataclass(frozen=True)
class Binding:
    """Which function an op got, from which backend, and why."""

    op: str
    backend: str
    reason: str
    function: Callable[..., Any]


class Ops:
    """One bound function per op. Built by :func:`deepseek.kernels.registry.bind`."""

    def __init__(self, bindings: Mapping[str, Binding]) -> None:
        self.bindings = dict(bindings)
        self._pack_linear: Callable[..., Tensor] = bindings["pack_linear"].function
        self._linear: Callable[..., Tensor] = bindings["linear"].function
        self._rms_norm: Callable[..., Tensor] = bindings["rms_norm"].function
        self._add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = bindings["add_rms_norm"].function
        self._gated_activation: Callable[..., Tensor] = bindings["gated_activation"].function
        self._rotary_write_kv: Callable[..., Tensor] = bindings["rotary_write_kv"].function
        self._index_pages: Callable[..., None] = bindings["index_pages"].function
        self._paged_attention: Callable[..., Tensor] = bindings["paged_attention"].function
        self._mla_attention: Callable[..., Tensor] = bindings["mla_attention"].function
        self._moe: Callable[..., Tensor] = bindings["moe"].function
        self._low_rank: Callable[..., None] = bindings["low_rank"].function

    def pack_linear(self, weight: Tensor) -> Tensor:
        """``weight`` [out, in] in the layout that :meth:`linear` of the same backend likes best, done once at load.

        The result is for :meth:`linear` alone: nothing but its shape, dtype and device may be looked at.
        """
        return self._pack_linear(weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x [T, in] @ weight [out, in].T (+ bias [out])`` -> [T, out]; ``weight`` plain or packed."""
        return self._linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019), computed in fp32, times ``weight``.

        ``x`` [..., dim], ``weight`` [dim]; returns a new tensor shaped like ``x``. Gemma's ``1 + weight`` is folded
        into ``weight`` at load.
        """
        return self._rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``residual + x`` [T, dim] and its norm: returns (norm, sum). May reuse the memory of ``residual``."""
        return self._add_rms_norm(x, residual, weight, eps)

    def gated_activation(self, gate_up: Tensor, kind: str) -> Tensor:
        """``act(gate) * up`` for ``gate_up`` [T, 2 * dim] = [gate | up]; kind ``silu`` or ``gelu_tanh``; [T, dim]."""
        return self._gated_activation(gate_up, kind)

    def rotary_write_kv(
        self,
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
        """Rotary position embedding (Su et al. 2021) of ``query`` [T, heads, query_dim] and ``key`` [T, kv_heads,
        key_dim] with ``cos``, ``sin`` fp32 [T, rot/2]; row t of the turned keys and of ``value`` [T, kv_heads,
        value_dim] goes to slot ``slots[t]`` of the caches [num_slots, kv_heads, dim], which may be parts of something
        wider (a latent cache).

        The first ``rot`` dimensions turn, others pass through. Pairs are (i, i + rot/2), or (2i, 2i + 1) when
        ``interleaved``. With ``scales`` the caches are INT8 and each head of each token gets the scale that fits its
        largest element: an element is ``round(x / scale)``, and the scale is rounded to its dtype before it is used.
        Returns the turned queries; may turn ``query`` and ``key`` in place.
        """
        return self._rotary_write_kv(query, key, value, cos, sin, key_cache, value_cache, slots, interleaved, scales)

    def index_pages(
        self,
        key_cache: Tensor,
        value_cache: Tensor | None,
        index: IndexCache,
        layout: PagedLayout,
        scales: KVScales | None = None,
    ) -> None:
        """Make the index of the pages that this step's rows have filled; their keys are written. Pages have 64 tokens.

        Caches as in :meth:`paged_attention`. ``value_cache`` None, for latents: the values are the first columns of
        the keys.
        """
        self._index_pages(key_cache, value_cache, index, layout, scales)

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        scales: KVScales | None = None,
        index: IndexCache | None = None,
    ) -> Tensor:
        """Causal grouped-query attention of a ragged batch over the paged cache (this step's keys already written).

        ``query`` [T, heads, key_dim]; ``key_cache`` [num_slots, kv_heads, key_dim]; ``value_cache``
        [num_slots, kv_heads, value_dim]; heads is a multiple of kv_heads. A query at position p sees positions
        max(0, p - window + 1) .. p. With ``scales`` the caches are INT8. With an ``index``, which a cache with a window
        does not have, the layout's sparse rows attend as :func:`deepseek.attention.decode.sparse_decode` does. Returns
        [T, heads, value_dim].
        """
        return self._paged_attention(query, key_cache, value_cache, layout, scale, window, scales, index)

    def mla_attention(
        self,
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
        """Causal multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) of a ragged batch.

        ``query_nope`` [T, heads, nope]; ``query_rope`` [T, heads, rope]; ``latent_cache`` [num_slots, 1, rank + rope]
        holds the normalised latent and the rotated shared key; ``key_up`` [heads, nope, rank]; ``value_up``
        [heads, value_dim, rank]. ``mode``: ``expanded`` materialises keys and values, ``absorbed`` folds ``key_up``
        into the query and attends over the latents, ``auto`` absorbs where one query sees a context. With
        ``scales`` the cache is INT8. With an ``index`` the layout's sparse rows are absorbed and attend
        sparsely. Returns [T, heads, value_dim].
        """
        return self._mla_attention(
            query_nope, query_rope, latent_cache, key_up, value_up, layout, scale, mode, scales, index
        )

    def moe(
        self, x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, expert_weights: Tensor, kind: str
    ) -> Tensor:
        """Mixture of experts: ``sum_k w[t, k] * down[e] act(gate_up[e] x[t])`` with e = ``expert_ids[t, k]``.

        ``x`` [T, dim]; ``gate_up`` [experts, 2 * inner, dim]; ``down`` [experts, dim, inner]; both may be in a form of
        the backend's own, as quantized; ``expert_ids`` int64 [T, K]; ``expert_weights`` fp32 [T, K]; ``kind`` as in
        :meth:`gated_activation`. Returns [T, dim].
        """
        return self._moe(x, gate_up, down, expert_ids, expert_weights, kind)

    def low_rank(self, x: Tensor, y: Tensor, bias: Tensor | None, updates: LowRankUpdates) -> None:
        """Low-rank updates of a matrix (LoRA: Hu et al. 2021, arXiv:2106.09685): adds to those rows of ``y`` [T, out]
        that have an adapter what its parts make of ``x`` [T, in], in place.

        ``y`` holds the matrix's own outputs, ``bias`` [out] in them: a part with a gain multiplies them first, but not
        their bias. Other rows stay as they are.
        """
        self._low_rank(x, y, bias, updates)
