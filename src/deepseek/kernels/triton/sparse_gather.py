"""Attention to the tokens that weigh enough, and what is left of their pieces; then all parts of a context together.

A piece of which nothing is read is left as it was estimated. Of the others the tokens are listed, their keys and values
gathered in full tiles, and the rest of each page counts as the mean of its other values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepseek.attention.index import PAGE
from deepseek.kernels.page_index import COUNTER_ROWS, COUNTERS, PIECE
from deepseek.kernels.triton.decode_attention import join_splits
from deepseek.kernels.triton.flash import LOG2_E, load_rows
from deepseek.kernels.triton.sparse_score import STEPS, heads_of, middle_end, piece_mean

# Inside kernels.
_PAGE = tl.constexpr(PAGE)
_PIECE = tl.constexpr(PIECE)
_LOG2_E = tl.constexpr(LOG2_E)
_COUNTERS = tl.constexpr(len(COUNTERS))
_COUNTER_ROWS = tl.constexpr(COUNTER_ROWS)
_STEPS = tl.constexpr(STEPS.value)


@triton.jit
def _add(counters: tl.tensor, turn: tl.tensor, NUMBER: tl.constexpr, value: tl.tensor) -> None:
    """Count ``value`` under a number of :data:`deepseek.kernels.page_index.COUNTERS`."""
    tl.atomic_add(counters + turn % _COUNTER_ROWS * _COUNTERS + NUMBER, value.to(tl.float64), sem="relaxed")


@triton.jit(
    do_not_specialize=["pages_stride"],
    do_not_specialize_on_alignment=["facts", "pages"],
)
def _gather_kernel(
    partial: tl.tensor,
    log_sums: tl.tensor,
    tails: tl.tensor,
    shares: tl.tensor,
    lists: tl.tensor,
    thresholds: tl.tensor,
    tops: tl.tensor,
    bins: tl.tensor,
    prepared: tl.tensor,
    facts: tl.tensor,
    pages: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    value_means: tl.tensor,
    scalars: tl.tensor,
    counters: tl.tensor,
    pages_stride: tl.tensor,
    scale: tl.tensor,
    token_bytes: tl.tensor,
    key_slot: tl.tensor,
    key_head: tl.tensor,
    value_slot: tl.tensor,
    value_head: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE: tl.constexpr,
    MAIN_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid (entries, lanes, pieces). ``shares`` [entry, head, page]: what each unread token of a page counts for;
    ``lists`` int16 [entry, lane, piece, 1024]: the tokens that are read. The rest as in
    :func:`.sparse_score._score_kernel`."""
    entry = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1)
    piece = tl.program_id(2)
    pieces = tl.num_programs(2)
    context = tl.load(facts + entry * 4 + 2)
    end = middle_end(context)
    first = piece * _PIECE + 1
    count = tl.minimum(_PIECE, end - first)
    if (context == 0) | (count <= 0):
        return
    kv_head, head, valid = heads_of(lane, GROUP, LANES, ROWS)
    place = entry * HEADS + head
    page0 = place * (pieces * _PIECE) + piece * _PIECE
    # No head that is not there reads anything. What is no number is read.
    least = tl.load(thresholds + place * 4, mask=valid, other=float("inf"))
    within = tl.arange(0, _PIECE)
    inside = valid[:, None] & (within < count)[None, :]
    highest = tl.load(tops + page0[:, None] + within[None, :], mask=inside, other=float("-inf"))
    if tl.sum(tl.sum(tl.where((highest < least[:, None]) | (inside == 0), 0, 1), 1), 0) == 0:
        return

    # What is left of the pages, and the list. Weights are relative to the piece's as it was estimated.
    split = place * (pieces + 1) + piece
    shift = tl.load(log_sums + split, mask=valid, other=0.0)
    pages += tl.load(facts + entry * 4 + 1).to(tl.int64) * pages_stride + first
    lists += ((entry * tl.num_programs(1) + lane) * pieces + piece) * (_PIECE * _PAGE)
    tokens = tl.arange(0, _PAGE)
    columns = tl.arange(0, VALUE_BLOCK)
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], dtype=tl.float32)
    tail = tl.zeros([ROWS], dtype=tl.float32)
    listed = tl.zeros([], dtype=tl.int32)
    for i in range(count):
        top = tl.load(tops + page0 + i, mask=valid, other=float("-inf"))
        steps = tl.load(bins + (page0 + i)[:, None] * _PAGE + tokens[None, :], mask=valid[:, None], other=0)
        estimates = top[:, None] + (steps.to(tl.float32) - 255.0) / _STEPS
        wanted = tl.where((estimates < least[:, None]) | (valid == 0)[:, None], 0, 1)
        chosen = tl.max(wanted, 0)
        number = tl.sum(chosen, 0)
        left = (chosen == 0)[None, :] & (steps > 0)
        weight = tl.sum(tl.where(left, tl.exp2(estimates - shift[:, None]), 0.0), 1)
        share = weight / tl.maximum(_PAGE - number, 1).to(tl.float32)
        tl.store(shares + page0 + i, share, mask=valid)
        own = tl.load(pages + i).to(tl.int64) * KV_HEADS + kv_head
        means = tl.load(value_means + own * VALUE + columns, mask=columns < VALUE, other=0).to(tl.float32)
        accumulator += (share * (tl.load(scalars + own * 8 + 2) * _PAGE))[:, None] * means[None, :]
        tail += weight
        to = listed + tl.cumsum(chosen, 0) - chosen
        tl.store(lists + to, (tokens + i * _PAGE).to(tl.int16), mask=chosen != 0)
        listed += number
    # The threads read what others wrote.
    tl.debug_barrier()

    main = load_rows(prepared, place * WIDTH, valid, MAIN, MAIN_BLOCK, True)
    if REST > 0:
        rest = load_rows(prepared + MAIN, place * WIDTH, valid, REST, REST_BLOCK, True)
    else:
        rest = main
    key_cache += kv_head.to(tl.int64) * key_head
    value_cache += kv_head.to(tl.int64) * value_head
    maximum = tl.zeros([ROWS], dtype=tl.float32)
    total = tail
    for begin in tl.range(0, listed, KEYS):
        at = begin + tl.arange(0, KEYS)
        there = at < listed
        token = tl.load(lists + at, mask=there, other=0).to(tl.int32)
        page = tl.load(pages + token // _PAGE, mask=there, other=0).to(tl.int64)
        slots = page * _PAGE + token % _PAGE
        keys = load_rows(key_cache, slots * key_slot, there, MAIN, MAIN_BLOCK, True)
        scores = tl.dot(main, tl.trans(keys.to(main.dtype)), input_precision=PRECISION)
        if QUANTIZED:
            key_scale = tl.load(key_scales + slots * KV_HEADS + kv_head, mask=there, other=0).to(tl.float32)
            value_scale = tl.load(value_scales + slots * KV_HEADS + kv_head, mask=there, other=0).to(tl.float32)
        if REST > 0:
            others = load_rows(key_cache + MAIN, slots * key_slot, there, REST, REST_BLOCK, True)
            others = tl.trans(others.to(main.dtype))
            if QUANTIZED and LATENT:
                rotated = tl.dot(rest, others, input_precision=PRECISION)
                scores = scores * key_scale[None, :] + rotated * value_scale[None, :]
                value_scale = key_scale
            else:
                scores = tl.dot(rest, others, scores, input_precision=PRECISION)
        scores *= scale * _LOG2_E
        if QUANTIZED and not LATENT:
            scores *= key_scale[None, :]
        scores = tl.where(there[None, :], scores - shift[:, None], float("-inf"))
        highest_now = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp2(scores - highest_now[:, None])
        fading = tl.exp2(maximum - highest_now)
        total = total * fading + tl.sum(weights, 1)
        accumulator = accumulator * fading[:, None]
        # The mean of a page counts its read tokens too, which is taken off.
        counted = (page0[:, None] + (token // _PAGE)[None, :]).to(tl.int64)
        share = tl.load(shares + counted, mask=valid[:, None] & there[None, :], other=0.0)
        weights -= share * tl.exp2(-highest_now)[:, None]
        if LATENT:
            values = keys
        else:
            values = load_rows(value_cache, slots * value_slot, there, VALUE, VALUE_BLOCK, True)
        if QUANTIZED:
            weights *= value_scale[None, :]
            accumulator = tl.dot(weights.to(tl.bfloat16), values.to(tl.bfloat16), accumulator)
        else:
            values = values.to(main.dtype)
            accumulator = tl.dot(weights.to(main.dtype), values, accumulator, input_precision=PRECISION)
        maximum = highest_now
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(log_sums + split, shift + maximum + tl.log2(divisor), mask=valid)
    tl.store(tails + split, tail * tl.exp2(-maximum) / divisor, mask=valid)
    stored = valid[:, None] & (columns < VALUE)[None, :]
    tl.store(partial + (split * VALUE)[:, None] + columns[None, :], accumulator / divisor[:, None], mask=stored)
    turn = entry + lane + piece
    _add(counters, turn, 2, listed)
    _add(counters, turn, 3, listed.to(tl.float32) * token_bytes)


@triton.jit(
    do_not_specialize=["splits"],
    do_not_specialize_on_alignment=["facts", "output_row", "output_head"],
)
def _finish_kernel(
    output: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    tails: tl.tensor,
    thresholds: tl.tensor,
    facts: tl.tensor,
    counters: tl.tensor,
    splits: tl.tensor,
    first_entry: tl.tensor,
    token_bytes: tl.tensor,
    page_bytes: tl.tensor,
    output_row: tl.tensor,
    output_head: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    ALONE: tl.constexpr,
) -> None:
    """Grid (entries, heads): the parts of a row together. ALONE: entry i is row i, and rows that pad are zero."""
    entry = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, VALUE_BLOCK)
    context = tl.load(facts + entry * 4 + 2)
    if context == 0:
        if ALONE:
            empty = tl.zeros([VALUE_BLOCK], dtype=output.dtype.element_ty)
            to = output + (first_entry + entry) * output_row + head * output_head + columns
            tl.store(to, empty, mask=columns < VALUE)
        return
    row = tl.load(facts + entry * 4).to(tl.int64)
    place = entry * HEADS + head
    accumulator, maximum, total = join_splits(partial, log_sums, place * splits, splits, VALUE, VALUE_BLOCK, CHUNK)
    result = accumulator / total
    to = output + row * output_row + head * output_head + columns
    tl.store(to, result.to(output.dtype.element_ty), mask=columns < VALUE)

    tail = piece_mean(log_sums + place * splits, tails + place * splits, 1, splits, maximum, CHUNK) / total
    length = tl.sqrt(tl.sum(result * result, 0))
    bound = 4.0 * tail * tl.load(thresholds + place * 4 + 2) / tl.where(length > 0.0, length, 1.0)
    turn = entry + head
    _add(counters, turn, 0, tl.full([], 1, dtype=tl.int32))
    _add(counters, turn, 6, tail)
    _add(counters, turn, 7, tl.sqrt(tail * tl.load(thresholds + place * 4 + 1)))
    _add(counters, turn, 8, bound)
    if head % GROUP == 0:
        middle = middle_end(context) - 1
        exact = context - middle * _PAGE
        _add(counters, turn, 1, context)
        _add(counters, turn, 2, exact)
        _add(counters, turn, 3, exact.to(tl.float32) * token_bytes + middle.to(tl.float32) * page_bytes)
        _add(counters, turn, 4, context.to(tl.float32) * token_bytes)
        _add(counters, turn, 5, tl.cdiv(middle, _PIECE))
