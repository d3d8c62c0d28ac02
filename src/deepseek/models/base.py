"""What the engine needs of a model, and what a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek.adapters.adapter import Host, LowRankUpdate, Prefix
from deepseek.attention.policy import SparsePolicy
from deepseek.attention.stats import AttentionStats
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import KVScales, LayerCache, PagedLayout
from deepseek.kernels.sampling import Choice


@dataclass(frozen=True, slots=True)
class LayerCacheSpec:
    """The cache one layer keeps per token. ``value_dim`` 0: keys only (MLA's latent)."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)

    def page_bytes(self, page_size: int, dtype: torch.dtype) -> int:
        """Bytes of a page in a cache of ``dtype``; in INT8 two scales per token and head belong to it."""
        scales = 2 * SCALE_DTYPE.itemsize * self.heads if dtype == torch.int8 else 0
        return page_size * (self.elements * dtype.itemsize + scales)


SCALE_DTYPE = torch.float32


class KVCache:
    """The caches of all layers, with ``num_pages * page_size`` slots each, in a floating dtype or INT8. Memory is
    touched when first written.

    Args:
        indexes: per layer the index of its full pages, None where it has none; empty: none has one.
    """

    def __init__(
        self,
        specs: Sequence[LayerCacheSpec],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        indexes: Sequence[IndexCache | None] = (),
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        slots = num_pages * page_size

        def array(heads: int, dim: int) -> Tensor:
            return torch.empty(slots, heads, dim, dtype=dtype, device=device)

        def scales(heads: int) -> KVScales | None:
            if dtype != torch.int8:
                return None
            return KVScales(*(torch.empty(slots, heads, dtype=SCALE_DTYPE, device=device) for _ in range(2)))

        self.layers = [
            LayerCache(
                array(spec.heads, spec.key_dim),
                array(spec.heads, spec.value_dim) if spec.value_dim else None,
                scales(spec.heads),
                index,
            )
            for spec, index in zip(specs, indexes or [None] * len(specs), strict=True)
        ]

    def copy_page(self, source: int, target: int) -> None:
        """Copy what a page holds, in all layers, to another one."""
        size = self.page_size
        for layer in self.layers:
            if layer.page_index is not None:
                layer.page_index.copy_page(source, target)
            for array in layer.tensors:
                array[target * size : (target + 1) * size] = array[source * size : (source + 1) * size]


@dataclass(frozen=True, slots=True)
class SpillSpace:
    """Where pages lie that do not stay in memory.

    Attributes:
        file: descriptor of a file that has room for them; whoever opened it may close it once the cache is made.
        resident: the pages below this number stay in memory; a multiple of :data:`SPILL_UNIT`.
    """

    file: int
    resident: int


SPILL_UNIT = 16
"""Pages are divided between memory and file in multiples of it: the bytes of so many fill whole pages of the system."""


class SpillableCache(Protocol):
    """A cache made with a :class:`SpillSpace`."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy what a page holds, in all layers, to another one."""
        ...

    def checksum(self, page: int) -> int:
        """64 bits of the keys and values of a page, over all layers."""
        ...


WIDE_ROWS = 12
"""Rows from which wide arithmetic is faster, for dense layers."""


@dataclass(frozen=True)
class Batch:
    """One step's ragged batch: rows of all sequences one after another.

    Attributes:
        token_ids: int64 [T]. One below 0 is not known to the host: ``~token_id`` is its place in ``previous``.
        positions: int64 [T].
        layout: where the rows' keys and values lie.
        logits_rows: int64 [R], the rows whose next-token logits are wanted, or None for all of them.
        narrow_rows: the first so many rows are computed in the arithmetic that is best for few rows; the others
            ("wide") in what is fastest for many, which may be another. Rows of either kind depend on nothing around
            them.
        narrow_attention_rows: the first so many rows, and no fewer than ``narrow_rows``, are narrow in attention, where
            it is the rows of one sequence that count.
        segments: rows that are computed with an adapter: (its number, first row, end), in order; the others are the
            model's alone.
        adapter_tiles: the same as kernels take it, where it lies in buffers that stay; None for what they make of it.
        vectors: fp32 [V, hidden], inputs of the rows ``vector_rows`` (int64 [V], in order), which have no tokens; None
            if there are none.
        sparse: per sequence of the layout, how sparse its rows' attention may be, or None for dense; empty: all dense.
        previous: int64 [P], tokens that steps before this one leave on the device where the model computes; always the
            same tensor. None if all tokens are known.
    """

    token_ids: Tensor
    positions: Tensor
    layout: PagedLayout
    logits_rows: Tensor | None
    narrow_rows: int = 0
    narrow_attention_rows: int = 0
    sparse: tuple[SparsePolicy | None, ...] = ()
    segments: tuple[tuple[int, int, int], ...] = ()
    vector_rows: Tensor | None = None
    vectors: Tensor | None = None
    previous: Tensor | None = None
    adapter_tiles: Any = None

    def known_ids(self) -> Tensor:
        """``token_ids`` with those looked up that the host does not know; 0 for a row that has no token."""
        if self.previous is None:
            return self.token_ids
        ids = self.token_ids
        looked_up = self.previous.index_select(0, (~ids).clamp(min=0)).clamp(min=0)
        return torch.where(ids < 0, looked_up, ids)


class Model(Protocol):
    """A causal language model over a paged cache.

    Attributes:
        architecture: the Hugging Face class name.
        vocab_size: number of logits.
        hidden_size: width of a hidden state.
        max_context: positions the model was made for.
        cache_specs: per layer, what :class:`KVCache` must hold.
        dtype: floating dtype of weights, activations and cache.
        device: where the tensors of its batches are.
        stream_device: the GPU that its work is only handed to, so that the host may go on while it is done; None for a
            model whose results are there when a call returns.
        weights_bytes: memory the weights take.
        row_invariant: a row's logits are the same to the bit whatever else is in its batch and however its prompt was
            cut into chunks, as long as the same rows are narrow (see :class:`Batch`).
        pages_together: attention reads a sequence's pages faster where they lie side by side.
        sparse: its caches have the index that sparse attention needs. Without one, all attention is dense.
        host: what it offers to adapters.
        wide_rows: rows from which wide arithmetic is faster. More than a draft and the row it stands behind, so that
            speculation changes nothing for a sequence that runs alone.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_context: int
    cache_specs: tuple[LayerCacheSpec, ...]
    dtype: torch.dtype
    device: torch.device
    stream_device: torch.device | None
    weights_bytes: int
    row_invariant: bool
    pages_together: bool
    sparse: bool
    wide_rows: int

    @property
    def host(self) -> Host: ...

    def page_bytes(self, page_size: int) -> int:
        """Bytes that a page of ``page_size`` tokens takes in the cache, over all layers."""
        ...

    def index_page_bytes(self) -> int:
        """Of these bytes, those of the index; 0 for a model that attends densely."""
        ...

    def spill_page_bytes(self, page_size: int) -> int:
        """Of these bytes, those that a page takes in the file when it is spilled, the others staying in memory; 0 for a
        model whose caches cannot spill."""
        ...

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> Any:
        """An empty cache for :meth:`forward`; memory is touched when first written. With ``spill``, which is only for
        models that can, it is a :class:`SpillableCache` too."""
        ...

    def forward(self, batch: Batch, cache: Any) -> Tensor:
        """Write this step's keys and values, and return fp32 logits [R, vocab_size] of ``batch.logits_rows``. The next
        call may write over them."""
        ...

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, and of ``hidden_rows`` (int64 [H]) the hidden states behind the final norm, fp32
        [H, hidden_size]."""
        ...

    def add_adapter(self, updates: Mapping[str, LowRankUpdate]) -> int:
        """Have an adapter's updates, of layers that :attr:`host` names, ready for steps to come. Returns its number."""
        ...

    def remove_adapter(self, number: int) -> None:
        """Free what :meth:`add_adapter` took; no step may ask for it any more."""
        ...

    def adapter_bytes(self, number: int) -> int:
        """Memory that an adapter takes."""
        ...

    def write_prefix(self, cache: Any, slots: Sequence[int], prefix: Prefix, first: int) -> None:
        """Store the keys and values of a prefix from its token ``first`` on at these slots of a cache."""
        ...

    def attention_stats(self) -> AttentionStats:
        """What sparse attention has read so far."""
        ...

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """A token for each row of fp32 ``logits`` [R, vocab], where these are: int64 [R], and
        :data:`deepseek.kernels.sampling.NO_TOKEN` for a row that holds NaN or infinity. What a choice means is said
        there too."""
        ...
