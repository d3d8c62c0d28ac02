"""The stack that all families share: embedding, pre-norm layers, final norm, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepseek.adapters.adapter import LowRankUpdate, Prefix
from deepseek.attention.stats import AttentionStats
from deepseek.kernels.page_index import IndexCache, index_bytes, new_counters, stats_of
from deepseek.kernels.paging import LayerCache, PagedLayout
from deepseek.kernels.sampling import Choice, choose_tokens
from deepseek.kernels.torch_ops import write_kv
from deepseek.layers.embedding import Embedding, Head
from deepseek.layers.moe import FeedForward
from deepseek.layers.norm import RMSNorm
from deepseek.layers.rotary import Rotary
from deepseek.models.adapters import AdapterLayers, add_torch_adapter, host_of
from deepseek.models.base import WIDE_ROWS, Batch, KVCache, LayerCacheSpec, SpillSpace
from deepseek.models.sparse import IndexShape, check_page_size, index_shapes, with_errors


class Mixer(Protocol):
    """What stands in the attention place of a layer."""

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: PagedLayout,
        cache: LayerCache,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One pre-norm layer. Between layers travel (output not yet added, residual), so that each addition is fused
    with the norm that follows it.

    Attributes:
        rotary: index of the model's rotation that this layer uses.
        after_attention, after_feed_forward: norms of a sub-layer's output before it is added (Gemma 3), or None.
    """

    attention: Mixer
    feed_forward: FeedForward
    before_attention: RMSNorm
    before_feed_forward: RMSNorm
    rotary: int = 0
    after_attention: RMSNorm | None = None
    after_feed_forward: RMSNorm | None = None

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        layout: PagedLayout,
        cache: LayerCache,
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            normed, residual = self.before_attention(x), x
        else:
            normed, residual = self.before_attention.after_add(x, residual)
        x = self.attention(normed, rotation, layout, cache)
        if self.after_attention is not None:
            x = self.after_attention(x)
        normed, residual = self.before_feed_forward.after_add(x, residual)
        x = self.feed_forward(normed)
        if self.after_feed_forward is not None:
            x = self.after_feed_forward(x)
        return x, residual


class Decoder:
    """A causal language model; satisfies :class:`deepseek.models.base.Model`.

    Attributes:
        architecture: the Hugging Face class name.
        weights_bytes: memory of the weights.
        cache_dtype: of the caches it makes: ``dtype``, or INT8.
        sparse: caches have an index; to be set before the first one is made.
        counters: what sparse attention has read (:class:`deepseek.kernels.page_index.IndexCache`).
    """

    stream_device: torch.device | None = None
    row_invariant = False
    pages_together = True
    wide_rows = WIDE_ROWS

    def __init__(
        self,
        *,
        architecture: str,
        embedding: Embedding,
        layers: Sequence[DecoderLayer],
        norm: RMSNorm,
        head: Head,
        rotaries: Sequence[Rotary],
        cache_specs: Sequence[LayerCacheSpec],
        vocab_size: int,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        weights_bytes: int,
    ) -> None:
        self.architecture = architecture
        self.vocab_size = vocab_size
        self.hidden_size = norm.weight.shape[0]
        self.max_context = max_context
        self.cache_specs = tuple(cache_specs)
        self.dtype = self.cache_dtype = dtype
        self.device = device
        self.weights_bytes = weights_bytes
        self.layers = tuple(layers)
        self.embedding = embedding
        self.norm = norm
        self.head = head
        self.rotaries = tuple(rotaries)
        self.host = host_of(self)
        self.sparse = False
        self.counters = new_counters(device)
        self._adapters = AdapterLayers()

    def set_cache_dtype(self, kv_dtype: str) -> None:
        """Make INT8 caches if ``kv_dtype`` is ``int8``, else caches of ``dtype``."""
        self.cache_dtype = torch.int8 if kv_dtype == "int8" else self.dtype

    def page_bytes(self, page_size: int) -> int:
        cache = sum(spec.page_bytes(page_size, self.cache_dtype) for spec in self.cache_specs)
        return cache + self.index_page_bytes()

    def index_page_bytes(self) -> int:
        """Bytes that the index takes per page, over all layers."""
        return sum(index_bytes(*shape) for shape in self._index_shapes() if shape is not None)

    def _index_shapes(self) -> list[IndexShape | None]:
        if not self.sparse:
            return [None] * len(self.layers)
        return index_shapes([layer.attention for layer in self.layers], self.cache_specs)

    def spill_page_bytes(self, page_size: int) -> int:
        return 0

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> KVCache:
        """Raises ConfigurationError for a page size that cannot be indexed, where it must."""
        assert spill is None, "torch caches do not spill"
        if self.sparse:
            check_page_size(page_size)
        indexes = [
            None if shape is None else IndexCache.allocate(num_pages, *shape, self.counters)
            for shape in self._index_shapes()
        ]
        return KVCache(self.cache_specs, num_pages, page_size, self.cache_dtype, self.device, indexes)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Write this step's keys and values, and return fp32 logits [R, vocab_size] of ``batch.logits_rows``."""
        return self.head(self._normed(*self._layers(batch, cache), batch.logits_rows))

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """See :class:`deepseek.models.base.Model`."""
        x, residual = self._layers(batch, cache)
        hidden = self._normed(x, residual, hidden_rows).float()
        return self.head(self._normed(x, residual, batch.logits_rows)), hidden

    def _layers(self, batch: Batch, cache: KVCache) -> tuple[Tensor, Tensor]:
        """What the last layer leaves: (output not yet added, residual)."""
        if batch.sparse and self.sparse:
            batch = with_errors(batch)
        rotations = [rotary(batch.positions) for rotary in self.rotaries]
        self._adapters.rows.segments, self._adapters.rows.tiles = batch.segments, batch.adapter_tiles
        x, residual = self.embedding(batch.known_ids()), None
        if batch.vector_rows is not None and batch.vectors is not None:
            x[batch.vector_rows] = batch.vectors.to(x)
        for layer, own in zip(self.layers, cache.layers, strict=True):
            x, residual = layer(x, residual, rotations[layer.rotary], batch.layout, own)
        assert residual is not None
        return x, residual

    def _normed(self, x: Tensor, residual: Tensor, rows: Tensor | None) -> Tensor:
        if rows is not None:
            x, residual = x.index_select(0, rows), residual.index_select(0, rows)
        normed, _ = self.norm.after_add(x, residual)
        return normed

    def add_adapter(self, updates: Mapping[str, LowRankUpdate]) -> int:
        """See :class:`deepseek.models.base.Model`."""
        number = self._adapters.free_number()
        add_torch_adapter(self, self._adapters, number, updates)
        return number

    def remove_adapter(self, number: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        del self._adapters.bytes[number]
        for changed in self._adapters.updates.values():
            changed.remove(number)

    def adapter_bytes(self, number: int) -> int:
        """See :class:`deepseek.models.base.Model`."""
        return self._adapters.bytes[number]

    def write_prefix(self, cache: KVCache, slots: Sequence[int], prefix: Prefix, first: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        where = torch.tensor(slots, device=self.device)
        end = first + len(slots)
        for layer, (keys, values, scales, _) in enumerate(cache.layers):
            assert values is not None
            own_keys = prefix.keys[layer, first:end].view(-1, *keys.shape[1:]).to(self.device, self.dtype)
            own_values = prefix.values[layer, first:end].view(-1, *values.shape[1:]).to(self.device, self.dtype)
            write_kv(own_keys, own_values, keys, values, where, scales)

    def attention_stats(self) -> AttentionStats:
        """What sparse attention has read so far, in all caches of this model."""
        return stats_of(self.counters) if self.sparse else AttentionStats()

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """See :class:`deepseek.models.base.Model`."""
        return choose_tokens(logits, choices)
