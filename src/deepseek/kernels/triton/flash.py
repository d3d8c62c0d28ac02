"""What the attention kernels share: shapes of tiles, reading of pages, and softmax over tiles of keys.

The softmax is computed tile by tile with a running maximum and sum (Milakov and Gimelshein, arXiv:1805.02867; Dao et
al., FlashAttention, arXiv:2205.14135), in base 2, which is what the hardware has.

The width of keys is cut in two parts, ``main`` and ``rest``, each padded to a power of two by itself: 192 is 128 + 64
rather than 256, and an MLA latent is 512 + 64. The parts of a query may lie in different tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.errors import BackendUnavailableError

LOG2_E = math.log2(math.e)

MAX_WIDTH = 512
"""The widest part of a key, and the widest value, whose accumulator fits the registers."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of queries by keys that a program works on, and how it is run.

    Page numbers are fetched before keys and take half of the pipeline: of 3 stages one is a tile of keys and values
    under way, of 5 two. Where the warp group's matrix instructions run (64 rows or more) another tile is in use.
    """

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Heads:
    """Widths of a query head [main | rest] and of a value, and the query heads of one KV head."""

    main: int
    rest: int
    value: int
    group: int

    @property
    def width(self) -> int:
        """Elements of a key or of a value as they lie in a tile, whichever is wider."""
        return max(block_of(self.main) + (block_of(self.rest) if self.rest else 0), block_of(self.value))

    @property
    def constants(self) -> dict[str, int]:
        """The compile-time arguments that all attention kernels have."""
        return {
            "GROUP": self.group,
            "MAIN": self.main,
            "REST": self.rest,
            "VALUE": self.value,
            "MAIN_BLOCK": block_of(self.main),
            "REST_BLOCK": block_of(self.rest),
            "VALUE_BLOCK": block_of(self.value),
        }


def block_of(size: int) -> int:
    """The power of two that holds ``size``, and at least 16, which is the least that tensor cores take."""
    power: int = triton.next_power_of_2(size)
    return max(16, power)


def split_query(query: Tensor) -> tuple[Tensor, Tensor]:
    """``query`` [T, heads, dim] as views of its main part, the largest power of two, and the rest (maybe empty)."""
    main = 1 << (query.shape[-1].bit_length() - 1)
    return query[..., :main], query[..., main:]


def dot_precision(dtype: torch.dtype) -> str:
    """fp32 is multiplied as fp32, not rounded to TF32; other types have one precision only."""
    return "ieee" if dtype == torch.float32 else "tf32"


def require(condition: bool, requirement: str) -> None:
    """Raises BackendUnavailableError, naming ``requirement``, unless it is met."""
    if not condition:
        raise BackendUnavailableError(
            f"the Triton attention kernels need {requirement}. Choose another backend, or `auto`."
        )


def check_cache(query: Tensor, cache: Tensor, scales: Tensor | None, page_size: int) -> None:
    """Raises BackendUnavailableError for a dtype, page size or memory layout that kernels cannot read."""
    require(query.dtype in _FLOATS, f"queries in fp16, bf16 or fp32, not {query.dtype}")
    if scales is None:
        require(cache.dtype == query.dtype, f"a cache in the queries' dtype {query.dtype}, not {cache.dtype}")
    else:
        require(cache.dtype == torch.int8, f"an INT8 cache when scales are given, not {cache.dtype}")
        require(scales.is_contiguous() and scales.shape == cache.shape[:2], "scales [num_slots, kv_heads], contiguous")
    require(page_size % 16 == 0, f"pages of a multiple of 16 tokens, not {page_size}")
    require(query.stride(-1) == 1 and cache.stride(-1) == 1, "heads whose elements lie side by side")


def check_heads(heads: Heads) -> None:
    """Raises BackendUnavailableError for heads that are too wide."""
    widest = max(heads.main, heads.rest, heads.value)
    require(widest <= MAX_WIDTH, f"heads of up to {MAX_WIDTH} elements, not {widest}")


@triton.jit
def load_rows(
    base: tl.tensor,
    offsets: tl.tensor,
    valid: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Rows at ``base + offsets`` [N] of WIDTH elements, as [N, BLOCK]; zero right of them, and where not ``valid``."""
    columns = tl.arange(0, BLOCK)
    pointers = base + offsets[:, None] + columns[None, :]
    if MASKED and WIDTH != BLOCK:
        rows = tl.load(pointers, mask=valid[:, None] & (columns < WIDTH)[None, :], other=0)
    elif MASKED:
        rows = tl.load(pointers, mask=valid[:, None], other=0)
    elif WIDTH != BLOCK:
        rows = tl.load(pointers, mask=(columns < WIDTH)[None, :], other=0)
    else:
        rows = tl.load(pointers)
    return rows


@triton.jit
def slots_of(
    pages: tl.tensor,
    first: tl.tensor,
    tokens: tl.tensor,
    valid: tl.tensor,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """int64 slots [KEYS] of ``tokens`` = first .. first + KEYS - 1, where ``first`` is a multiple of KEYS."""
    if PAGE_SIZE % KEYS == 0:  # one page has them all
        page = tl.load(pages + first // PAGE_SIZE).to(tl.int64)
        slots = page * PAGE_SIZE + tokens % PAGE_SIZE
    elif MASKED:
        page = tl.load(pages + tokens // PAGE_SIZE, mask=valid, other=0).to(tl.int64)
        slots = page * PAGE_SIZE + tokens % PAGE_SIZE
    else:
        page = tl.load(pages + tokens // PAGE_SIZE).to(tl.int64)
        slots = page * PAGE_SIZE + tokens % PAGE_SIZE
    return slots


@triton.jit
def attend(
    accumulator: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    query_main: tl.tensor,
    query_rest: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    pages: tl.tensor,
    position: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    context: tl.tensor,
    scale_log2: tl.tensor,
    window: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    scale_stride: tl.tensor,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUE: tl.constexpr,
    MAIN_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    LATENT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Continue the softmax of M rows over the tokens ``begin`` .. ``end`` - 1 of a context.

    ``accumulator`` [M, VALUE_BLOCK], ``maximum`` and ``total`` [M]; ``query_main`` [M, MAIN_BLOCK] and ``query_rest``
    [M, REST_BLOCK]; ``position`` [M] of the rows. The caches point to the KV head, their strides are from slot to slot.
    ``begin`` is a multiple of KEYS. Without MASKED every row must see every token of every tile that is touched.
    LATENT: the values are the main part of the keys, which is read once; ``value_scales`` are then of the rest.
    """
    for first in tl.range(begin, end, KEYS):
        tokens = first + tl.arange(0, KEYS)
        valid = tokens < context
        slots = slots_of(pages, first, tokens, valid, PAGE_SIZE, KEYS, MASKED)
        keys = load_rows(key_cache, slots * key_stride, valid, MAIN, MAIN_BLOCK, MASKED)
        scores = tl.dot(query_main, tl.trans(keys.to(query_main.dtype)), input_precision=PRECISION)
        if QUANTIZED:
            if MASKED:
                key_scale = tl.load(key_scales + slots * scale_stride, mask=valid, other=0).to(tl.float32)
                value_scale = tl.load(value_scales + slots * scale_stride, mask=valid, other=0).to(tl.float32)
            else:
                key_scale = tl.load(key_scales + slots * scale_stride).to(tl.float32)
                value_scale = tl.load(value_scales + slots * scale_stride).to(tl.float32)
        if REST > 0:
            others = load_rows(key_cache + MAIN, slots * key_stride, valid, REST, REST_BLOCK, MASKED)
            others = tl.trans(others.to(query_main.dtype))
            if QUANTIZED and LATENT:
                rotated = tl.dot(query_rest, others, input_precision=PRECISION)
                scores = scores * key_scale[None, :] + rotated * value_scale[None, :]
                value_scale = key_scale
            else:
                scores = tl.dot(query_rest, others, scores, input_precision=PRECISION)
        scores *= scale_log2
        if QUANTIZED and not LATENT:
            scores *= key_scale[None, :]
        if MASKED:
            visible = valid[None, :] & (tokens[None, :] <= position[:, None])
            if WINDOWED:
                visible = visible & (tokens[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(maximum, tl.max(scores, 1))
        # A row that has seen nothing yet stays at minus infinity, from which nothing can be subtracted.
        shift = tl.where(highest == float("-inf"), 0.0, highest) if MASKED else highest
        weights = tl.exp2(scores - shift[:, None])
        fading = tl.exp2(maximum - shift)
        total = total * fading + tl.sum(weights, 1)
        accumulator = accumulator * fading[:, None]
        if QUANTIZED:
            weights *= value_scale[None, :]
        if LATENT:
            values = keys
        else:
            values = load_rows(value_cache, slots * value_stride, valid, VALUE, VALUE_BLOCK, MASKED)
        if QUANTIZED and query_main.dtype == tl.float16:
            # A small weight times a small scale is below what fp16 can say. Integers are exact in bf16.
            accumulator = tl.dot(weights.to(tl.bfloat16), values.to(tl.bfloat16), accumulator)
        else:
            values = values.to(query_main.dtype)
            accumulator = tl.dot(weights.to(query_main.dtype), values, accumulator, input_precision=PRECISION)
        maximum = highest
    return accumulator, maximum, total
