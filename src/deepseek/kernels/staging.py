"""Bringing small tensors of the host to a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def bring(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``: to a GPU through pinned memory, from which a copy does not make the host wait for what
    runs there. torch keeps that memory until the copy is over."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return pinned(values, device).to(device, non_blocking=True)


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """``values``, for a GPU in memory from and to which copies do not make the host wait."""
    return values.pin_memory() if device.type == "cuda" else values


def start_fetching(values: Tensor) -> Tensor:
    """``values`` on the host; those of a GPU are there when what has been given to it so far is done."""
    return values.to("cpu", non_blocking=True)
