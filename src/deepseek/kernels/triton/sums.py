"""The inner loops of products with quantized weights: what one program adds up, wherever its rows come from.

A matrix has ``outs`` rows, of which a program takes those that ``near`` names; ``x_start`` points to its rows of the
input. Both loops run over steps ``first`` to ``stop`` of the depth: DEPTH columns of 8-bit weights, a panel of 4-bit
ones.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _whole(value: tl.tensor, OFFSET: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """uint8 ``value - OFFSET`` as DTYPE, exactly.

    The bytes become the last bits of a mantissa whose exponent makes them count whole numbers: instructions that
    convert integers run at an eighth of the rate of these.
    """
    if tl.float16 == DTYPE:
        result = (value.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + OFFSET)
    else:
        wide = (value.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)
        result = wide.to(DTYPE)
    return result


@triton.jit
def _add_group(
    total: tl.tensor,
    x: tl.tensor,
    value: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    place: tl.tensor,
    OFFSET: tl.constexpr,
    PRESCALE: tl.constexpr,
) -> tl.tensor:
    """``total`` [rows, outs] plus ``x`` [rows, depth] times the weights of uint8 ``value`` [outs, depth], whose scales
    are at ``place`` [outs]. PRESCALE: scales are applied to the weights, not to the sums."""
    scales = tl.load(scale + place).to(tl.float32)
    if PRESCALE:
        weight = _whole(value, OFFSET, tl.float32) * scales[:, None]
        if minimum is not None:
            weight -= tl.load(minimum + place).to(tl.float32)[:, None]
        total = tl.dot(x, tl.trans(weight.to(x.dtype)), total, input_precision="ieee")
    else:
        # bf16 counts whole numbers from 128 to 255. Four bits stay 128 too large there: to take that from the sums,
        # with the minimum, is cheaper than to take it from each weight.
        RAISED: tl.constexpr = OFFSET == 0 and x.dtype == tl.bfloat16
        if RAISED:
            weight = (value.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
        else:
            weight = _whole(value, OFFSET, x.dtype)
        total += tl.dot(x, tl.trans(weight), input_precision="ieee") * scales[None, :]
        if RAISED or minimum is not None:
            lowered = scales * (128.0 if RAISED else 0.0)
            if minimum is not None:
                lowered += tl.load(minimum + place).to(tl.float32)
            total -= tl.sum(x.to(tl.float32), axis=1)[:, None] * lowered[None, :]
    return total


@triton.jit
def weight_only_sum(
    x_start: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    near: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRESCALE: tl.constexpr,
) -> tl.tensor:
    """fp32 [ROWS, OUTS] of 16-bit rows. DEPTH divides GROUP, unless that is 0: one group."""
    step = tl.arange(0, DEPTH)[None, :]
    PANEL: tl.constexpr = DEPTH * (8 // BITS)
    total = tl.zeros([ROWS, OUTS], dtype=tl.float32)
    for panel in range(first, stop):
        k = panel * PANEL
        place = near
        if GROUP > 0:
            place = k // GROUP * outs + near
        a = tl.load(x_start + k + step, mask=k + step < depth, other=0.0)
        if BITS == 4:
            value = tl.load(q + (panel * outs + near).to(tl.int64)[:, None] * DEPTH + step)
            total = _add_group(total, a, value & 15, scale, minimum, place, 0, PRESCALE)
            k += DEPTH
            a = tl.load(x_start + k + step, mask=k + step < depth, other=0.0)
            total = _add_group(total, a, value >> 4, scale, minimum, k // GROUP * outs + near, 0, PRESCALE)
        else:
            value = tl.load(q + near.to(tl.int64)[:, None] * depth + k + step, mask=k + step < depth, other=0)
            value = value.to(tl.uint8, bitcast=True) ^ 128
            total = _add_group(total, a, value, scale, minimum, place, 128, PRESCALE)
    return total


@triton.jit
def to_steps(value: tl.tensor, scale: tl.tensor, minimum: tl.tensor, inverse: tl.tensor, place: tl.tensor) -> tl.tensor:
    """The weights of 4-bit ``value`` [outs, depth] in whole steps of 1 / ``inverse`` [outs], int8.

    Behind the point of an fp32 number that counts from 1.5 * 2^23 there are no bits, and its last byte is the integer
    that was added. What is added is within +-127, as the step of a row is made for its largest weight.
    """
    weight = _whole(value, 0, tl.float32) * (tl.load(scale + place).to(tl.float32) * inverse)[:, None]
    if minimum is not None:
        weight -= (tl.load(minimum + place).to(tl.float32) * inverse)[:, None]
    return (weight + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def int8_sum(
    x_start: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    steps: tl.tensor,
    near: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
) -> tl.tensor:
    """int32 [ROWS, OUTS] of INT8 rows and weights; 4-bit weights become INT8 with one step per output (``steps``) on
    their way. EVEN: a step divides the depth."""
    step = tl.arange(0, DEPTH)[None, :]
    if BITS == 4:
        # Weights are the left side, which the matrix unit takes from registers, where they have just been made.
        own = tl.load(steps + near)
        inverse = 1.0 / tl.where(own > 0.0, own, 1.0)
        turned = tl.zeros([OUTS, ROWS], dtype=tl.int32)
        for panel in range(first, stop):
            k = panel * 2 * DEPTH
            value = tl.load(q + (panel * outs + near).to(tl.int64)[:, None] * DEPTH + step)
            a = tl.load(x_start + k + step, mask=k + step < depth, other=0)
            weight = to_steps(value & 15, scale, minimum, inverse, k // GROUP * outs + near)
            turned = tl.dot(weight, tl.trans(a), turned, out_dtype=tl.int32)
            k += DEPTH
            a = tl.load(x_start + k + step, mask=k + step < depth, other=0)
            weight = to_steps(value >> 4, scale, minimum, inverse, k // GROUP * outs + near)
            turned = tl.dot(weight, tl.trans(a), turned, out_dtype=tl.int32)
        total = tl.trans(turned)
    else:
        q_start = q + near.to(tl.int64)[:, None] * depth
        total = tl.zeros([ROWS, OUTS], dtype=tl.int32)
        for panel in range(first, stop):
            k = panel * DEPTH
            if EVEN:
                a = tl.load(x_start + k + step)
                b = tl.load(q_start + k + step)
            else:
                a = tl.load(x_start + k + step, mask=k + step < depth, other=0)
                b = tl.load(q_start + k + step, mask=k + step < depth, other=0)
            total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
    return total
