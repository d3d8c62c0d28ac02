"""The random rotation that sign codes are taken in.

Signs of a rotated vector are a locality-sensitive hash of its direction (Charikar 2002, "Similarity estimation
techniques from rounding algorithms"). Random signs followed by a Walsh-Hadamard transform do the work of a dense
random rotation (Ailon and Chazelle 2006) in D log D additions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

MAX_DIM = 1024
_SEED, _WORD = 0x5EED, 2**64 - 1


def _splitmix64(state: int) -> Iterator[int]:
    """Steele, Lea and Flood 2014."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        yield z ^ (z >> 31)


@cache
def _signs() -> Tensor:
    """fp32 [2, MAX_DIM] of 1 and -1."""
    numbers = _splitmix64(_SEED)
    signs = [-1.0 if next(numbers) >> 63 else 1.0 for _ in range(2 * MAX_DIM)]
    return torch.tensor(signs).view(2, MAX_DIM)


def hadamard(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of the last dimension, a power of two, scaled to keep lengths."""
    size, half = x.shape[-1], 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], size // (2 * half), 2, half)
        a, b = pairs.unbind(-2)
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        half *= 2
    return x / math.sqrt(size)


def rotate(x: Tensor) -> Tensor:
    """``x`` [..., D] turned; D is 16 to 1024. Where D is no power of two, its first and its last 2^k elements are
    turned."""
    dim = x.shape[-1]
    size = 1 << (dim.bit_length() - 1)
    first, second = _signs()[:, :dim].to(x.device, x.dtype)
    x = x * first
    x = torch.cat([hadamard(x[..., :size]), x[..., size:]], dim=-1)
    if size == dim:
        return x
    x = x * second
    return torch.cat([x[..., : dim - size], hadamard(x[..., dim - size :])], dim=-1)


def rotation_matrix(dim: int) -> Tensor:
    """fp32 [dim, dim]: ``x @ rotation_matrix(dim)`` is ``rotate(x)``."""
    return rotate(torch.eye(dim))
