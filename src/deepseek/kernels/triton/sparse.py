"""Sparse attention of single rows: the slow truth is :func:`deepseek.attention.decode.sparse_decode`.

Kernels read, per row and KV head: the index of the middle's pages, the exact part, a byte per token and query head of
the pieces that hold something to read, and the keys and values of the tokens that are read. Nothing depends on what the
host knows of a batch but the most pages that a context has, so that a CUDA graph holds for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.attention.decode import middle_end
from deepseek.attention.index import PAGE
from deepseek.kernels.page_index import CODE_BLOCK, PIECE, SCRATCH_BYTES, IndexCache
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.flash import Heads, check_heads, dot_precision, require
from deepseek.kernels.triton.sparse_gather import _finish_kernel, _gather_kernel
from deepseek.kernels.triton.sparse_index import check_index, rotation
from deepseek.kernels.triton.sparse_score import _rotate_kernel, _score_kernel, _threshold_kernel

_ROWS = 16  # query heads of a lane: the least that tensor cores take
_CHUNK = 16


@dataclass(frozen=True, slots=True)
class _Scratch:
    """What kernels leave for each other, of some entries. Shapes are in the kernels."""

    prepared: Tensor
    partial: Tensor
    log_sums: Tensor
    tails: Tensor
    sums: Tensor
    tops: Tensor
    bins: Tensor
    shares: Tensor
    lists: Tensor
    thresholds: Tensor

    @classmethod
    def allocate(
        cls, query: Tensor, entries: int, heads: int, lanes: int, pieces: int, value: int, width: int
    ) -> _Scratch:
        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return query.new_empty(entries, *shape, dtype=dtype)

        pages = max(1, pieces * PIECE)
        return cls(
            prepared=room(heads, width, dtype=query.dtype),
            partial=room(heads, pieces + 1, value),
            log_sums=room(heads, pieces + 1),
            tails=room(heads, pieces + 1),
            sums=room(heads, max(1, pieces), 4),
            tops=room(heads, pages),
            bins=room(heads, pages, PAGE, dtype=torch.uint8),
            shares=room(heads, pages),
            lists=room(lanes, pages * PAGE, dtype=torch.int16),
            thresholds=room(heads, 4),
        )


def _entry_bytes(heads: int, lanes: int, pieces: int, value: int) -> int:
    pages = pieces * PIECE
    return heads * (4 * (pieces + 1) * (value + 6) + pages * (PAGE + 8)) + 2 * lanes * pages * PAGE


def sparse_attention(
    query: tuple[Tensor, Tensor],
    key_cache: Tensor,
    value_cache: Tensor | None,
    index: IndexCache,
    output: Tensor,
    layout: DeviceLayout,
    scale: float,
    *,
    scales: KVScales | None = None,
) -> None:
    """Attention of the rows in the layout's table, into their rows of ``output``.

    Arguments as in :func:`.decode_attention.decode_attention`: ``query`` in two parts, ``value_cache`` None for a
    latent cache. Raises BackendUnavailableError for widths and pages that the kernels do not have.
    """
    main, rest = query
    assert layout.sparse is not None
    values = key_cache if value_cache is None else value_cache
    num_heads, kv_heads = main.shape[1], index.heads
    heads = Heads(main.shape[2], rest.shape[2], index.value_dim, num_heads // kv_heads)
    check_heads(heads)
    check_index(heads.main + heads.rest, layout.page_size)
    require(value_cache is not None or heads.value == heads.main, "latents whose values are the keys' main part")
    lanes = kv_heads * -(-heads.group // _ROWS)
    pieces = -(-(middle_end(layout.max_context) - 1) // PIECE)
    blocks = -(-(heads.main + heads.rest) // CODE_BLOCK)
    turn = max(1, SCRATCH_BYTES // _entry_bytes(num_heads, lanes, pieces, heads.value))
    for first in range(0, len(layout.sparse.facts), turn):
        facts = layout.sparse.facts[first : first + turn]
        room = _Scratch.allocate(main, len(facts), num_heads, lanes, pieces, heads.value, 2 * blocks * CODE_BLOCK)
        _attend(
            query, key_cache, values, index, output, layout, scale, scales, heads, facts, room, first,
            latent=value_cache is None,
        )  # fmt: skip


def _tile(heads: Heads, dtype: torch.dtype) -> dict[str, int]:
    """Keys of a tile that is attended to exactly, and how a program is run."""
    narrow = heads.width <= 128 and dtype != torch.float32
    return {
        "KEYS": 16 if dtype == torch.float32 else 32,
        "num_warps": 4 if heads.width <= 256 else 8,
        "num_stages": 3 if narrow else 2,
    }


def _attend(
    query: tuple[Tensor, Tensor],
    key_cache: Tensor,
    values: Tensor,
    index: IndexCache,
    output: Tensor,
    layout: DeviceLayout,
    scale: float,
    scales: KVScales | None,
    heads: Heads,
    facts: Tensor,
    room: _Scratch,
    first: int,
    *,
    latent: bool,
) -> None:
    """The kernels, for the entries ``facts`` of the table."""
    assert layout.sparse is not None
    main, rest = query
    rest = rest if heads.rest else main
    kv_heads, num_heads, entries = index.heads, main.shape[1], len(facts)
    splits = room.log_sums.shape[2]
    lanes = room.lists.shape[1]
    blocks = room.prepared.shape[2] // (2 * CODE_BLOCK)
    precision = dot_precision(main.dtype)
    lane = {"HEADS": num_heads, "GROUP": heads.group, "LANES": lanes // kv_heads, "ROWS": _ROWS}
    widths = {name: number for name, number in heads.constants.items() if name != "GROUP"}
    joined = {"HEADS": num_heads, "VALUE": heads.value, "VALUE_BLOCK": widths["VALUE_BLOCK"], "CHUNK": _CHUNK}
    caches = {"KV_HEADS": kv_heads, "LATENT": latent, "QUANTIZED": scales is not None, "PRECISION": precision}
    caches |= _tile(heads, main.dtype)
    contents = (key_cache, values, scales.key if scales else key_cache, scales.value if scales else values)
    strides = (*key_cache.stride()[:2], *values.stride()[:2])
    token_bytes = (heads.main + heads.rest + (0 if latent else heads.value)) * key_cache.element_size()
    token_bytes += 2 * scales.key.element_size() if scales else 0
    _rotate_kernel[(entries, lanes, blocks)](
        room.prepared, facts, main, rest, rotation(heads.main + heads.rest, main.device, main.dtype),
        *main.stride()[:2], *rest.stride()[:2],
        **lane, MAIN=heads.main, REST=heads.rest, BLOCKS=blocks, PRECISION=precision, num_warps=4,
    )  # fmt: skip
    _score_kernel[(entries, lanes, splits)](
        room.partial, room.log_sums, room.tails, room.sums, room.tops, room.bins, room.prepared, facts, layout.pages,
        *contents, index.codes, index.alphas, index.key_means, index.value_means, index.scalars,
        layout.pages.stride(0), scale, *strides, **lane, **widths, BLOCKS=blocks, **caches,
    )  # fmt: skip
    _threshold_kernel[(entries, num_heads)](
        room.thresholds, room.partial, room.log_sums, room.sums, facts, splits - 1, **joined, num_warps=2
    )  # fmt: skip
    if splits > 1:
        _gather_kernel[(entries, lanes, splits - 1)](
            room.partial, room.log_sums, room.tails, room.shares, room.lists, room.thresholds, room.tops, room.bins,
            room.prepared, facts, layout.pages, *contents, index.value_means, index.scalars, index.counters,
            layout.pages.stride(0), scale, float(token_bytes), *strides,
            **lane, **widths, WIDTH=2 * blocks * CODE_BLOCK, **caches,
        )  # fmt: skip
    _finish_kernel[(entries, num_heads)](
        output, room.partial, room.log_sums, room.tails, room.thresholds, facts, index.counters, splits, first,
        float(token_bytes), float(index.page_bytes // kv_heads), *output.stride()[:2],
        **joined, GROUP=heads.group, ALONE=layout.sparse.alone, num_warps=2,
    )  # fmt: skip
