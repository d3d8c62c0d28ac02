"""From logits to tokens in one kernel, one program per row; the host waits for nothing.

The same order of operations as :mod:`deepseek.kernels.sampling` and the same kept tokens: temperature, min-p, top-k,
top-p, ties to the lower token id. A row's randomness is the one uniform number that its caller derives from seed and
index, so a seed promises the same draws here. What is kept is drawn from by rising token id: a row without filters gets
the same token as on a CPU, a filtered row one of the same distribution (a CPU inverts it by falling probability, which
needs a sorted row).

Nothing is sorted: logits are read as integers of the same order, and the smallest kept one is searched for by cutting
the range into four, sixteen times at most. Each cut reads the row once, from the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.sampling import Choice
from deepseek.kernels.staging import bring
from deepseek.kernels.triton.rows import warps_for

_BLOCK = 4096
_MIN_TEMPERATURE = 1e-6
_LARGEST_TOP_K = 2**31 - 1


class Choices(NamedTuple):
    """:class:`deepseek.kernels.sampling.Choice` of each row, column by column, on the device of the logits.

    Attributes:
        temperature: fp32 [R].
        top_k: int32 [R].
        top_p: fp32 [R].
        min_p: fp32 [R].
        draw: fp64 [R].
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    draw: Tensor

    @classmethod
    def of(cls, choices: Sequence[Choice], device: torch.device | str) -> Choices:
        """Copied from pinned memory without waiting, where ``device`` is a GPU."""
        columns = (
            torch.tensor([c.temperature for c in choices], dtype=torch.float32),
            torch.tensor([min(c.top_k, _LARGEST_TOP_K) for c in choices], dtype=torch.int32),
            torch.tensor([c.top_p for c in choices], dtype=torch.float32),
            torch.tensor([c.min_p for c in choices], dtype=torch.float32),
            torch.tensor([c.draw for c in choices], dtype=torch.float64),
        )
        return cls(*(bring(column, torch.device(device)) for column in columns))


@triton.jit
def _values(logits: tl.tensor, first: tl.tensor, vocab: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """fp32 logits of some tokens, -inf behind the last; no -0.0, which would be ordered below 0.0."""
    token = first + tl.arange(0, BLOCK)
    return tl.load(logits + token, mask=token < vocab, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def _key(value: tl.tensor) -> tl.tensor:
    """int32 in the order of fp32 ``value``."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _of_key(key: tl.tensor) -> tl.tensor:
    """The value of a :func:`_key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weight(value: tl.tensor, largest: tl.tensor, temperature: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """exp((value - largest) / temperature), or 0 below ``min_p``."""
    weight = tl.exp((value - largest) / temperature)
    return tl.where(weight >= min_p, weight, 0.0)


@triton.jit
def _count_above(logits: tl.tensor, vocab: tl.tensor, key: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """How many tokens have a larger key."""
    count = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, vocab, BLOCK):
        count += (_key(_values(logits, first, vocab, BLOCK)) > key).to(tl.int32)
    return tl.sum(count, axis=0)


@triton.jit
def _mass_above(
    logits: tl.tensor,
    vocab: tl.tensor,
    key: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Weight of the tokens with a larger key."""
    mass = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocab, BLOCK):
        value = _values(logits, first, vocab, BLOCK)
        mass += tl.where(_key(value) > key, _weight(value, largest, temperature, min_p), 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def _search(
    logits: tl.tensor,
    vocab: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    limit: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    MASS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The smallest key in (low, high] above which there is less than ``limit``, of mass or of tokens; that must hold of
    ``high``, and not of ``low``. Both are int64: their distance may not fit 32 bits."""
    while high - low > 1:
        quarter = tl.maximum((high - low) // 4, 1)
        first_cut = low + quarter
        second_cut = tl.minimum(first_cut + quarter, high)
        third_cut = tl.minimum(second_cut + quarter, high)
        first_key = first_cut.to(tl.int32)
        second_key = second_cut.to(tl.int32)
        third_key = third_cut.to(tl.int32)
        if MASS:
            above_first = tl.zeros([BLOCK], dtype=tl.float32)
            above_second = tl.zeros([BLOCK], dtype=tl.float32)
            above_third = tl.zeros([BLOCK], dtype=tl.float32)
        else:
            above_first = tl.zeros([BLOCK], dtype=tl.int32)
            above_second = tl.zeros([BLOCK], dtype=tl.int32)
            above_third = tl.zeros([BLOCK], dtype=tl.int32)
        for first in range(0, vocab, BLOCK):
            value = _values(logits, first, vocab, BLOCK)
            key = _key(value)
            if MASS:
                amount = _weight(value, largest, temperature, min_p)
            else:
                amount = tl.full([BLOCK], 1, dtype=tl.int32)
            above_first += tl.where(key > first_key, amount, 0)
            above_second += tl.where(key > second_key, amount, 0)
            above_third += tl.where(key > third_key, amount, 0)
        if tl.sum(above_first, axis=0) < limit:
            high = first_cut
        elif tl.sum(above_second, axis=0) < limit:
            low = first_cut
            high = second_cut
        elif tl.sum(above_third, axis=0) < limit:
            low = second_cut
            high = third_cut
        else:
            low = third_cut
    return high.to(tl.int32)


@triton.jit
def _kept(
    logits: tl.tensor,
    first: tl.tensor,
    vocab: tl.tensor,
    border: tl.tensor,
    ties: tl.tensor,
    seen: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """(weights of the kept tokens of a block, how many tokens equal to ``border`` it has); ``seen`` came before."""
    value = _values(logits, first, vocab, BLOCK)
    key = _key(value)
    equal = (key == border).to(tl.int32)
    count = tl.sum(equal, axis=0)
    kept = (key > border).to(tl.int32)
    if seen + count <= ties:
        kept += equal
    elif seen < ties:
        kept += tl.where(seen + tl.cumsum(equal, axis=0) <= ties, equal, 0)
    return tl.where(kept > 0, _weight(value, largest, temperature, min_p), 0.0), count


@triton.jit
def _draw(
    logits: tl.tensor,
    vocab: tl.tensor,
    border: tl.tensor,
    ties: tl.tensor,
    draw: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The token at which the cumulative weight of what is kept passes ``draw`` (fp64) times the total."""
    mass = tl.zeros([BLOCK], dtype=tl.float32)
    seen = ties * 0
    for first in range(0, vocab, BLOCK):
        weight, count = _kept(logits, first, vocab, border, ties, seen, largest, temperature, min_p, BLOCK)
        mass += weight
        seen += count
    target = draw * tl.sum(mass, axis=0).to(tl.float64)
    before = draw * 0.0
    chosen = ties * 0 - 1
    last = ties * 0
    seen = ties * 0
    for first in range(0, vocab, BLOCK):
        weight, count = _kept(logits, first, vocab, border, ties, seen, largest, temperature, min_p, BLOCK)
        seen += count
        token = first + tl.arange(0, BLOCK)
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, token, 0), axis=0))
        after = before + tl.sum(weight, axis=0).to(tl.float64)
        if (chosen < 0) & (after > target):
            passed = before + tl.cumsum(weight, axis=0).to(tl.float64) > target
            passing = tl.min(tl.where(passed & (weight > 0.0), token, vocab), axis=0)
            chosen = tl.where(passing < vocab, passing, chosen)
        before = after
    # Rounding may leave the target behind the last kept token.
    return tl.where(chosen < 0, last, chosen)


@triton.jit
def _sample_kernel(
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    draws: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    stride: tl.tensor,
    MIN_TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    # The largest logit and its lowest token, the smallest one, and whether all are finite.
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    best_token = tl.zeros([BLOCK], dtype=tl.int32)
    worst = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    poison = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocab, BLOCK):
        token = first + tl.arange(0, BLOCK)
        value = _values(logits, first, vocab, BLOCK)
        better = value > best
        best = tl.where(better, value, best)
        best_token = tl.where(better, token, best_token)
        worst = tl.minimum(worst, tl.where(token < vocab, value, float("inf")))
        poison += tl.where(token < vocab, value, 0.0) * 0.0
    largest = tl.max(best, axis=0)
    chosen = tl.min(tl.where(best == largest, best_token, vocab), axis=0)
    temperature = tl.load(temperatures + row)
    finite = tl.sum(poison, axis=0) == 0.0
    chosen = tl.where(finite, chosen, -1)
    if finite & (temperature > 0.0):
        temperature = tl.maximum(temperature, MIN_TEMPERATURE)
        top_k = tl.load(top_ks + row)
        top_p = tl.load(top_ps + row)
        min_p = tl.load(min_ps + row)
        # Kept are the keys above `border`, and the first `ties` of those equal to it.
        high = _key(largest).to(tl.int64)
        low = _key(tl.min(worst, axis=0)).to(tl.int64) - 1
        border = low.to(tl.int32)
        ties = top_k * 0
        if (top_k > 0) & (top_k < vocab):
            border = _search(logits, vocab, low, high, top_k, largest, temperature, min_p, False, BLOCK)
            ties = top_k - _count_above(logits, vocab, border, BLOCK)
            low = border.to(tl.int64) - 1
        if top_p < 1.0:
            share = _mass_above(logits, vocab, border, largest, temperature, min_p, BLOCK)
            if ties > 0:
                share += ties.to(tl.float32) * _weight(_of_key(border), largest, temperature, min_p)
            share *= top_p
            under_top_p = _search(logits, vocab, low, high, share, largest, temperature, min_p, True, BLOCK)
            missing = share - _mass_above(logits, vocab, under_top_p, largest, temperature, min_p, BLOCK)
            weight = _weight(_of_key(under_top_p), largest, temperature, min_p)
            # The likeliest is always kept. Weights of 0 are at the border only where min-p cut before it.
            fitting = tl.ceil(tl.minimum(missing / tl.maximum(weight, 1e-30), 1e9)).to(tl.int32)
            fitting = tl.maximum(fitting, 1)
            ties = tl.where((under_top_p == border) & (ties > 0), tl.minimum(ties, fitting), fitting)
            border = under_top_p
        draw = tl.load(draws + row)
        chosen = _draw(logits, vocab, border, ties, draw, largest, temperature, min_p, BLOCK)
    tl.store(tokens + row, chosen.to(tl.int64))


def choose_tokens(logits: Tensor, choices: Choices) -> Tensor:
    """A token for each row of ``logits`` [R, vocab] (any floating dtype): int64 [R], -1 for a row that holds NaN or
    infinity."""
    rows, vocab = logits.shape
    if not vocab:
        raise ValueError("the logits are empty")
    if choices.draw.shape[0] != rows:
        raise ValueError(f"one choice per row is needed: {rows} rows, {choices.draw.shape[0]} choices")
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        block = min(_BLOCK, triton.next_power_of_2(vocab))
        _sample_kernel[(rows,)](
            logits,
            *choices,
            tokens,
            vocab,
            logits.stride(0),
            MIN_TEMPERATURE=_MIN_TEMPERATURE,
            BLOCK=block,
            num_warps=warps_for(block),
        )
    return tokens
