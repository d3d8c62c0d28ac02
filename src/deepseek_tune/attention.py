"""Attention that stays inside each example of a packed row, for transformers models.

transformers' own way to pack needs a kernel for variable lengths (FlashAttention, on GPUs), or a [tokens, tokens] mask
with which SDPA computes every pair of tokens and throws most away. Here each run of equally long examples of a row is
one call of causal SDPA: the work is that of the examples alone, and there is no mask. Packed rows hold their examples
by falling length, so that runs are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deepseek.errors import UnsupportedModelError

NAME = "deepseek_packed"
"""Of this attention among transformers' implementations."""

Runs = tuple[tuple[int, int], ...]
"""(examples, tokens of each), in order."""


def runs(lengths: Sequence[int]) -> Runs:
    """Neighbours of equal length together."""
    return tuple((len(list(group)), length) for length, group in groupby(lengths))


def register() -> None:
    """Make the attention known to transformers as ``NAME``. A model that has it takes ``packing=runs(lengths)`` in its
    forward, and computes no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Runs | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each example; called by transformers' attention layers.

    Args:
        query: [1, heads, tokens, width].
        key, value: [1, KV heads, tokens, width].
        packing: the examples; None for one that fills the row. Tokens behind them are padding and get zeros.
        sliding_window: tokens that a token sees, itself included; None for all before it.

    Returns ([1, tokens, heads, width of a value], None).

    Raises UnsupportedModelError for attention that SDPA cannot compute.
    """
    if softcap is not None or s_aux is not None or is_causal is False or attention_mask is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} caps its scores, has attention sinks, a mask of its own or is not causal: packed "
            "training does not support it."
        )
    batch, heads, tokens = query.shape[:3]
    assert batch == 1 and key.shape[2] == tokens, "packed rows come one at a time, without a cache"
    groups = heads // key.shape[1]
    outputs = []
    start = 0
    for examples, length in packing if packing is not None else ((1, tokens),):
        end = start + examples * length
        q, k, v = (_examples(tensor, start, end, length) for tensor in (query, key, value))
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = _band(length, sliding_window, query.device)
        out = scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
        )
        outputs.append(out.transpose(1, 2).reshape(end - start, heads, -1))
        start = end
    assert start <= tokens, "the examples are longer than the row"
    if start < tokens:
        outputs.append(value.new_zeros(tokens - start, heads, value.shape[-1]))
    return torch.cat(outputs)[None], None


def _examples(tensor: Tensor, start: int, end: int, length: int) -> Tensor:
    """[1, heads, tokens, width] -> [examples, heads, length, width], a view."""
    heads, width = tensor.shape[1], tensor.shape[3]
    return tensor[0, :, start:end].view(heads, -1, length, width).transpose(0, 1)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool [length, length]: which keys (columns) a query sees."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)
