"""Low-rank updates of many adapters in two launches, whichever rows have which.

As in Punica (Chen et al. 2023, arXiv:2310.18547) and S-LoRA (Sheng et al. 2023, arXiv:2311.03285), the rows of one
adapter are computed together and adapters may have different ranks: a table on the device says where their matrices
lie. Rows without an adapter are in no tile. Grids, buffers and addresses do not depend on which rows a step has, so a
step with adapters can be recorded.

*Shrink* multiplies rows with ``a``, cut along the depth so that few rows fill the chip; *expand* adds these sums up,
multiplies them with ``b`` and adds the result to the rows. Sums run in one order whatever shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.low_rank import LowRankUpdates

FEW_ROWS, MANY_ROWS = 16, 64
"""Heights of tiles: the second where an adapter has more rows than the first."""

_DEPTH = 128
_SPLIT_DEPTH = 1024
_WIDEST_RANKS = 64
_OUTS = 64
_ENTRY = 6
_ALIGNED_RANK = 8

Segments = Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class AdapterTiles:
    """The rows of a step by adapter, cut into tiles.

    Attributes:
        height: rows of a tile.
        tiles: int32 [tiles, 3]: number of the adapter, begin and end in ``order``; the number is -1 behind the last.
        order: int32 [rows], rows of the step.
        block: int32, the memory of both.
    """

    height: int
    tiles: Tensor
    order: Tensor
    block: Tensor

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> AdapterTiles:
        """For one step."""
        counts = _counts(segments)
        height = FEW_ROWS if max(counts.values()) <= FEW_ROWS else MANY_ROWS
        tiles = sum(triton.cdiv(count, height) for count in counts.values())
        made = cls._allocate(device, height, tiles, sum(counts.values()))
        made.fill(segments)
        return made

    @classmethod
    def for_any(cls, rows: int, adapters: int, device: torch.device) -> AdapterTiles:
        """Buffers for steps of up to ``rows`` rows of up to ``adapters`` adapters, to be filled."""
        return cls._allocate(device, FEW_ROWS, rows // FEW_ROWS + min(adapters, rows), rows)

    @classmethod
    def _allocate(cls, device: torch.device, height: int, tiles: int, rows: int) -> AdapterTiles:
        block = torch.empty(3 * tiles + rows, dtype=torch.int32, device=device)
        return cls(height, block[: 3 * tiles].view(tiles, 3), block[3 * tiles :], block)

    def fill(self, segments: Segments) -> None:
        """Overwrite the buffers in the current stream's order, by one copy for which the host does not wait."""
        table: list[int] = []
        order: list[int] = []
        for number in _counts(segments):
            first = len(order)
            for own, start, stop in segments:
                if own == number:
                    order += range(start, stop)
            for begin in range(first, len(order), self.height):
                table += (number, begin, min(begin + self.height, len(order)))
        table += [-1] * (self.tiles.numel() - len(table))
        order += [0] * (len(self.order) - len(order))
        staged = torch.tensor(table + order, dtype=torch.int32)
        if self.block.device.type == "cuda":
            staged = staged.pin_memory()
        self.block.copy_(staged, non_blocking=True)


def _counts(segments: Segments) -> dict[int, int]:
    """How many rows each adapter has."""
    counts: dict[int, int] = {}
    for number, start, stop in segments:
        counts[number] = counts.get(number, 0) + stop - start
    return counts


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the matrices of all adapters lie.

    Attributes:
        entries: int64 [adapters, places, 6]: addresses of a, b and gain (0 for none), rank (0: the adapter has nothing
            here), first output and number of outputs.
        places: parts of the matrix that adapters change.
        rank: the highest.
        outs: the most outputs of a place.
        aligned: rows of every b begin at multiples of 16 bytes.
    """

    entries: Tensor
    places: int
    rank: int
    outs: int
    aligned: bool


def _table_of(updates: LowRankUpdates, device: torch.device) -> _Table:
    found: _Table | None = updates.memo.get("triton")
    if found is None:
        parts = [part for own in updates.parts.values() for part in own]
        places = sorted({part.column for part in parts})
        entries = torch.zeros(max(updates.parts) + 1, len(places), _ENTRY, dtype=torch.int64)
        for number, own in updates.parts.items():
            for column, a, b, gain in own:
                assert a.is_contiguous() and b.is_contiguous()
                addresses = (a.data_ptr(), b.data_ptr(), 0 if gain is None else gain.data_ptr())
                entries[number, places.index(column)] = torch.tensor([*addresses, len(a), column, len(b)])
        ranks = [len(part.a) for part in parts]
        aligned = all(rank % _ALIGNED_RANK == 0 for rank in ranks)
        outs = max(len(part.b) for part in parts)
        found = _Table(entries.to(device), len(places), max(ranks), outs, aligned)
        updates.memo["triton"] = found
    return found


# Numbers that change from step to step must not ask for another compilation.
@triton.jit(do_not_specialize=["known", "rows", "width", "rank_blocks"])
def _shrink_kernel(
    x: tl.tensor,
    inner: tl.tensor,
    tiles: tl.tensor,
    order: tl.tensor,
    entries: tl.tensor,
    known: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    x_stride: tl.tensor,
    width: tl.tensor,
    rank_blocks: tl.tensor,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Grid (tiles, places * rank blocks, splits of PART columns); ``inner`` fp32 [splits, rows, places, width]."""
    number = tl.load(tiles + tl.program_id(0) * 3)
    place = tl.program_id(1) // rank_blocks
    rank_index = tl.program_id(1) % rank_blocks * RANKS + tl.arange(0, RANKS)
    if (number >= 0) & (number < known):
        entry = entries + (number * PLACES + place) * 6
        rank = tl.load(entry + 3)
        if tl.program_id(1) % rank_blocks * RANKS < rank:
            a = tl.multiple_of(tl.load(entry), 16).to(tl.pointer_type(x.dtype.element_ty))
            index = tl.load(tiles + tl.program_id(0) * 3 + 1) + tl.arange(0, ROWS)
            valid = index < tl.load(tiles + tl.program_id(0) * 3 + 2)
            row = tl.load(order + index, mask=valid, other=0).to(tl.int64)
            near = tl.where(rank_index < rank, rank_index, 0)
            step = tl.arange(0, DEPTH)[None, :]
            x_start = x + row[:, None] * x_stride
            a_start = a + near[:, None] * depth
            first = tl.program_id(2) * PART
            total = tl.zeros([ROWS, RANKS], dtype=tl.float32)
            for k in range(first, tl.minimum(first + PART, depth), DEPTH):
                left = tl.load(x_start + k + step, mask=k + step < depth, other=0.0)
                right = tl.load(a_start + k + step, mask=k + step < depth, other=0.0)
                total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
            to = inner + ((tl.program_id(2) * rows + row) * PLACES + place)[:, None] * width + rank_index[None, :]
            tl.store(to, total, mask=valid[:, None] & (rank_index < rank)[None, :])


@triton.jit(do_not_specialize=["known", "rows", "width", "splits"])
def _expand_kernel(
    inner: tl.tensor,
    y: tl.tensor,
    bias: tl.tensor,
    tiles: tl.tensor,
    order: tl.tensor,
    entries: tl.tensor,
    known: tl.tensor,
    rows: tl.tensor,
    splits: tl.tensor,
    y_stride: tl.tensor,
    width: tl.tensor,
    PLACES: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    OUTS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    """Grid (tiles, tiles of outputs, places)."""
    number = tl.load(tiles + tl.program_id(0) * 3)
    place = tl.program_id(2)
    out = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    if (number >= 0) & (number < known):
        entry = entries + (number * PLACES + place) * 6
        rank = tl.load(entry + 3)
        outs = tl.load(entry + 5)
        if (rank > 0) & (tl.program_id(1) * OUTS < outs):
            if ALIGNED:
                rank = tl.multiple_of(rank, 8)
            b = tl.multiple_of(tl.load(entry + 1), 16).to(tl.pointer_type(y.dtype.element_ty))
            index = tl.load(tiles + tl.program_id(0) * 3 + 1) + tl.arange(0, ROWS)
            valid = index < tl.load(tiles + tl.program_id(0) * 3 + 2)
            row = tl.load(order + index, mask=valid, other=0).to(tl.int64)
            near = tl.where(out < outs, out, 0)
            total = tl.zeros([ROWS, OUTS], dtype=tl.float32)
            for block in range(0, rank, RANKS):
                column = block + tl.arange(0, RANKS)
                inside = (column < rank)[None, :]
                sums = tl.zeros([ROWS, RANKS], dtype=tl.float32)
                start = inner + (row * PLACES + place)[:, None] * width + column[None, :]
                for _ in range(splits):
                    sums += tl.load(start, mask=inside & valid[:, None], other=0.0)
                    start += rows.to(tl.int64) * PLACES * width
                right = tl.load(b + near[:, None] * rank + column[None, :], mask=inside, other=0.0)
                total = tl.dot(sums.to(right.dtype), tl.trans(right), total, input_precision="ieee")
            mask = valid[:, None] & (out < outs)[None, :]
            changed = tl.load(entry + 4) + near
            to = y + row[:, None] * y_stride + changed[None, :]
            own = tl.load(to, mask=mask, other=0.0).to(tl.float32)
            gain = tl.load(entry + 2)
            if gain != 0:
                factor = tl.load(gain.to(tl.pointer_type(y.dtype.element_ty)) + near).to(tl.float32)
                own *= factor[None, :]
                if bias is not None:
                    own += (tl.load(bias + changed).to(tl.float32) * (1.0 - factor))[None, :]
            tl.store(to, (own + total).to(y.dtype.element_ty), mask=mask)


def low_rank(x: Tensor, y: Tensor, bias: Tensor | None, updates: LowRankUpdates) -> None:
    """As :meth:`deepseek.kernels.ops.Ops.low_rank`. Nothing is launched for a step without adapters."""
    state = updates.rows
    if not state.segments or not updates.parts:
        return
    if state.tiles is None:
        state.tiles = AdapterTiles.of(state.segments, x.device)
    own: AdapterTiles = state.tiles
    table = _table_of(updates, x.device)
    assert x.stride(1) == 1 and y.stride(1) == 1
    rows, depth = x.shape
    ranks = min(_WIDEST_RANKS, max(16, triton.next_power_of_2(table.rank)))
    rank_blocks = triton.cdiv(table.rank, ranks)
    width = rank_blocks * ranks
    splits = triton.cdiv(depth, _SPLIT_DEPTH)
    inner = torch.empty(splits, rows, table.places, width, dtype=torch.float32, device=x.device)
    tiles = own.tiles.shape[0]
    sizes = {"PLACES": table.places, "ROWS": own.height, "RANKS": ranks, "num_warps": 4}
    _shrink_kernel[(tiles, table.places * rank_blocks, splits)](
        x,
        inner,
        own.tiles,
        own.order,
        table.entries,
        table.entries.shape[0],
        rows,
        depth,
        x.stride(0),
        width,
        rank_blocks,
        DEPTH=_DEPTH if x.element_size() == 2 else _DEPTH // 2,
        PART=_SPLIT_DEPTH,
        num_stages=4,
        **sizes,
    )
    _expand_kernel[(tiles, triton.cdiv(table.outs, _OUTS), table.places)](
        inner,
        y,
        bias,
        own.tiles,
        own.order,
        table.entries,
        table.entries.shape[0],
        rows,
        splits,
        y.stride(0),
        width,
        OUTS=_OUTS,
        ALIGNED=table.aligned,
        num_stages=2,
        **sizes,
    )
