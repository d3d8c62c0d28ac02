"""The index of pages, made in the step that fills them: the host does not know, or wait for, what is in it."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.attention.index import PAGE
from deepseek.attention.rotation import MAX_DIM, rotation_matrix
from deepseek.kernels.page_index import CODE_BLOCK, CODE_BYTES, IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.flash import require

# Inside kernels.
_PAGE = tl.constexpr(PAGE)
_BLOCK = tl.constexpr(CODE_BLOCK)
_BYTES = tl.constexpr(CODE_BYTES)


@cache
def rotation(dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The rotation [N, N] of ``dim`` dimensions, zero beyond them; N is a multiple of :data:`CODE_BLOCK`."""
    size = -(-dim // CODE_BLOCK) * CODE_BLOCK
    matrix = torch.zeros(size, size)
    matrix[:dim, :dim] = rotation_matrix(dim)
    return matrix.to(device, dtype)


def check_index(key_dim: int, page_size: int) -> None:
    """Raises BackendUnavailableError for what cannot be indexed."""
    require(page_size == PAGE, f"pages of {PAGE} tokens for sparse attention, not {page_size}")
    require(16 <= key_dim <= MAX_DIM, f"keys of 16 to {MAX_DIM} elements for sparse attention, not {key_dim}")


@triton.jit
def round_half_even(x: tl.tensor) -> tl.tensor:
    """To the nearest integer, for |x| < 2^22: at 1.5 * 2^23 an fp32 number has no fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _page_rows(
    cache: tl.tensor, scales: tl.tensor, rest_scales: tl.tensor, slot: tl.tensor, stride: tl.tensor,
    scale_stride: tl.tensor, columns: tl.tensor, MAIN: tl.constexpr, WIDTH: tl.constexpr, QUANTIZED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """fp32 [64, columns] of the tokens of a page and head; zero right of WIDTH. Columns behind the first MAIN have
    ``rest_scales``."""
    tokens = tl.arange(0, _PAGE)
    pointers = cache + (slot + tokens)[:, None] * stride + columns[None, :]
    rows = tl.load(pointers, mask=(columns < WIDTH)[None, :], other=0).to(tl.float32)
    if QUANTIZED:
        scale = tl.load(scales + (slot + tokens) * scale_stride).to(tl.float32)[:, None]
        if MAIN < WIDTH:
            rest = tl.load(rest_scales + (slot + tokens) * scale_stride).to(tl.float32)[:, None]
            rows *= tl.where((columns < MAIN)[None, :], scale, rest)
        else:
            rows *= scale
    return rows


@triton.jit
def _mean_step(
    cache: tl.tensor, scales: tl.tensor, rest_scales: tl.tensor, slot: tl.tensor, stride: tl.tensor,
    scale_stride: tl.tensor, MAIN: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, QUANTIZED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The step in which the mean of a page's rows is rounded; 0 for zeros."""
    highest = 0.0
    for block in range(BLOCKS):
        columns = tl.arange(0, _BLOCK) + block * _BLOCK
        rows = _page_rows(cache, scales, rest_scales, slot, stride, scale_stride, columns, MAIN, WIDTH, QUANTIZED)
        highest = tl.maximum(highest, tl.max(tl.abs(tl.sum(rows, 0) / _PAGE), 0))
    return highest / 127.0


@triton.jit
def _apart(rows: tl.tensor, step: tl.tensor) -> tl.tensor:
    """The rows' mean in whole steps, and the rows less that mean."""
    divisor = tl.where(step > 0.0, step, 1.0)
    whole = round_half_even(tl.sum(rows, 0) / _PAGE / divisor)
    return whole, rows - (whole * step)[None, :]


@triton.jit
def _index_keys(
    key_cache: tl.tensor, key_scales: tl.tensor, rest_scales: tl.tensor, slot: tl.tensor, key_slot: tl.tensor,
    scale_slot: tl.tensor, matrix: tl.tensor, codes: tl.tensor, alphas: tl.tensor, means: tl.tensor,
    scalars: tl.tensor, MAIN: tl.constexpr, KEY: tl.constexpr, BLOCKS: tl.constexpr, QUANTIZED: tl.constexpr,
) -> None:  # fmt: skip
    """Codes, alphas and mean of one page and head; the pointers are to its own."""
    tokens = tl.arange(0, _PAGE)
    within = tl.arange(0, _BLOCK)
    step = _mean_step(key_cache, key_scales, rest_scales, slot, key_slot, scale_slot, MAIN, KEY, BLOCKS, QUANTIZED)
    magnitudes = tl.zeros([_PAGE], dtype=tl.float32)
    squares = tl.zeros([_PAGE], dtype=tl.float32)
    for to in range(BLOCKS):
        turned = tl.zeros([_PAGE, _BLOCK], dtype=tl.float32)
        for block in range(BLOCKS):
            columns = within + block * _BLOCK
            rows = _page_rows(
                key_cache, key_scales, rest_scales, slot, key_slot, scale_slot, columns, MAIN, KEY, QUANTIZED
            )
            whole, apart = _apart(rows, step)
            if to == 0:
                tl.store(means + columns, whole.to(tl.int8), mask=columns < KEY)
                squares += tl.sum(apart * apart, 1)
            turn = tl.load(matrix + columns[:, None] * (BLOCKS * _BLOCK) + (within + to * _BLOCK)[None, :])
            turned = tl.dot(apart.to(turn.dtype), turn, turned)
        magnitudes += tl.sum(tl.abs(turned), 1)
        signs = tl.where((turned >= 0.0) & (within + to * _BLOCK < KEY)[None, :], 1, 0)
        bits = tl.reshape(signs, [_PAGE, 8, _BYTES])
        packed = tl.sum(bits << tl.arange(0, 8)[None, :, None], 1)
        place = tokens[:, None] * (BLOCKS * _BYTES) + (tl.arange(0, _BYTES) + to * _BYTES)[None, :]
        tl.store(codes + place, packed.to(tl.uint8))
    alpha = magnitudes / KEY
    alpha_step = tl.max(alpha, 0) / 255.0
    tl.store(alphas + tokens, round_half_even(alpha / tl.where(alpha_step > 0.0, alpha_step, 1.0)).to(tl.uint8))
    tl.store(scalars, step)
    tl.store(scalars + 1, alpha_step)
    tl.store(scalars + 3, tl.maximum(tl.sum(squares / KEY - alpha * alpha, 0) / _PAGE, 0.0))
    tl.store(scalars + 4, tl.sum(squares, 0) / (KEY * _PAGE))


@triton.jit
def _index_values(
    value_cache: tl.tensor, value_scales: tl.tensor, slot: tl.tensor, value_slot: tl.tensor, scale_slot: tl.tensor,
    means: tl.tensor, scalars: tl.tensor,
    VALUE: tl.constexpr, BLOCKS: tl.constexpr, QUANTIZED: tl.constexpr,
) -> None:  # fmt: skip
    """Mean and facts of one page and head's values."""
    step = _mean_step(
        value_cache, value_scales, value_scales, slot, value_slot, scale_slot, VALUE, VALUE, BLOCKS, QUANTIZED
    )
    norms = tl.zeros([_PAGE], dtype=tl.float32)
    spread = tl.zeros([_PAGE], dtype=tl.float32)
    square = 0.0
    for block in range(BLOCKS):
        columns = tl.arange(0, _BLOCK) + block * _BLOCK
        rows = _page_rows(
            value_cache, value_scales, value_scales, slot, value_slot, scale_slot, columns, VALUE, VALUE, QUANTIZED
        )
        whole, apart = _apart(rows, step)
        tl.store(means + columns, whole.to(tl.int8), mask=columns < VALUE)
        norms += tl.sum(rows * rows, 1)
        spread += tl.sum(apart * apart, 1)
        square += tl.sum(whole * whole, 0) * step * step
    tl.store(scalars + 2, step)
    tl.store(scalars + 5, tl.sum(spread, 0) / _PAGE)
    tl.store(scalars + 6, tl.sqrt(tl.max(norms, 0)))
    tl.store(scalars + 7, square)


@triton.jit(
    do_not_specialize=["pages_stride", "most_pages"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "pages"],
)
def _index_kernel(
    codes: tl.tensor,
    alphas: tl.tensor,
    key_means: tl.tensor,
    value_means: tl.tensor,
    scalars: tl.tensor,
    matrix: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    rest_scales: tl.tensor,
    value_scales: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    pages: tl.tensor,
    pages_stride: tl.tensor,
    most_pages: tl.tensor,
    key_slot: tl.tensor,
    key_head: tl.tensor,
    value_slot: tl.tensor,
    value_head: tl.tensor,
    HEADS: tl.constexpr,
    MAIN: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    KEY_BLOCKS: tl.constexpr,
    VALUE_BLOCKS: tl.constexpr,
    QUANTIZED: tl.constexpr,
) -> None:
    """Grid (sequences * most_pages, KV heads): the pages that a sequence's rows have filled. The first MAIN columns of
    a key have ``key_scales``, others ``rest_scales``."""
    sequence = tl.program_id(0) // most_pages
    head = tl.program_id(1)
    context = tl.load(context_lens + sequence)
    before = context - (tl.load(query_starts + sequence + 1) - tl.load(query_starts + sequence))
    page = before // _PAGE + tl.program_id(0) % most_pages
    if (context == 0) | (page >= context // _PAGE):
        return
    number = tl.load(pages + sequence.to(tl.int64) * pages_stride + page).to(tl.int64)
    entry = number * HEADS + head
    slot = number * _PAGE
    _index_keys(
        key_cache + head.to(tl.int64) * key_head, key_scales + head, rest_scales + head, slot, key_slot, HEADS, matrix,
        codes + entry * (_PAGE * KEY_BLOCKS * _BYTES), alphas + entry * _PAGE, key_means + entry * KEY,
        scalars + entry * 8, MAIN, KEY, KEY_BLOCKS, QUANTIZED,
    )  # fmt: skip
    _index_values(
        value_cache + head.to(tl.int64) * value_head, value_scales + head, slot, value_slot, HEADS,
        value_means + entry * VALUE, scalars + entry * 8, VALUE, VALUE_BLOCKS, QUANTIZED,
    )  # fmt: skip


def index_pages(
    key_cache: Tensor,
    value_cache: Tensor | None,
    index: IndexCache,
    layout: PagedLayout,
    scales: KVScales | None = None,
) -> None:
    """See :meth:`deepseek.kernels.ops.Ops.index_pages`.

    Raises BackendUnavailableError for widths and pages that cannot be indexed.
    """
    device = key_cache.device
    values = key_cache if value_cache is None else value_cache
    key_dim, value_dim = key_cache.shape[2], index.value_dim
    check_index(key_dim, layout.page_size)
    device_layout = DeviceLayout.of(layout, device)
    dtype = torch.float16 if scales else key_cache.dtype
    stored: tuple[Tensor, ...] = (key_cache, key_cache, values)
    if scales:
        latent = value_cache is None
        stored = (scales.key, scales.value, scales.key) if latent else (scales.key, scales.key, scales.value)
    most_pages = device_layout.max_query // PAGE + 1
    _index_kernel[(device_layout.num_sequences * most_pages, index.heads)](
        index.codes,
        index.alphas,
        index.key_means,
        index.value_means,
        index.scalars,
        rotation(key_dim, device, dtype),
        key_cache,
        values,
        *stored,
        device_layout.query_starts,
        device_layout.context_lens,
        device_layout.pages,
        device_layout.pages.stride(0),
        most_pages,
        *key_cache.stride()[:2],
        *values.stride()[:2],
        HEADS=index.heads,
        MAIN=value_dim if value_cache is None else key_dim,
        KEY=key_dim,
        VALUE=value_dim,
        KEY_BLOCKS=-(-key_dim // CODE_BLOCK),
        VALUE_BLOCKS=-(-value_dim // CODE_BLOCK),
        QUANTIZED=scales is not None,
        num_warps=4 if key_dim <= CODE_BLOCK else 8,
    )
