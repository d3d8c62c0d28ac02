"""Attention of few query rows per sequence: the context is split over the GPU, partial results are joined.

Flash-decoding (Dao, Haziza, Massa and Sizov 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html): each split
leaves its result and the logarithm of its sum of weights, from which a second kernel makes the whole. Keys and values
of one KV head are read once for all its query heads; in MLA one latent is keys and values of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.flash import (
    LOG2_E,
    Heads,
    Tile,
    attend,
    block_of,
    check_heads,
    dot_precision,
    load_rows,
)

MIN_SPLIT = 256
"""Tokens of context below which another split costs more than it wins."""

MAX_SPLITS = 128

PROGRAMS_PER_MULTIPROCESSOR = 2


@triton.jit(
    do_not_specialize=["pages_stride", "row_blocks", "max_rows", "limit", "window"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "pages", "output_row", "output_head"],
)
def _decode_kernel(
    output: tl.tensor,
    log_sums: tl.tensor,
    query_main: tl.tensor,
    query_rest: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    pages: tl.tensor,
    pages_stride: tl.tensor,
    row_blocks: tl.tensor,
    max_rows: tl.tensor,
    limit: tl.tensor,
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
    LATENT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid (sequences * row blocks, KV heads, splits). Rows of a sequence are query-major: row r is query r // GROUP.

    With SPLIT, ``output`` is [sequence * max_rows + query, head, split, VALUE] and ``log_sums`` the same without VALUE,
    base 2, minus infinity for a split without tokens; otherwise ``output`` is the result and ``log_sums`` is not used.
    """
    sequence = tl.program_id(0) // row_blocks
    first_row = tl.program_id(0) % row_blocks * ROWS
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    if (queries > limit) | (first_row >= queries * GROUP):
        return

    context = tl.load(context_lens + sequence)
    rows = first_row + tl.arange(0, ROWS)
    query = rows // GROUP
    head = (kv_head * GROUP + rows % GROUP).to(tl.int64)
    valid = query < queries
    row = (start + query).to(tl.int64)
    main = load_rows(query_main, row * main_row + head * main_head, valid, MAIN, MAIN_BLOCK, True)
    if REST > 0:
        rest = load_rows(query_rest, row * rest_row + head * rest_head, valid, REST, REST_BLOCK, True)
    else:
        rest = main

    # Each split takes an equal number of tiles of what this block's rows see.
    earliest = context - queries + first_row // GROUP
    seen = tl.minimum(context - queries + (first_row + ROWS - 1) // GROUP + 1, context)
    first_tile = 0
    if WINDOWED:
        first_tile = tl.maximum(earliest - window + 1, 0) // KEYS
    tiles = tl.cdiv(tl.maximum(seen, 0), KEYS) - first_tile
    per_split = tl.cdiv(tiles, tl.num_programs(2))
    begin = (first_tile + split * per_split) * KEYS
    end = tl.minimum(begin + per_split * KEYS, seen)
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], dtype=tl.float32)
    maximum = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    accumulator, maximum, total = attend(
        accumulator, maximum, total, main, rest,
        key_cache + kv_head.to(tl.int64) * key_head, value_cache + kv_head.to(tl.int64) * value_head,
        key_scales + kv_head, value_scales + kv_head, pages + sequence.to(tl.int64) * pages_stride,
        context - queries + query, begin, end, seen, scale_log2, window, key_slot, value_slot, scale_slot,
        MAIN, REST, VALUE, MAIN_BLOCK, REST_BLOCK, VALUE_BLOCK, PAGE_SIZE, KEYS,
        True, WINDOWED, QUANTIZED, LATENT, PRECISION,
    )  # fmt: skip
    divisor = tl.where(total == 0.0, 1.0, total)
    result = accumulator / divisor[:, None]
    columns = tl.arange(0, VALUE_BLOCK)
    stored = valid[:, None] & (columns < VALUE)[None, :]
    if SPLIT:
        splits = tl.num_programs(2)
        place = ((sequence * max_rows + query).to(tl.int64) * (tl.num_programs(1) * GROUP) + head) * splits + split
        tl.store(log_sums + place, maximum + tl.log2(divisor), mask=valid)
        tl.store(output + (place * VALUE)[:, None] + columns[None, :], result, mask=stored & (total != 0.0)[:, None])
    else:
        pointers = output + (row * output_row + head * output_head)[:, None] + columns[None, :]
        tl.store(pointers, result.to(output.dtype.element_ty), mask=stored)


@triton.jit
def join_splits(
    partial: tl.tensor,
    log_sums: tl.tensor,
    place: tl.tensor,
    splits: tl.tensor,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Sum of partial results [VALUE_BLOCK], weighted by their sums of weights, the highest of these (base 2), to which
    the others are relative, and the sum of weights. The splits lie from ``place`` on."""
    columns = tl.arange(0, VALUE_BLOCK)
    accumulator = tl.zeros([VALUE_BLOCK], dtype=tl.float32)
    maximum = float("-inf")
    total = 0.0
    for first in tl.range(0, splits, CHUNK):
        split = first + tl.arange(0, CHUNK)
        logs = tl.load(log_sums + place + split, mask=split < splits, other=float("-inf"))
        highest = tl.maximum(maximum, tl.max(logs, 0))
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(logs - shift)
        # What a split without tokens left there is not a result.
        mask = (logs != float("-inf"))[:, None] & (columns < VALUE)[None, :]
        values = tl.load(partial + (place + split)[:, None] * VALUE + columns[None, :], mask=mask, other=0.0)
        fading = tl.exp2(maximum - shift)
        accumulator = accumulator * fading + tl.sum(weights[:, None] * values, 0)
        total = total * fading + tl.sum(weights, 0)
        maximum = highest
    return accumulator, maximum, total


@triton.jit(
    do_not_specialize=["max_rows", "limit", "splits"],
    do_not_specialize_on_alignment=["query_starts", "output_row", "output_head"],
)
def _join_kernel(
    output: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    query_starts: tl.tensor,
    max_rows: tl.tensor,
    limit: tl.tensor,
    splits: tl.tensor,
    output_row: tl.tensor,
    output_head: tl.tensor,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Grid (sequences * max_rows, heads): the mean of a row's partial results, weighted by their sums of weights."""
    sequence = tl.program_id(0) // max_rows
    query = tl.program_id(0) % max_rows
    head = tl.program_id(1)
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    if (queries > limit) | (query >= queries):
        return

    place = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + head) * splits
    columns = tl.arange(0, VALUE_BLOCK)
    accumulator, _, total = join_splits(partial, log_sums, place, splits, VALUE, VALUE_BLOCK, CHUNK)
    result = accumulator / tl.where(total == 0.0, 1.0, total)
    pointers = output + (start + query).to(tl.int64) * output_row + head * output_head + columns
    tl.store(pointers, result.to(output.dtype.element_ty), mask=columns < VALUE)


def num_splits(programs: int, max_context: int, multiprocessors: int) -> int:
    """Into how many parts a context is split, when ``programs`` would run without splitting.

    As many as fill the GPU twice, rounded up to a power of two, but none shorter than :data:`MIN_SPLIT` in the longest
    context. A function of sizes and not of data: a CUDA graph's bucket has one number. A row is the same to the bit in
    all batches that have one number, and one number of rows in a tile, which follows from the most query rows that a
    decoded sequence has.
    """
    wanted: int = triton.next_power_of_2(-(-PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(1, programs)))
    useful = max(1, max_context // MIN_SPLIT)
    return min(wanted, useful, MAX_SPLITS)


@dataclass(frozen=True, slots=True)
class Chip:
    """What launches depend on; ``generation`` is the major number of the compute capability."""

    multiprocessors: int
    generation: int


H100 = Chip(multiprocessors=132, generation=9)


@cache
def chip_of(device: torch.device) -> Chip:
    """The GPU's; on a CPU, where kernels are interpreted, that of an H100."""
    if device.type != "cuda":
        return H100
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, properties.major)


def _tile(heads: Heads, rows: int, dtype: torch.dtype, chip: Chip) -> Tile:
    """Decoding waits for memory: two tiles of keys in flight, and two programs to a multiprocessor where they fit."""
    rows = min(64, block_of(rows))
    if dtype == torch.float32:
        return Tile(rows=16, keys=16, warps=4, stages=3)
    if heads.width <= 128:
        return Tile(rows, keys=64, warps=4, stages=5)
    if heads.width <= 256:
        return Tile(rows, keys=32, warps=4, stages=5)
    if rows <= 16:
        return Tile(rows, keys=32, warps=4, stages=5)
    # Blackwell keeps the weights in shared memory too: with 5 stages an MLA latent would take 245 KiB.
    return Tile(rows, keys=32, warps=8, stages=5 if chip.generation < 10 else 3)


def decode_attention(
    query: tuple[Tensor, Tensor],
    key_cache: Tensor,
    value_cache: Tensor | None,
    output: Tensor,
    layout: DeviceLayout,
    scale: float,
    *,
    limit: int,
    max_rows: int | None = None,
    window: int | None = None,
    scales: KVScales | None = None,
) -> None:
    """Attention of all sequences with at most ``limit`` query rows, into their rows of ``output``.

    ``query`` as :func:`.flash.split_query` cuts it; others as in :meth:`deepseek.kernels.ops.Ops.paged_attention`.
    ``value_cache`` None means that the values are the main part of the keys. ``max_rows``: no such sequence has more
    query rows; what the layout says about sequences that are decoded if None.
    """
    main, rest = query
    num_heads, kv_heads = main.shape[1], key_cache.shape[1]
    latent = value_cache is None
    values = key_cache if value_cache is None else value_cache
    heads = Heads(main.shape[2], rest.shape[2], main.shape[2] if latent else values.shape[2], num_heads // kv_heads)
    check_heads(heads)
    max_rows = layout.max_decode if max_rows is None else max_rows
    chip = chip_of(main.device)
    tile = _tile(heads, max_rows * heads.group, main.dtype, chip)
    row_blocks = -(-max_rows * heads.group // tile.rows)
    sequences = layout.num_sequences
    splits = num_splits(sequences * row_blocks * kv_heads, layout.max_context, chip.multiprocessors)
    partial, log_sums = output, output
    if splits > 1:
        partial = output.new_empty(sequences * max_rows * num_heads * splits * heads.value, dtype=torch.float32)
        log_sums = output.new_empty(sequences * max_rows * num_heads * splits, dtype=torch.float32)
    _decode_kernel[(sequences * row_blocks, kv_heads, splits)](
        partial,
        log_sums,
        main,
        rest if heads.rest else main,
        key_cache,
        values,
        scales.key if scales else key_cache,
        scales.value if scales else values,
        layout.query_starts,
        layout.context_lens,
        layout.pages,
        layout.pages.stride(0),
        row_blocks,
        max_rows,
        limit,
        window or 0,
        scale * LOG2_E,
        *main.stride()[:2],
        *rest.stride()[:2],
        *output.stride()[:2],
        *key_cache.stride()[:2],
        *values.stride()[:2],
        kv_heads,
        **heads.constants,
        PAGE_SIZE=layout.page_size,
        ROWS=tile.rows,
        KEYS=tile.keys,
        WINDOWED=window is not None,
        QUANTIZED=scales is not None,
        LATENT=latent,
        SPLIT=splits > 1,
        PRECISION=dot_precision(main.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _join_kernel[(sequences * max_rows, num_heads)](
            output,
            partial,
            log_sums,
            layout.query_starts,
            max_rows,
            limit,
            splits,
            *output.stride()[:2],
            VALUE=heads.value,
            VALUE_BLOCK=block_of(heads.value),
            CHUNK=16,
            num_warps=2,
        )
