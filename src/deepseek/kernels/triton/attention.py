"""Attention over the paged cache: prompts here, few rows per sequence in :mod:`.decode_attention`.

A program takes a block of queries of one sequence with all query heads of one KV head, so that its rows fill the
tensor cores even with few queries, and keys are read once for the whole group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout
from deepseek.kernels.triton.decode_attention import decode_attention
from deepseek.kernels.triton.device_layout import DECODE_QUERIES, DeviceLayout
from deepseek.kernels.triton.flash import (
    LOG2_E,
    Heads,
    Tile,
    attend,
    block_of,
    check_cache,
    check_heads,
    dot_precision,
    load_rows,
    require,
    split_query,
)
from deepseek.kernels.triton.sparse import sparse_attention

_LAUNCH_ARGUMENTS = {
    # Numbers that change from step to step must not ask for another compilation.
    "do_not_specialize": ["num_sequences", "pages_stride", "skip_up_to", "window"],
    "do_not_specialize_on_alignment": ["query_starts", "context_lens", "pages"],
}


@triton.jit
def _sequence_of_block(
    query_starts: tl.tensor, block: tl.tensor, num_sequences: tl.tensor, QUERIES: tl.constexpr
) -> tl.tensor:
    """The sequence that a block of QUERIES queries belongs to, by bisection.

    Sequence i begins at block ``(starts[i] - starts[0]) // QUERIES + i``: the i before it have at most that many, so
    blocks of different sequences never meet, and no table of blocks is needed.
    """
    origin = tl.load(query_starts)
    low = tl.zeros_like(num_sequences)
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        begins = (tl.load(query_starts + middle) - origin) // QUERIES + middle
        low = tl.where(begins <= block, middle, low)
        high = tl.where(begins <= block, high, middle)
    return low


@triton.jit(**_LAUNCH_ARGUMENTS)
def _prefill_kernel(
    output: tl.tensor,
    query_main: tl.tensor,
    query_rest: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    pages: tl.tensor,
    num_sequences: tl.tensor,
    pages_stride: tl.tensor,
    skip_up_to: tl.tensor,
    window: tl.tensor,
    scale_log2: tl.tensor,
    main_row: tl.tensor,
    main_head: tl.tensor,
    rest_row: tl.tensor,
    rest_head: tl.tensor,
    output_row: tl.tensor,
    output_head: tl.tensor,
    key_slot: tl.tensor,
    key_head: tl.tensor,
    value_slot: tl.tensor,
    value_head: tl.tensor,
    scale_slot: tl.tensor,
    GROUP: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE: tl.constexpr,
    MAIN_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid (blocks of queries, KV heads). Rows of a tile are query-major: row r is query r // GROUP, head r % GROUP."""
    QUERIES: tl.constexpr = ROWS // GROUP
    # The last blocks of a prompt see the longest contexts, so they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _sequence_of_block(query_starts, block, num_sequences, QUERIES)
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    first_query = (block - (start - tl.load(query_starts)) // QUERIES - sequence) * QUERIES
    if (queries <= skip_up_to) | (first_query >= queries):
        return

    context = tl.load(context_lens + sequence)
    rows = tl.arange(0, ROWS)
    query = first_query + rows // GROUP
    head = (kv_head * GROUP + rows % GROUP).to(tl.int64)
    valid = (rows < QUERIES * GROUP) & (query < queries)
    row = (start + query).to(tl.int64)
    main = load_rows(query_main, row * main_row + head * main_head, valid, MAIN, MAIN_BLOCK, True)
    if REST > 0:
        rest = load_rows(query_rest, row * rest_row + head * rest_head, valid, REST, REST_BLOCK, True)
    else:
        rest = main

    # Tiles of keys: those that the window's edge cuts, those that all rows see, those that the diagonal cuts.
    earliest = context - queries + first_query
    end = tl.minimum(earliest + QUERIES, context)
    full_end = tl.maximum(earliest + 1, 0) // KEYS * KEYS
    if WINDOWED:
        begin = tl.maximum(earliest - window + 1, 0) // KEYS * KEYS
        full_begin = tl.minimum(tl.cdiv(tl.maximum(end - window, 0), KEYS) * KEYS, full_end)
    else:
        begin = 0
        full_begin = 0
    key_cache += kv_head.to(tl.int64) * key_head
    value_cache += kv_head.to(tl.int64) * value_head
    key_scales += kv_head
    value_scales += kv_head
    pages += sequence.to(tl.int64) * pages_stride
    position = earliest + rows // GROUP
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], dtype=tl.float32)
    maximum = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    if WINDOWED:
        accumulator, maximum, total = attend(
            accumulator, maximum, total, main, rest, key_cache, value_cache, key_scales, value_scales, pages,
            position, begin, full_begin, end, scale_log2, window, key_slot, value_slot, scale_slot,
            MAIN, REST, VALUE, MAIN_BLOCK, REST_BLOCK, VALUE_BLOCK, PAGE_SIZE, KEYS,
            True, True, QUANTIZED, False, PRECISION,
        )  # fmt: skip
    accumulator, maximum, total = attend(
        accumulator, maximum, total, main, rest, key_cache, value_cache, key_scales, value_scales, pages,
        position, full_begin, full_end, end, scale_log2, window, key_slot, value_slot, scale_slot,
        MAIN, REST, VALUE, MAIN_BLOCK, REST_BLOCK, VALUE_BLOCK, PAGE_SIZE, KEYS,
        False, False, QUANTIZED, False, PRECISION,
    )  # fmt: skip
    accumulator, maximum, total = attend(
        accumulator, maximum, total, main, rest, key_cache, value_cache, key_scales, value_scales, pages,
        position, full_end, end, end, scale_log2, window, key_slot, value_slot, scale_slot,
        MAIN, REST, VALUE, MAIN_BLOCK, REST_BLOCK, VALUE_BLOCK, PAGE_SIZE, KEYS,
        True, WINDOWED, QUANTIZED, False, PRECISION,
    )  # fmt: skip
    # A row without a context, which pads a batch, has seen nothing: its result is zero.
    result = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    columns = tl.arange(0, VALUE_BLOCK)
    pointers = output + (row * output_row + head * output_head)[:, None] + columns[None, :]
    tl.store(pointers, result.to(output.dtype.element_ty), mask=valid[:, None] & (columns < VALUE)[None, :])


def _tile(heads: Heads, dtype: torch.dtype) -> Tile:
    """For 227 KiB of shared memory (Hopper), which hold the queries and up to three tiles of keys and values."""
    width = heads.width
    if dtype == torch.float32:
        return Tile(rows=32, keys=32, warps=4, stages=3) if width <= 128 else Tile(rows=16, keys=16, warps=4, stages=2)
    if width <= 64:
        return Tile(rows=128, keys=64, warps=4, stages=5)
    if width <= 192:
        return Tile(rows=128, keys=64, warps=8, stages=5)
    if width <= 256:
        return Tile(rows=128, keys=64, warps=8, stages=3)
    return Tile(rows=64, keys=32, warps=8, stages=3)


def prefill_attention(
    query: tuple[Tensor, Tensor],
    key_cache: Tensor,
    value_cache: Tensor,
    output: Tensor,
    layout: DeviceLayout,
    scale: float,
    *,
    window: int | None = None,
    scales: KVScales | None = None,
    skip_up_to: int = 0,
) -> None:
    """Attention of all sequences with more than ``skip_up_to`` query rows, into their rows of ``output``.

    ``query`` as :func:`.flash.split_query` cuts it; others as in :meth:`deepseek.kernels.ops.Ops.paged_attention`.
    Keys are added up in tiles that begin at multiples of a fixed number, so a row's result does not depend on how its
    prompt was cut into chunks or on what else is in the batch, as far as the tensor cores' own order of adding does
    not depend on the number of rows in a tile.
    """
    main, rest = query
    kv_heads = key_cache.shape[1]
    heads = Heads(main.shape[2], rest.shape[2], value_cache.shape[2], main.shape[1] // kv_heads)
    check_heads(heads)
    tile = _tile(heads, main.dtype)
    require(heads.group <= tile.rows, f"at most {tile.rows} query heads per KV head, not {heads.group}")
    rows = min(tile.rows, block_of(layout.max_query * heads.group))
    blocks = layout.num_rows // (rows // heads.group) + layout.num_sequences
    _prefill_kernel[(blocks, kv_heads)](
        output,
        main,
        rest if heads.rest else main,
        key_cache,
        value_cache,
        scales.key if scales else key_cache,
        scales.value if scales else value_cache,
        layout.query_starts,
        layout.context_lens,
        layout.pages,
        layout.num_sequences,
        layout.pages.stride(0),
        skip_up_to,
        window or 0,
        scale * LOG2_E,
        *main.stride()[:2],
        *rest.stride()[:2],
        *output.stride()[:2],
        *key_cache.stride()[:2],
        *value_cache.stride()[:2],
        kv_heads,
        **heads.constants,
        PAGE_SIZE=layout.page_size,
        ROWS=rows,
        KEYS=tile.keys,
        WINDOWED=window is not None,
        QUANTIZED=scales is not None,
        PRECISION=dot_precision(main.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
    scales: KVScales | None = None,
    index: IndexCache | None = None,
) -> Tensor:
    """See :meth:`deepseek.kernels.ops.Ops.paged_attention`; with ``scales`` the caches are INT8.

    Sequences of up to :data:`.device_layout.DECODE_QUERIES` rows are decoded, others are prefilled: a row's arithmetic
    depends on its own sequence, and on the batch through :func:`.decode_attention.num_splits` only.

    Raises BackendUnavailableError for dtypes, page sizes, widths and layouts that the kernels do not have.
    """
    check_cache(query, key_cache, scales.key if scales else None, layout.page_size)
    check_cache(query, value_cache, scales.value if scales else None, layout.page_size)
    device_layout = DeviceLayout.of(layout, query.device)
    output = query.new_empty(query.shape[0], query.shape[1], value_cache.shape[2])
    parts = split_query(query)
    sparse = index is not None and device_layout.sparse is not None
    dense = device_layout.dense_part() if sparse else device_layout
    if dense.max_decode:
        decode_attention(
            parts, key_cache, value_cache, output, dense, scale, window=window, scales=scales, limit=DECODE_QUERIES
        )  # fmt: skip
    if index is not None and sparse:
        sparse_attention(parts, key_cache, value_cache, index, output, device_layout, scale, scales=scales)
    if device_layout.max_query > DECODE_QUERIES:
        prefill_attention(
            parts, key_cache, value_cache, output, device_layout, scale, window=window, scales=scales,
            skip_up_to=DECODE_QUERIES,
        )  # fmt: skip
    return output
