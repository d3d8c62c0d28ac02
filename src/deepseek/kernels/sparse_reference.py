"""Sparse attention over a paged cache, page by page and head by head: slow, and the truth of Triton's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.attention.decode import Decoded, middle_end, sparse_decode
from deepseek.attention.index import PAGE, build_index
from deepseek.kernels.page_index import PIECE, IndexCache
from deepseek.kernels.paging import KVScales, PagedLayout, SparseRow


def index_pages(
    key_cache: Tensor,
    value_cache: Tensor | None,
    index: IndexCache,
    layout: PagedLayout,
    scales: KVScales | None = None,
) -> None:
    """See :meth:`deepseek.kernels.ops.Ops.index_pages`."""
    assert layout.page_size == PAGE
    for sequence in range(layout.num_sequences):
        for page in layout.filled_pages(sequence):
            slots = slice(page * PAGE, (page + 1) * PAGE)
            for head in range(index.heads):
                index.write(page, head, build_index(*_stored(key_cache, value_cache, index, scales, slots, head)))


def _stored(
    key_cache: Tensor,
    value_cache: Tensor | None,
    index: IndexCache,
    scales: KVScales | None,
    slots: slice | Tensor,
    head: int,
) -> tuple[Tensor, Tensor]:
    """Keys and values of a head in ``slots``, fp32."""
    keys = key_cache[slots, head].float()
    if value_cache is None:
        rank = index.value_dim
        if scales is not None:
            latents, rotated = (scale[slots, head].float()[:, None] for scale in (scales.key, scales.value))
            keys = torch.cat([keys[:, :rank] * latents, keys[:, rank:] * rotated], -1)
        return keys, keys[:, :rank]
    values = value_cache[slots, head].float()
    if scales is None:
        return keys, values
    return keys * scales.key[slots, head].float()[:, None], values * scales.value[slots, head].float()[:, None]


def attend_sparsely(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor | None,
    index: IndexCache,
    layout: PagedLayout,
    scale: float,
    output: Tensor,
    scales: KVScales | None,
) -> None:
    """Attention of the layout's sparse rows, into their rows of ``output`` [T, heads, value_dim]; the others stay.

    ``query`` [T, heads, key_dim]. Without a ``value_cache`` the values are the first columns of the keys.
    """
    group = query.shape[1] // index.heads
    elements = key_cache.shape[2] + (0 if value_cache is None else index.value_dim)
    token_bytes = 2 * elements if scales is None else elements + 2 * scales.key.element_size()
    for each in layout.sparse_rows:
        pages = layout.pages[each.sequence][: -(-each.context // PAGE)]
        starts = torch.tensor(pages, dtype=torch.int64, device=query.device) * PAGE
        slots = (starts[:, None] + torch.arange(PAGE, device=query.device)).flatten()[: each.context]
        for head in range(index.heads):
            heads = slice(head * group, (head + 1) * group)
            decoded = sparse_decode(
                query[each.row, heads].float() * scale,
                *_stored(key_cache, value_cache, index, scales, slots, head),
                index.read(pages[: each.context // PAGE], head),
                each.error,
                whole_pieces=False,
            )
            output[each.row, heads] = decoded.output.to(output.dtype)
            _count(index, each, decoded, token_bytes)


def _count(index: IndexCache, row: SparseRow, decoded: Decoded, token_bytes: int) -> None:
    """``token_bytes``: of a head, in a cache of 16 bits or of INT8."""
    middle = middle_end(row.context) - 1
    read = int(decoded.read.sum())
    counted = torch.tensor(
        [
            len(decoded.output),
            row.context,
            read,
            token_bytes * read + index.page_bytes // index.heads * middle,
            token_bytes * row.context,
            -(-middle // PIECE),
            float(decoded.tail.sum()),
            float(decoded.estimate.sum()),
            float(decoded.bound.sum()),
        ],
        dtype=torch.float64,
    )
    index.counters[0].add_(counted.to(index.counters.device))


def attend_latents_sparsely(
    query_nope: Tensor,
    query_rope: Tensor,
    latent_cache: Tensor,
    key_up: Tensor,
    value_up: Tensor,
    index: IndexCache,
    layout: PagedLayout,
    scale: float,
    output: Tensor,
    scales: KVScales | None,
) -> None:
    """The same of latents, absorbed; arguments as in :meth:`deepseek.kernels.ops.Ops.mla_attention`."""
    rows = [each.row for each in layout.sparse_rows]
    folded = torch.einsum("thn,hnr->thr", query_nope[rows].float(), key_up.float())
    query = query_nope.new_zeros(*query_nope.shape[:2], latent_cache.shape[2], dtype=torch.float32)
    query[rows] = torch.cat([folded, query_rope[rows].float()], -1)
    attended = query.new_empty(*query.shape[:2], index.value_dim)
    attend_sparsely(query, latent_cache, None, index, layout, scale, attended, scales)
    output[rows] = torch.einsum("thr,hvr->thv", attended[rows], value_up.float()).to(output.dtype)
