"""What the tokens of a context weigh, as far as the index of their pages tells, and from which weight on they are read.

Three kernels: queries are rotated; pieces of :data:`deepseek.kernels.page_index.PIECE` pages are estimated, and the
part that is always exact is attended to; a threshold follows for each query head. What a piece's estimate comes to is
left as a partial result, as those of :mod:`.decode_attention`, which stands if no token of the piece is read.

Weights are in base 2. A token's estimate is kept in a byte, in steps below the highest of its page.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepseek.attention.decode import RECENT, THRESHOLD_FACTOR
from deepseek.attention.index import MOST_NOISE, PAGE
from deepseek.kernels.page_index import CODE_BLOCK, CODE_BYTES, PIECE
from deepseek.kernels.triton.decode_attention import join_splits
from deepseek.kernels.triton.flash import LOG2_E, attend, load_rows

# Inside kernels.
_PAGE = tl.constexpr(PAGE)
_PIECE = tl.constexpr(PIECE)
_RECENT = tl.constexpr(RECENT)
_BLOCK = tl.constexpr(CODE_BLOCK)
_BYTES = tl.constexpr(CODE_BYTES)
_LOG2_E = tl.constexpr(LOG2_E)
_MOST_NOISE = tl.constexpr(MOST_NOISE)
_FACTOR = tl.constexpr(THRESHOLD_FACTOR)
STEPS = tl.constexpr(12.0)
"""Of a byte, per octave of weight: it reaches 21 octaves down, and tokens below weigh nothing."""


@triton.jit
def middle_end(context: tl.tensor) -> tl.tensor:
    """See :func:`deepseek.attention.decode.middle_end`."""
    return tl.maximum((context - _RECENT) // _PAGE, 1)


@triton.jit
def heads_of(lane: tl.tensor, GROUP: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """KV head and query heads [ROWS] of a lane, and which of these there are."""
    kv_head = lane // LANES
    within = lane % LANES * ROWS + tl.arange(0, ROWS)
    return kv_head, kv_head * GROUP + within, within < GROUP


@triton.jit(do_not_specialize_on_alignment=["facts"])
def _rotate_kernel(
    prepared: tl.tensor,
    facts: tl.tensor,
    query_main: tl.tensor,
    query_rest: tl.tensor,
    matrix: tl.tensor,
    main_row: tl.tensor,
    main_head: tl.tensor,
    rest_row: tl.tensor,
    rest_head: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid (entries, lanes, BLOCKS): a block of columns of ``prepared`` [entry, head, 2, BLOCKS * 128]: the query as it
    is, and turned."""
    entry = tl.program_id(0).to(tl.int64)
    to = tl.program_id(2)
    if tl.load(facts + entry * 4 + 2) == 0:
        return
    _, head, valid = heads_of(tl.program_id(1), GROUP, LANES, ROWS)
    row = tl.load(facts + entry * 4).to(tl.int64)
    within = tl.arange(0, _BLOCK)
    turned = tl.zeros([ROWS, _BLOCK], dtype=tl.float32)
    place = prepared + (entry * HEADS + head)[:, None] * (2 * BLOCKS * _BLOCK)
    for block in range(BLOCKS):
        columns = within + block * _BLOCK
        main = query_main + (row * main_row + head * main_head)[:, None] + columns[None, :]
        query = tl.load(main, mask=valid[:, None] & (columns < MAIN)[None, :], other=0)
        if REST > 0:
            rest = query_rest + (row * rest_row + head * rest_head)[:, None] + (columns - MAIN)[None, :]
            inside = (columns >= MAIN) & (columns < MAIN + REST)
            query += tl.load(rest, mask=valid[:, None] & inside[None, :], other=0)
        if block == to:
            tl.store(place + columns[None, :], query, mask=valid[:, None])
        turn = tl.load(matrix + columns[:, None] * (BLOCKS * _BLOCK) + (within + to * _BLOCK)[None, :])
        turned = tl.dot(query, turn, turned, input_precision=PRECISION)
    columns = within + (BLOCKS + to) * _BLOCK
    tl.store(place + columns[None, :], turned.to(prepared.dtype.element_ty), mask=valid[:, None])


@triton.jit
def _estimate_page(
    codes: tl.tensor,
    alphas: tl.tensor,
    alpha_step: tl.tensor,
    turned: tl.tensor,
    valid: tl.tensor,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Query times key less mean, fp32 [ROWS, 64]. ``turned`` points to each head's rotated query; the rest to the
    page's own."""
    tokens = tl.arange(0, _PAGE)
    columns = tl.arange(0, _BLOCK)
    scores = tl.zeros([ROWS, _PAGE], dtype=tl.float32)
    plus = tl.full([], 1.0, dtype=tl.float32).to(turned.dtype.element_ty)
    minus = tl.full([], -1.0, dtype=tl.float32).to(turned.dtype.element_ty)
    for block in range(BLOCKS):
        place = tokens[:, None] * (BLOCKS * _BYTES) + (tl.arange(0, _BYTES) + block * _BYTES)[None, :]
        bits = tl.load(codes + place)[:, None, :] >> tl.arange(0, 8).to(tl.uint8)[None, :, None]
        signs = tl.reshape(tl.where((bits & 1) != 0, plus, minus), [_PAGE, _BLOCK])
        query = tl.load(turned[:, None] + (columns + block * _BLOCK)[None, :], mask=valid[:, None], other=0)
        scores = tl.dot(query, tl.trans(signs), scores)
    return scores * (tl.load(alphas + tokens).to(tl.float32) * alpha_step)[None, :]


@triton.jit
def _mean_product(query: tl.tensor, means: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """fp32 [ROWS]: queries [ROWS, BLOCK] times a page's mean of WIDTH elements, in steps."""
    columns = tl.arange(0, BLOCK)
    mean = tl.load(means + columns, mask=columns < WIDTH, other=0).to(tl.float32)
    return tl.sum(query.to(tl.float32) * mean[None, :], 1)


@triton.jit(
    do_not_specialize=["pages_stride"],
    do_not_specialize_on_alignment=["facts", "pages"],
)
def _score_kernel(
    partial: tl.tensor,
    log_sums: tl.tensor,
    tails: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    bins: tl.tensor,
    prepared: tl.tensor,
    facts: tl.tensor,
    pages: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    codes: tl.tensor,
    alphas: tl.tensor,
    key_means: tl.tensor,
    value_means: tl.tensor,
    scalars: tl.tensor,
    pages_stride: tl.tensor,
    scale: tl.tensor,
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
    BLOCKS: tl.constexpr,
    KEYS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid (entries, lanes, pieces + 1). The last piece is the exact part.

    Per entry, head and piece: ``partial`` [VALUE], ``log_sums``, ``tails`` (the share of it that is estimated) of
    pieces + 1; ``sums`` [4] of pieces: means of spread, noise and squares by weight, and the longest value. Per entry,
    head and page: ``tops``, the highest estimate, infinite for a page whose codes tell nothing, and ``bins`` [64].
    """
    entry = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(2)
    pieces = tl.num_programs(2) - 1
    context = tl.load(facts + entry * 4 + 2)
    if context == 0:
        return
    kv_head, head, valid = heads_of(tl.program_id(1), GROUP, LANES, ROWS)
    place = entry * HEADS + head
    split = place * (pieces + 1) + piece
    pages += tl.load(facts + entry * 4 + 1).to(tl.int64) * pages_stride
    scale_log2 = scale * _LOG2_E
    end = middle_end(context)
    first = piece * _PIECE + 1
    stride = 2 * BLOCKS * _BLOCK
    main = load_rows(prepared, place * stride, valid, MAIN, MAIN_BLOCK, True)
    if REST > 0:
        rest = load_rows(prepared + MAIN, place * stride, valid, REST, REST_BLOCK, True)
    else:
        rest = main
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], dtype=tl.float32)
    maximum = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    columns = tl.arange(0, VALUE_BLOCK)

    if piece == pieces:
        key_cache += kv_head.to(tl.int64) * key_head
        value_cache += kv_head.to(tl.int64) * value_head
        position = tl.zeros([ROWS], dtype=tl.int32) + (context - 1)
        for part in range(2):
            begin = 0 if part == 0 else end * _PAGE
            until = tl.minimum(_PAGE, context) if part == 0 else context
            accumulator, maximum, total = attend(
                accumulator, maximum, total, main, rest, key_cache, value_cache, key_scales + kv_head,
                value_scales + kv_head, pages, position, begin, until, context, scale_log2, 0,
                key_slot, value_slot, KV_HEADS, MAIN, REST, VALUE, MAIN_BLOCK, REST_BLOCK, VALUE_BLOCK, _PAGE, KEYS,
                True, False, QUANTIZED, LATENT, PRECISION,
            )  # fmt: skip
        tl.store(tails + split, tl.zeros([ROWS], dtype=tl.float32), mask=valid)
    elif first < end:
        spread = tl.zeros([ROWS], dtype=tl.float32)
        noise = tl.zeros([ROWS], dtype=tl.float32)
        squares = tl.zeros([ROWS], dtype=tl.float32)
        longest = 0.0
        norms = tl.sum(main.to(tl.float32) * main.to(tl.float32), 1)
        if REST > 0:
            norms += tl.sum(rest.to(tl.float32) * rest.to(tl.float32), 1)
        norms *= scale * scale
        turned = prepared + place * stride + BLOCKS * _BLOCK
        tokens = tl.arange(0, _PAGE)
        for page in range(first, tl.minimum(first + _PIECE, end)):
            own = tl.load(pages + page).to(tl.int64) * KV_HEADS + kv_head
            told = scalars + own * 8
            scores = _estimate_page(
                codes + own * (_PAGE * BLOCKS * _BYTES), alphas + own * _PAGE, tl.load(told + 1), turned, valid,
                ROWS, BLOCKS,
            )  # fmt: skip
            mean = key_means + own * (MAIN + REST)
            base = _mean_product(main, mean, MAIN, MAIN_BLOCK)
            if REST > 0:
                base += _mean_product(rest, mean + MAIN, REST, REST_BLOCK)
            variance = tl.minimum(norms * tl.load(told + 3), _MOST_NOISE)
            offset = base * tl.load(told) * scale_log2 + variance * (0.5 * _LOG2_E)
            estimates = scores * scale_log2 + offset[:, None]
            top = tl.max(estimates, 1)
            weight = tl.sum(tl.exp2(estimates - top[:, None]), 1)
            steps = tl.maximum((estimates - top[:, None]) * STEPS + 255.5, 0.0).to(tl.uint8)
            at = place * (pieces * _PIECE) + (page - 1)
            tl.store(bins + at[:, None] * _PAGE + tokens[None, :], steps, mask=valid[:, None])
            untold = tl.max(tl.where(valid & (variance >= _MOST_NOISE), 1, 0), 0) > 0
            tl.store(tops + at, tl.where(untold, float("inf"), top), mask=valid)

            highest = tl.maximum(maximum, top)
            fading = tl.exp2(maximum - highest)
            weight *= tl.exp2(top - highest)
            maximum = highest
            total = total * fading + weight
            spread = spread * fading + weight * tl.load(told + 5)
            noise = noise * fading + weight * (tl.exp2(variance * _LOG2_E) - 1.0)
            squares = squares * fading + weight * tl.load(told + 7)
            longest = tl.maximum(longest, tl.load(told + 6))
            means = tl.load(value_means + own * VALUE + columns, mask=columns < VALUE, other=0).to(tl.float32)
            rows = (weight * tl.load(told + 2))[:, None] * means[None, :]
            accumulator = accumulator * fading[:, None] + rows
        at = sums + (place * pieces + piece) * 4
        tl.store(at, spread / total, mask=valid)
        tl.store(at + 1, noise / total, mask=valid)
        tl.store(at + 2, squares / total, mask=valid)
        tl.store(at + 3, tl.zeros([ROWS], dtype=tl.float32) + longest, mask=valid)
        tl.store(tails + split, tl.full([ROWS], 1.0, dtype=tl.float32), mask=valid)
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(log_sums + split, maximum + tl.log2(divisor), mask=valid)
    stored = (valid & (total != 0.0))[:, None] & (columns < VALUE)[None, :]
    tl.store(partial + (split * VALUE)[:, None] + columns[None, :], accumulator / divisor[:, None], mask=stored)


@triton.jit
def piece_mean(
    log_sums: tl.tensor, facts: tl.tensor, stride: tl.tensor, count: tl.tensor, maximum: tl.tensor, CHUNK: tl.constexpr
) -> tl.tensor:
    """Sum of one fact of each split, weighted by the splits' sums of weights relative to ``maximum``."""
    result = 0.0
    for first in range(0, count, CHUNK):
        split = first + tl.arange(0, CHUNK)
        logs = tl.load(log_sums + split, mask=split < count, other=float("-inf"))
        inside = logs != float("-inf")
        values = tl.load(facts + split * stride, mask=inside, other=0.0)
        result += tl.sum(tl.where(inside, tl.exp2(logs - maximum) * values, 0.0), 0)
    return result


@triton.jit(do_not_specialize=["pieces"], do_not_specialize_on_alignment=["facts"])
def _threshold_kernel(
    thresholds: tl.tensor,
    partial: tl.tensor,
    log_sums: tl.tensor,
    sums: tl.tensor,
    facts: tl.tensor,
    pieces: tl.tensor,
    HEADS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Grid (entries, heads): ``thresholds`` [entry, head, 4]: the log weight from which on a token is read, what the
    unread share is to be multiplied with for the squared error, and the longest value. See
    :func:`deepseek.attention.decode.sparse_decode`."""
    entry = tl.program_id(0).to(tl.int64)
    context = tl.load(facts + entry * 4 + 2)
    if context == 0:
        return
    place = entry * HEADS + tl.program_id(1)
    to = thresholds + place * 4
    count = tl.cdiv(middle_end(context) - 1, _PIECE)
    if count == 0:
        tl.store(to, float("inf"))
        tl.store(to + 1, 0.0)
        tl.store(to + 2, 0.0)
        return
    split = place * (pieces + 1)
    columns = tl.arange(0, VALUE_BLOCK)
    accumulator, maximum, total = join_splits(partial, log_sums, split, count, VALUE, VALUE_BLOCK, CHUNK)
    own = sums + place * pieces * 4
    logs = log_sums + split
    spread = piece_mean(logs, own, 4, count, maximum, CHUNK) / total
    noise = piece_mean(logs, own + 1, 4, count, maximum, CHUNK) / total
    squares = piece_mean(logs, own + 2, 4, count, maximum, CHUNK) / total
    longest = 0.0
    for first in range(0, count, CHUNK):
        piece = first + tl.arange(0, CHUNK)
        longest = tl.maximum(longest, tl.max(tl.load(own + 3 + piece * 4, mask=piece < count, other=0.0), 0))

    exact_log = tl.load(logs + pieces)
    exact = tl.load(partial + (split + pieces) * VALUE + columns, mask=columns < VALUE, other=0.0)
    highest = tl.maximum(maximum, exact_log)
    exact_weight = tl.exp2(exact_log - highest)
    fading = tl.exp2(maximum - highest)
    whole = exact_weight + total * fading
    tail = total * fading / whole
    rest = accumulator * (fading / whole)
    output = exact * (exact_weight / whole) + rest
    length2 = tl.sum(output * output, 0)
    apart = tl.maximum(squares - 2.0 * tl.sum(rest * output, 0) / tail + length2, 0.0)
    deviation = spread + noise * apart
    bits = tl.load(facts + entry * 4 + 3)
    error = bits.to(tl.float32, bitcast=True)
    least = _FACTOR * error * error * length2 / (deviation * tail)
    # Everything is read where something is not finite, and nothing where there is nothing to be wrong about.
    threshold = tl.where(least > 0.0, tl.log2(least) + tl.log2(whole) + highest, float("-inf"))
    told = deviation * tail > 0.0
    tl.store(to, tl.where(deviation * tail == 0.0, float("inf"), threshold))
    tl.store(to + 1, tl.where(told, least * deviation / length2, 0.0))
    tl.store(to + 2, longest)
