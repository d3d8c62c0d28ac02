"""Attention that stays inside each example of a packed row, for transformers models.

transformers' own way to pack needs a kernel for variable lengths (FlashAttention, on GPUs), or a [tokens, tokens] mask
with which SDPA computes every pair of tokens and throws most away. Here each run of equally long examples of a row is
one call: the work is that of the examples alone, and there is no mask of a row. Packed rows hold their examples by
falling length, so that runs are long.

What all examples of a row begin with (a system message; the learned tokens of P-Tuning) stands once at its start:
attention is causal, so its hidden states are the same in each of them. Every example sees it and itself. A learned
prefix (Li and Liang, 2021, arXiv:2101.00190) stands before it, as keys and values alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from deepseek.errors import UnsupportedModelError

NAME = "deepseek_packed"
"""Of this attention among transformers' implementations."""
SHORT = 512
"""Tokens of an example up to which plain matrix products are faster on a CPU than SDPA, forward and backward."""
_MOST_SCORES = 1 << 23
"""Scores that are held at a time."""

Runs = tuple[tuple[int, int], ...]
"""(examples, tokens of each), in order."""


def runs(lengths: Sequence[int]) -> Runs:
    """Neighbours of equal length together."""
    return tuple((len(list(group)), length) for length, group in groupby(lengths))


@dataclass(frozen=True)
class Packing:
    """What a row holds.

    Attributes:
        shared: tokens at its start that every example sees.
        runs: the examples behind them, without those tokens. What is behind these is padding.
    """

    shared: int
    runs: Runs


def register() -> None:
    """Make the attention known to transformers as ``NAME``. A model that has it takes ``packing=`` and ``learned=`` in
    its forward, and computes no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    learned: Tensor | None = None,
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
        learned: [layers, 2, KV heads, learned tokens, width], keys and values before every example; None for none.
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
    packing = packing or Packing(0, ((1, tokens),))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    common = None if learned is None else (learned[module.layer_idx, 0], learned[module.layer_idx, 1])  # type: ignore[index]
    outputs = []
    start = 0
    for examples, length in (((1, packing.shared),) if packing.shared else ()) + packing.runs:
        end = start + examples * length
        q, k, v = (_examples(tensor, start, end, length) for tensor in (query, key, value))
        out = _attend(q, k, v, common, scale, sliding_window, dropout)
        outputs.append(out.transpose(1, 2).reshape(end - start, heads, -1))
        if packing.shared and not start:
            common = tuple(  # type: ignore[assignment]
                own[0] if before is None else torch.cat([before, own[0]], 1)
                for before, own in zip(common or (None, None), (k, v), strict=True)
            )
        start = end
    assert start <= tokens, "the examples are longer than the row"
    if start < tokens:
        outputs.append(value.new_zeros(tokens - start, heads, value.shape[-1]))
    return torch.cat(outputs)[None], None


def _examples(tensor: Tensor, start: int, end: int, length: int) -> Tensor:
    """[1, heads, tokens, width] -> [examples, heads, length, width], a view."""
    heads, width = tensor.shape[1], tensor.shape[3]
    return tensor[0, :, start:end].view(heads, -1, length, width).transpose(0, 1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    common: tuple[Tensor, Tensor] | None,
    scale: float,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Examples of one length, [examples, heads, length, width], each of which sees ``common`` and itself."""
    examples, heads, length = query.shape[:3]
    before = common[0].shape[1] if common else 0
    window = window if window is not None and before + length > window else None
    each = heads * length * (before + length)
    if query.device.type == "cpu" and not dropout and length <= SHORT and each <= _MOST_SCORES:
        at_once = _MOST_SCORES // each
        parts = [
            _ShortAttention.apply(  # type: ignore[no-untyped-call]
                *(tensor[at : at + at_once] for tensor in (query, key, value)), *(common or (None, None)), scale, window
            )
            for at in range(0, examples, at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    if common is not None:
        key, value = _joined(common[0], key), _joined(common[1], value)
    mask = _mask(before, length, window, query.device) if before or window is not None else None
    return scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=heads > key.shape[1]
    )


def _joined(common: Tensor | None, own: Tensor) -> Tensor:
    """[KV heads, common tokens, width] before each of [examples, KV heads, length, width]."""
    return own if common is None else torch.cat([common.expand(len(own), -1, -1, -1), own], 2)


def _mask(before: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """bool [length, before + length]: which keys (columns) a query sees."""
    distance = before + torch.arange(length, device=device)[:, None] - torch.arange(before + length, device=device)
    return (distance >= 0) & (distance < (window or before + length))


class _ShortAttention(torch.autograd.Function):
    """Attention of short examples as plain batched products. Keeps its inputs alone and computes the scores again in
    the backward pass. Query heads of one KV head are one matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        common_key: Tensor | None,
        common_value: Tensor | None,
        scale: float,
        window: int | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, common_key, common_value)
        ctx.scale, ctx.window = scale, window
        keys, values = _flat(_joined(common_key, key)), _flat(_joined(common_value, value))
        rows = query.reshape(len(keys), -1, query.shape[-1])
        shares = _shares(rows, keys, query.shape[2], scale, window).to(query.dtype)
        return torch.bmm(shares, values).view(*query.shape[:3], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, common_key, common_value = ctx.saved_tensors
        keys, values = _flat(_joined(common_key, key)), _flat(_joined(common_value, value))
        rows = query.reshape(len(keys), -1, query.shape[-1])
        grads = grad.reshape(len(keys), -1, grad.shape[-1])
        shares = _shares(rows, keys, query.shape[2], ctx.scale, ctx.window)
        of_values = torch.bmm(shares.to(query.dtype).transpose(1, 2), grads)
        of_shares = torch.bmm(grads, values.transpose(1, 2)).float()
        of_scores = (of_shares - (of_shares * shares).sum(-1, keepdim=True)).mul_(shares).mul_(ctx.scale)
        of_scores = of_scores.to(query.dtype)
        of_query = torch.bmm(of_scores, keys).view(query.shape)
        of_keys = torch.bmm(of_scores.transpose(1, 2), rows)
        of_key, of_common_key = _parted(of_keys, key)
        of_value, of_common_value = _parted(of_values, value)
        return (
            of_query,
            of_key,
            of_value,
            of_common_key if common_key is not None else None,
            of_common_value if common_value is not None else None,
            None,
            None,
        )


def _flat(tensor: Tensor) -> Tensor:
    """[examples, KV heads, tokens, width] -> [examples * KV heads, tokens, width]."""
    return tensor.reshape(-1, *tensor.shape[2:])


def _shares(rows: Tensor, keys: Tensor, length: int, scale: float, window: int | None) -> Tensor:
    """What each query takes of each value, fp32 [matrices, rows, keys], for [matrices, group * length, width]."""
    seen = keys.shape[1]
    scores = torch.bmm(rows, keys.transpose(1, 2)).float().mul_(scale).view(len(rows), -1, length, seen)
    scores.masked_fill_(~_mask(seen - length, length, window, rows.device), -torch.inf)
    return scores.softmax(-1).view(len(rows), -1, seen)


def _parted(grads: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of [examples * KV heads, common + length, width] -> (of each example's own, of what is common)."""
    examples, kv_heads, length, width = like.shape
    both = grads.view(examples, kv_heads, -1, width)
    before = both.shape[2] - length
    return both[:, :, before:], both[:, :, :before].sum(0)
