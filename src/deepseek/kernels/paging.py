"""Where the tokens of a ragged batch lie in the paged KV cache: what attention kernels are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepseek.kernels.page_index import IndexCache

SPARSE_ROWS = 16
"""A sequence with more rows in a step attends densely in all of them."""


@dataclass(frozen=True, slots=True)
class SparseRow:
    """A row that attends sparsely: which one, whose, to how many tokens, and the relative error that is allowed."""

    row: int
    sequence: int
    context: int
    error: float


@dataclass(frozen=True, slots=True)
class KVScales:
    """Scales of an INT8 cache, one per token and head: float [num_slots, kv_heads] each, contiguous. An element is its
    integer times its scale. Of a latent cache ``key`` is of the latents and ``value`` of the rotated keys beside them.
    """

    key: Tensor
    value: Tensor


class LayerCache(NamedTuple):
    """What one layer keeps of each token: ``keys`` [num_slots, kv_heads, key_dim] and ``values``, None for a latent
    cache; ``scales`` if both are INT8; ``page_index`` knows its full pages, for sparse attention."""

    keys: Tensor
    values: Tensor | None
    scales: KVScales | None = None
    page_index: IndexCache | None = None

    @property
    def tensors(self) -> list[Tensor]:
        scales = () if self.scales is None else (self.scales.key, self.scales.value)
        return [tensor for tensor in (self.keys, self.values, *scales) if tensor is not None]


@dataclass(frozen=True)
class PagedLayout:
    """A ragged batch over a paged cache.

    A cache tensor has shape ``[num_slots, heads, dim]``; slot ``page * page_size + offset`` belongs to page
    ``page``. Sequence ``i`` owns the query rows ``query_starts[i]:query_starts[i + 1]`` of the batch and the first
    ``context_lens[i]`` tokens of its pages; its queries are the last tokens of that context.

    Attributes:
        page_size: tokens per page.
        query_starts: B + 1 offsets into the rows of the batch.
        context_lens: B lengths, this step's tokens included.
        pages: B page lists, each long enough for its context.
        write_slots: int64 [T], the slot each row's key and value are written to.
        errors: B relative errors that attention of a sequence's rows may have, 0 for none; empty: all are 0. For
            sequences of up to :data:`SPARSE_ROWS` rows.
    """

    page_size: int
    query_starts: tuple[int, ...]
    context_lens: tuple[int, ...]
    pages: tuple[Sequence[int], ...]
    write_slots: Tensor
    errors: tuple[float, ...] = ()

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What a kernel backend derives from this layout, kept so that the layers of a step share it. Keys start with
        the name of the backend."""
        return {}

    @cached_property
    def sparse_rows(self) -> tuple[SparseRow, ...]:
        """The rows of sequences whose attention may have an error, in order."""
        found = []
        for sequence, error in enumerate(self.errors):
            start, stop = self.query_starts[sequence : sequence + 2]
            if error > 0.0:
                assert stop - start <= SPARSE_ROWS
                first = self.context_lens[sequence] - (stop - start) + 1
                found += [SparseRow(row, sequence, first + row - start, error) for row in range(start, stop)]
        return tuple(found)

    def filled_pages(self, index: int) -> Sequence[int]:
        """The pages of a sequence that this step's rows have filled."""
        context = self.context_lens[index]
        before = context - (self.query_starts[index + 1] - self.query_starts[index])
        return self.pages[index][before // self.page_size : context // self.page_size]

    @cached_property
    def context_slots(self) -> tuple[slice | Tensor, ...]:
        """Per sequence, the slots of its context in order: a slice when its pages are consecutive, so that indexing
        a cache with it makes a view and not a copy; else int64 [context_len]."""
        return tuple(self._slots(i) for i in range(self.num_sequences))

    def _slots(self, index: int) -> slice | Tensor:
        length = self.context_lens[index]
        pages = self.pages[index][: -(-length // self.page_size)]
        if all(b == a + 1 for a, b in pairwise(pages)):
            return slice(pages[0] * self.page_size, pages[0] * self.page_size + length)
        starts = torch.tensor(pages, dtype=torch.int64, device=self.write_slots.device) * self.page_size
        offsets = torch.arange(self.page_size, device=starts.device)
        return (starts[:, None] + offsets).flatten()[:length]
