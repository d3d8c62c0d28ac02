"""A step's :class:`PagedLayout` on the GPU: brought there by one copy, shared by all layers of the step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.kernels.paging import PagedLayout

DECODE_QUERIES = 16
"""Sequences with at most so many query rows in a step are decoded: their contexts are split over the GPU."""

NO_SLOT = -1
"""The write slot of a row that pads the batch: nothing is written for it."""


@dataclass(frozen=True, eq=False)
class SparseTable:
    """The rows of a batch that attend sparsely.

    Attributes:
        facts: int32 [N, 4]: row, sequence, context, and the bits of the fp32 error that is allowed. A context of 0
            pads the table.
        dense_lens: int32 [B], the layout's ``context_lens``, but 0 for the sequences of these rows.
        alone: every sequence that is decoded is in the table.
    """

    facts: Tensor
    dense_lens: Tensor
    alone: bool


FACTS = 4


@dataclass(frozen=True, eq=False)
class DeviceLayout:
    """A ragged batch over a paged cache, as kernels read it.

    Kernels read the tensors; the host reads the numbers only, so launching never waits for the device. In a layout
    from :meth:`allocate` the numbers are bounds and the tensors stay where they are: what a CUDA graph needs.

    Attributes:
        query_starts: int32 [B + 1], offsets into the rows of the batch.
        context_lens: int32 [B], this step's tokens included; 0 for a sequence that pads the batch.
        pages: int32 [B, max_pages], padded with zeros.
        write_slots: int64 [T]; negative for a row that pads the batch.
        page_size: tokens per page.
        num_rows: query rows of all sequences together.
        max_context: no context is longer.
        max_query: no sequence has more query rows.
        max_decode: no sequence of at most :data:`DECODE_QUERIES` query rows has more; 0 when there is no such one.
        block: int32, the memory that slots, starts, lengths, pages and the table are parts of, in this order.
        sparse: None where every row attends densely.
    """

    query_starts: Tensor
    context_lens: Tensor
    pages: Tensor
    write_slots: Tensor
    page_size: int
    num_rows: int
    max_context: int
    max_query: int
    max_decode: int
    block: Tensor
    sparse: SparseTable | None = None

    @property
    def num_sequences(self) -> int:
        return self.context_lens.shape[0]

    @classmethod
    def of(cls, layout: PagedLayout, device: torch.device) -> DeviceLayout:
        """``layout`` on ``device``, copied when the first layer asks, or the buffers that it was filled into."""
        found: DeviceLayout | None = layout.memo.get(_memo_key(device))
        return found or cls._made(layout, device)[0]

    @classmethod
    def bring(cls, layout: PagedLayout, device: torch.device) -> PagedLayout:
        """``layout`` for a model on ``device``: what kernels read of it, ``write_slots`` too, is there."""
        return cls._made(layout, device)[1]

    @classmethod
    def _made(cls, layout: PagedLayout, device: torch.device) -> tuple[DeviceLayout, PagedLayout]:
        queries = [stop - start for start, stop in pairwise(layout.query_starts)]
        made = cls.allocate(
            device,
            sequences=layout.num_sequences,
            rows=layout.query_starts[-1],
            page_size=layout.page_size,
            max_context=max(layout.context_lens, default=0),
            max_query=max(queries, default=0),
            max_decode=max((n for n in queries if n <= DECODE_QUERIES), default=0),
            sparse_rows=len(layout.sparse_rows),
            alone=sparse_alone(layout),
        )
        return made, made.fill(layout)

    @classmethod
    def allocate(
        cls,
        device: torch.device,
        *,
        sequences: int,
        rows: int,
        page_size: int,
        max_context: int,
        max_query: int,
        max_decode: int | None = None,
        sparse_rows: int = 0,
        alone: bool = False,
    ) -> DeviceLayout:
        """Buffers for batches of up to ``sequences`` sequences, ``rows`` rows and ``sparse_rows`` of these in the
        table, to be filled.

        ``max_decode`` follows from ``max_query`` unless more is known about the batches.
        """
        max_pages = max(1, -(-max_context // page_size))
        sizes = [2 * rows, sequences + 1, sequences, sequences * max_pages]  # slots are 64 bits wide
        sizes += [sequences, FACTS * sparse_rows] if sparse_rows else [0, 0]
        block = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        slots, starts, lens, pages, dense_lens, facts = torch.split(block, sizes)
        return cls(
            query_starts=starts,
            context_lens=lens,
            pages=pages.view(sequences, max_pages),
            write_slots=slots.view(torch.int64),
            page_size=page_size,
            num_rows=rows,
            max_context=max_context,
            max_query=max_query,
            max_decode=min(max_query, DECODE_QUERIES) if max_decode is None else max_decode,
            block=block,
            sparse=SparseTable(facts.view(-1, FACTS), dense_lens, alone) if sparse_rows else None,
        )

    def fill(self, layout: PagedLayout) -> PagedLayout:
        """Overwrite the buffers with ``layout``, in the current stream's order, and let :meth:`of` find them there.

        Returns the layout for a model that runs on the buffers: the same but for ``write_slots``, which are theirs.

        A smaller batch is padded by sequences without a context, which own the rows that are left over, so that every
        row has a defined result: buffers for as many sequences as rows always have enough of them. The layout must lie
        within the bounds of the buffers.
        """
        rows, sequences = layout.query_starts[-1], layout.num_sequences
        assert layout.page_size == self.page_size
        assert layout.write_slots.data_ptr() != self.write_slots.data_ptr() or not rows
        assert rows <= self.num_rows and sequences <= self.num_sequences
        assert max(layout.context_lens, default=0) <= self.max_context
        slots_size = 2 * self.num_rows
        lens_at = slots_size + self.num_sequences + 1
        pages_at = lens_at + self.num_sequences
        table_at = pages_at + self.pages.numel()
        device = self.block.device
        staging = torch.zeros(self.block.shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        packed = staging.numpy()
        slots = packed[:slots_size].view(np.int64)
        slots[rows:] = NO_SLOT
        here = layout.write_slots.device.type == "cpu"
        if here:
            slots[:rows] = layout.write_slots.numpy()
        packed[slots_size:lens_at] = self._padded_starts(layout.query_starts)
        packed[lens_at : lens_at + sequences] = layout.context_lens
        table = packed[pages_at:table_at].reshape(self.pages.shape)
        for row, pages, length in zip(table, layout.pages, layout.context_lens, strict=False):
            count = -(-length // self.page_size)
            row[:count] = pages[:count]
        if self.sparse is not None:
            dense_lens, facts = np.split(packed[table_at:], [self.num_sequences])
            _fill_table(dense_lens, facts.reshape(-1, FACTS), layout)
        self.block.copy_(staging, non_blocking=True)
        if not here:
            self.write_slots[:rows].copy_(layout.write_slots)
        filled = replace(layout, write_slots=self.write_slots)
        layout.memo[_memo_key(device)] = filled.memo[_memo_key(device)] = self
        return filled

    def _padded_starts(self, starts: tuple[int, ...]) -> list[int]:
        padded = list(starts)
        while len(padded) <= self.num_sequences:
            padded.append(min(self.num_rows, padded[-1] + self.max_query))
        assert padded[-1] == self.num_rows, "rows are left that no sequence can own"
        return padded

    def dense_part(self) -> DeviceLayout:
        """The same batch without a context for the rows of the table: they have no defined result."""
        assert self.sparse is not None
        max_decode = 0 if self.sparse.alone else self.max_decode
        return replace(self, context_lens=self.sparse.dense_lens, max_decode=max_decode, sparse=None)

    def sequence(self, index: int, queries: int, context: int) -> DeviceLayout:
        """One sequence by itself, over the same rows: its ``query_starts`` do not begin at 0. Not to be filled."""
        return DeviceLayout(
            query_starts=self.query_starts[index : index + 2],
            context_lens=self.context_lens[index : index + 1],
            pages=self.pages[index : index + 1],
            write_slots=self.write_slots,
            page_size=self.page_size,
            num_rows=queries,
            max_context=context,
            max_query=queries,
            max_decode=queries if queries <= DECODE_QUERIES else 0,
            block=self.block,
        )

    def with_pages(self, pages: Tensor, page_size: int) -> DeviceLayout:
        """The same batch over a cache of other ``pages``, int32 [B, max_pages]. Not to be filled."""
        return replace(self, pages=pages, page_size=page_size)


def sparse_alone(layout: PagedLayout) -> bool:
    """Whether all sequences that are decoded attend sparsely."""
    queries = [stop - start for start, stop in pairwise(layout.query_starts)]
    rest = [n for n, error in zip(queries, layout.errors, strict=False) if error == 0.0 and n <= DECODE_QUERIES]
    return bool(layout.errors) and not rest


def _fill_table(dense_lens: NDArray[np.int32], facts: NDArray[np.int32], layout: PagedLayout) -> None:
    """The parts of a block that a :class:`SparseTable` consists of; rows that are left stay zeros."""
    assert len(layout.sparse_rows) <= len(facts)
    errors = layout.errors or (0.0,) * layout.num_sequences
    for i, (length, error) in enumerate(zip(layout.context_lens, errors, strict=True)):
        dense_lens[i] = 0 if error > 0.0 else length
    for i, each in enumerate(layout.sparse_rows):
        facts[i] = each.row, each.sequence, each.context, np.float32(each.error).view(np.int32)


def _memo_key(device: torch.device) -> tuple[str, str, torch.device]:
    return ("triton", "layout", device)
