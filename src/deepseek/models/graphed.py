"""A decoder on an NVIDIA GPU: steps that only decode are CUDA graphs, recorded once per size and replayed.

A step of a small batch is hundreds of short kernels, which the host cannot launch as fast as the GPU runs them.
Recorded, they are one launch. A recording holds for addresses and grids, so its inputs lie in buffers of their own, and
it serves every step within its bounds: rows are padded to the next of :data:`ROWS`, contexts count as the next power of
two. Steps whose rows all attend densely, all sparsely, or some so and some so have recordings of their own.
Nothing in a step makes the host wait for the GPU; it waits once, for the tokens.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from deepseek.adapters.adapter import LowRankUpdate, Prefix
from deepseek.attention.stats import AttentionStats
from deepseek.kernels.page_index import stats_of
from deepseek.kernels.paging import PagedLayout
from deepseek.kernels.sampling import Choice
from deepseek.kernels.staging import bring, pinned
from deepseek.kernels.triton.device_layout import DeviceLayout, sparse_alone
from deepseek.kernels.triton.low_rank import AdapterTiles
from deepseek.kernels.triton.sampling import Choices, choose_tokens
from deepseek.models.base import Batch, KVCache, SpillSpace
from deepseek.models.decoder import Decoder
from deepseek.models.sparse import with_errors

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows that steps are padded to. Larger steps are not recorded: their kernels take longer than their launches."""
_LEAST_CONTEXT = 1024

_Rows = TypeVar("_Rows", Tensor, Tensor | None)
Replay = Callable[[], None]
Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""A computation on buffers that stay -> what runs it again, and where its result then is."""


def cuda_recorder(device: torch.device) -> Record:
    """Recording by CUDA graphs, which share one pool of memory: they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        # The first run compiles kernels and makes libraries' workspaces, which no graph may.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process, as NCCL's watchdog, may go on calling CUDA.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = compute()
        return graph.replay, result

    return record


class _Size(NamedTuple):
    """What a recording serves: up to so many rows, contexts up to that length, adapters or none, and whether any rows,
    and all, attend sparsely."""

    rows: int
    context: int
    adapted: bool
    sparse: bool
    alone: bool


@dataclass(frozen=True, slots=True)
class _Recording:
    """A step's buffers and what computes on them.

    Attributes:
        rows: int64 [2, R], token ids and positions.
        layout: of R sequences.
        previous: where its batch finds tokens.
        adapter_tiles: which rows have which adapter; None in a recording for steps without adapters.
        logits: fp32 [R, vocab].
    """

    rows: Tensor
    layout: DeviceLayout
    previous: Tensor | None
    adapter_tiles: AdapterTiles | None
    replay: Replay
    logits: Tensor


class GraphedDecoder:
    """A decoder whose ops are Triton's; satisfies :class:`deepseek.models.base.Model`. Batches come from the host.

    Args:
        own: the decoder.
        record: how steps are recorded.

    Attributes:
        graph_bytes: memory that recordings took.
    """

    row_invariant = False
    pages_together = False

    def __init__(self, own: Decoder, record: Record) -> None:
        self._own = own
        self._record = record
        self._recordings: dict[_Size, _Recording | None] = {}
        self._adapters = 0
        self._cache: KVCache | None = None
        self._seen = pinned(torch.zeros_like(own.counters, device="cpu"), own.device)
        self.graph_bytes = 0
        self.architecture = own.architecture
        self.vocab_size = own.vocab_size
        self.hidden_size = own.hidden_size
        self.max_context = own.max_context
        self.cache_specs = own.cache_specs
        self.dtype = own.dtype
        self.device = torch.device("cpu")
        self.stream_device = own.device if own.device.type == "cuda" else None
        self.weights_bytes = own.weights_bytes
        self.wide_rows = own.wide_rows
        self.host = own.host
        self.sparse = own.sparse

    def page_bytes(self, page_size: int) -> int:
        return self._own.page_bytes(page_size)

    def index_page_bytes(self) -> int:
        return self._own.index_page_bytes()

    def spill_page_bytes(self, page_size: int) -> int:
        return 0

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> KVCache:
        """The one cache of this model: recordings hold its addresses."""
        self._recordings.clear()
        self._cache = self._own.new_cache(num_pages, page_size, spill)
        return self._cache

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """See :class:`deepseek.models.base.Model`."""
        assert cache is self._cache
        batch = self._allowed(batch)
        logits = self._computed(batch, cache)
        self._look(batch)
        return logits

    def _computed(self, batch: Batch, cache: KVCache) -> Tensor:
        size = _size(batch)
        if size is None:
            return self._own.forward(self._brought(batch), cache)
        if size not in self._recordings:
            self._recordings[size] = self._new_recording(size, batch, cache)
        recording = self._recordings[size]
        if recording is None:
            return self._own.forward(self._brought(batch), cache)
        assert recording.previous is batch.previous
        _fill(recording.rows, recording.layout, batch)
        if recording.adapter_tiles is not None:
            recording.adapter_tiles.fill(batch.segments)
        recording.replay()
        return recording.logits[: len(batch.token_ids)]

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """See :class:`deepseek.models.base.Model`."""
        batch = self._allowed(batch)
        result = self._own.forward_with_hidden(self._brought(batch), self._moved(hidden_rows), cache)
        self._look(batch)
        return result

    def attention_stats(self) -> AttentionStats:
        """As of the last step whose tokens were waited for: asking does not wait for the GPU."""
        return stats_of(self._seen)

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """See :class:`deepseek.models.base.Model`."""
        return choose_tokens(logits, Choices.of(choices, logits.device))

    def add_adapter(self, updates: Mapping[str, LowRankUpdate]) -> int:
        """See :class:`deepseek.models.base.Model`."""
        self._adapters += 1
        self._recordings = {size: made for size, made in self._recordings.items() if not size.adapted}
        return self._own.add_adapter(updates)

    def remove_adapter(self, number: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        self._adapters -= 1
        self._own.remove_adapter(number)

    def adapter_bytes(self, number: int) -> int:
        """See :class:`deepseek.models.base.Model`."""
        return self._own.adapter_bytes(number)

    def write_prefix(self, cache: KVCache, slots: Sequence[int], prefix: Prefix, first: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        self._own.write_prefix(cache, slots, prefix, first)

    def _look(self, batch: Batch) -> None:
        """Have what a sparse step counted come to the host behind it."""
        if batch.layout.sparse_rows:
            self._seen.copy_(self._own.counters, non_blocking=True)

    def _allowed(self, batch: Batch) -> Batch:
        """The batch with what its policies allow in its layout, before that crosses."""
        return with_errors(batch) if batch.sparse and self.sparse else batch

    def _new_recording(self, size: _Size, batch: Batch, cache: KVCache) -> _Recording | None:
        """None where the GPU has no room for it: such steps run kernel by kernel."""
        count = size.rows
        device = self._own.device
        before = _reserved(device)
        rows = torch.zeros(2, count, dtype=torch.int64, device=device)
        layout = DeviceLayout.allocate(
            device,
            sequences=count,
            rows=count,
            page_size=batch.layout.page_size,
            max_context=size.context,
            max_query=1,
            sparse_rows=count if size.sparse else 0,
            alone=size.alone,
        )
        filled = _fill(rows, layout, batch)
        tiles = AdapterTiles.for_any(count, self._adapters, device) if size.adapted else None
        if tiles is not None:
            tiles.fill(batch.segments)
        whole = Batch(
            rows[0], rows[1], filled, None, segments=batch.segments, adapter_tiles=tiles, previous=batch.previous
        )
        counted = self._own.counters.clone()
        try:
            replay, logits = self._record(lambda: self._own.forward(whole, cache))
            self._own.counters.copy_(counted)  # what ran while recording runs again
        except torch.OutOfMemoryError as error:
            logger.warning("steps of %d rows are not recorded, and slower: %s", count, error)
            torch.cuda.empty_cache()
            return None
        self.graph_bytes += _reserved(device) - before
        return _Recording(rows, layout, batch.previous, tiles, replay, logits)

    def _brought(self, batch: Batch) -> Batch:
        """The batch on the GPU."""
        return replace(
            batch,
            token_ids=self._moved(batch.token_ids),
            positions=self._moved(batch.positions),
            layout=DeviceLayout.bring(batch.layout, self._own.device),
            logits_rows=self._moved(batch.logits_rows),
            vector_rows=self._moved(batch.vector_rows),
            vectors=self._moved(batch.vectors),
        )

    def _moved(self, rows: _Rows) -> _Rows:
        if rows is None:
            return None
        return bring(rows, self._own.device)


def _size(batch: Batch) -> _Size | None:
    """Of the recording that serves a batch; None for a batch that does more than decode."""
    count = len(batch.token_ids)
    decodes = batch.vector_rows is None and count == batch.layout.num_sequences and 0 < count <= ROWS[-1]
    wanted = batch.logits_rows
    if not decodes or (wanted is not None and not torch.equal(wanted, torch.arange(count))):
        return None
    context = max(_LEAST_CONTEXT, 1 << (max(batch.layout.context_lens) - 1).bit_length())
    rows = ROWS[bisect.bisect_left(ROWS, count)]
    sparse = bool(batch.layout.sparse_rows)
    return _Size(rows, context, bool(batch.segments), sparse, sparse and sparse_alone(batch.layout))


def _fill(rows: Tensor, layout: DeviceLayout, batch: Batch) -> PagedLayout:
    """Overwrite the buffers. Rows that pad the batch keep what is there: whatever they compute is not written."""
    staged = bring(torch.stack([batch.token_ids, batch.positions]), rows.device)
    rows[:, : staged.shape[1]] = staged
    return layout.fill(batch.layout)


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
