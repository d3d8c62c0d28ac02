"""Keys and values as 8-bit integers with one scale per token and head, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantize(x: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers of ``x`` [..., dim] and their scales [...]. A row that is not finite gets an infinite scale, so that
    what is broken stays broken."""
    wide = x.float()
    highest = torch.where(wide.isnan(), math.inf, wide.abs()).amax(dim=-1)
    scales = (highest / 127.0).to(scale_dtype)
    divisor = torch.where(scales == 0, 1.0, scales.float())[..., None]
    return (wide / divisor).nan_to_num_().round_().clamp_(-127, 127).to(torch.int8), scales


def dequantize(integers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """``integers`` [..., dim] times ``scales`` [...]."""
    return (integers * scales.float()[..., None]).to(dtype)
