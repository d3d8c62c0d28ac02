"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) over the paged cache of latents.

*Absorbed*: ``key_up`` is folded into the query, and all heads attend over the latents themselves. All heads of a row
are rows of one tile, so a latent is read once and serves as key and as value of all of them.

*Expanded*: keys and values of a prompt's context are made by one matrix product each, and attended like those of any
other model. Heads are narrower (nope + rope and value_dim instead of rank + rope and rank), which for DeepSeek-V2's
widths is a third of the multiplications of long prompts. It takes memory, so contexts that are too long for
:data:`EXPANDED_BYTES` are absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepseek.kernels.int8_cache import dequantize
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import SPARSE_ROWS, KVScales, PagedLayout
from deepseek.kernels.triton.attention import prefill_attention
from deepseek.kernels.triton.decode_attention import decode_attention
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.flash import check_cache, require
from deepseek.kernels.triton.sparse import sparse_attention

EXPANDED_BYTES = 2**30
"""The most that expanded keys and values of one sequence and layer may take."""

_EXPANDED_PAGE = 64


def mla_attention(
    query_nope: Tensor,
    query_rope: Tensor,
    latent_cache: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    layout: PagedLayout,
    scale: float,
    mode: str = "auto",
    scales: KVScales | None = None,
    index: IndexCache | None = None,
) -> Tensor:
    """See :meth:`deepseek.kernels.ops.Ops.mla_attention`.

    Which form a sequence gets depends on its own rows and context only. Raises BackendUnavailableError for dtypes, page
    sizes, widths and memory layouts that the kernels do not have.
    """
    require(mode in ("auto", "expanded", "absorbed"), f"mode auto, expanded or absorbed, not {mode!r}")
    check_cache(query_nope, latent_cache, scales.key if scales else None, layout.page_size)
    check_cache(query_rope, latent_cache, scales.value if scales else None, layout.page_size)
    device_layout = DeviceLayout.of(layout, query_nope.device)
    rows, heads, _ = query_nope.shape
    _, value_dim, rank = value_up.shape
    output = query_nope.new_empty(rows, heads, value_dim)
    limit = {"auto": break_even(key_up, value_up), "expanded": 0, "absorbed": device_layout.max_query}[mode]
    per_token = heads * (query_nope.shape[2] + query_rope.shape[2] + value_dim) * query_nope.element_size()
    sparse = index is not None and device_layout.sparse is not None
    dense = device_layout.dense_part() if sparse else device_layout
    limit = max(limit, SPARSE_ROWS) if sparse else limit
    forms = _forms(layout, device_layout, limit, None if mode == "expanded" else EXPANDED_BYTES // per_token)

    if forms.rows:
        stop = forms.rows
        # Head by head, as the matrix product makes it and as the one behind takes it.
        folded = torch.bmm(query_nope[:stop].transpose(0, 1), key_up).transpose(0, 1)
        attended = query_nope.new_empty(heads, stop, rank).transpose(0, 1)
        query = (folded, query_rope)
        if forms.max_rows and (dense.max_decode or forms.max_rows > SPARSE_ROWS):
            decode_attention(
                query, latent_cache, None, attended, dense, scale,
                limit=limit, max_rows=forms.max_rows, scales=scales,
            )  # fmt: skip
        for part in forms.oversize:
            decode_attention(
                query, latent_cache, None, attended, part, scale,
                limit=part.max_query, max_rows=part.max_query, scales=scales,
            )  # fmt: skip
        if index is not None and sparse:
            sparse_attention(query, latent_cache, None, index, attended, device_layout, scale, scales=scales)
        # Among them are rows of expanded sequences, which were not computed and are written below.
        output[:stop] = torch.bmm(attended.transpose(0, 1), value_up.transpose(1, 2)).transpose(0, 1)
    for slots, part in forms.expanded:
        keys, values = _expand(latent_cache, slots, key_up, value_up, scales)
        prefill_attention((query_nope, query_rope), keys, values, output, part, scale)
    return output


def break_even(key_up: Tensor, value_up: Tensor) -> int:
    """Query rows of a sequence up to which absorbing takes no more multiplications than expanding.

    Per head and token, expanding pays rank * (nope + value_dim) once; absorbing pays, for each query, rank instead of
    nope and rank instead of value_dim.
    """
    _, nope, rank = key_up.shape
    value_dim = value_up.shape[1]
    return rank * (nope + value_dim) // max(1, 2 * rank - nope - value_dim)


@dataclass(frozen=True, slots=True)
class _Forms:
    """Which sequences of a batch are absorbed and which are expanded.

    Attributes:
        rows: behind the last row of a sequence that is absorbed; 0 without any.
        max_rows: the most query rows of a sequence within the limit.
        oversize: sequences above the limit that are absorbed all the same.
        expanded: the slots of the context, int64, and the sequence over a cache that has them in order.
    """

    rows: int
    max_rows: int
    oversize: tuple[DeviceLayout, ...] = ()
    expanded: tuple[tuple[Tensor, DeviceLayout], ...] = ()


def _forms(layout: PagedLayout, device_layout: DeviceLayout, limit: int, max_context: int | None) -> _Forms:
    """Sequences of more than ``limit`` query rows are expanded if their context is at most ``max_context``."""
    if device_layout.max_query <= limit:  # also where a graph is captured, and nothing may be asked of the batch
        return _Forms(device_layout.num_rows, device_layout.max_query)
    key = ("triton", "mla", device_layout.pages.device, limit, max_context)
    forms: _Forms | None = layout.memo.get(key)
    if forms is None:
        rows = max_rows = 0
        oversize, expanded = [], []
        for index, (start, stop) in enumerate(pairwise(layout.query_starts)):
            queries, context = stop - start, layout.context_lens[index]
            if queries > limit and (max_context is None or context <= max_context):
                expanded.append(_in_order(device_layout.sequence(index, queries, context)))
                continue
            rows = stop
            if queries > limit:
                oversize.append(device_layout.sequence(index, queries, context))
            else:
                max_rows = max(max_rows, queries)
        forms = layout.memo[key] = _Forms(rows, max_rows, tuple(oversize), tuple(expanded))
    return forms


def _in_order(part: DeviceLayout) -> tuple[Tensor, DeviceLayout]:
    """The slots of one sequence's context, and the sequence over a cache that has only these, in order."""
    device = part.pages.device
    tokens = torch.arange(part.max_context, device=device)
    slots = part.pages[0].to(torch.int64)[tokens // part.page_size] * part.page_size + tokens % part.page_size
    pages = torch.arange(-(-part.max_context // _EXPANDED_PAGE), dtype=torch.int32, device=device)
    return slots, part.with_pages(pages[None], _EXPANDED_PAGE)


def _expand(
    latent_cache: Tensor, slots: Tensor, key_up: Tensor, value_up: Tensor, scales: KVScales | None
) -> tuple[Tensor, Tensor]:
    """Keys [context, heads, nope + rope] and values [context, heads, value_dim] of the latents in ``slots``."""
    heads, nope, rank = key_up.shape
    latents = latent_cache[:, 0].index_select(0, slots)
    compressed, rope = latents[:, :rank], latents[:, rank:]
    if scales is not None:
        compressed = dequantize(compressed, scales.key[slots, 0], key_up.dtype)
        rope = dequantize(rope, scales.value[slots, 0], key_up.dtype)
    keys = compressed.new_empty(latents.shape[0], heads, nope + rope.shape[1])
    keys[..., :nope] = (compressed @ key_up.reshape(-1, rank).T).view(-1, heads, nope)
    keys[..., nope:] = rope[:, None]
    values = (compressed @ value_up.reshape(-1, rank).T).view(-1, heads, value_up.shape[1])
    return keys, values
