"""Sparse attention of models whose layers run in Python: which layers have an index, and which rows may err."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from deepseek.attention.index import PAGE
from deepseek.errors import ConfigurationError
from deepseek.kernels.paging import SPARSE_ROWS
from deepseek.layers.attention import Attention
from deepseek.layers.mla import LatentAttention
from deepseek.models.base import Batch, LayerCacheSpec


class IndexShape(NamedTuple):
    """Of a layer's index: KV heads, and widths of a key and of a value."""

    heads: int
    key_dim: int
    value_dim: int


def index_shapes(mixers: Sequence[Any], specs: Sequence[LayerCacheSpec]) -> list[IndexShape | None]:
    """Per layer the shape of its index; None for one that sees a window only, and is dense."""
    return [_index_shape(mixer, spec) for mixer, spec in zip(mixers, specs, strict=True)]


def _index_shape(mixer: Any, spec: LayerCacheSpec) -> IndexShape | None:
    if isinstance(mixer, LatentAttention):
        return IndexShape(spec.heads, spec.key_dim, mixer.shape.rank)
    assert isinstance(mixer, Attention)
    return None if mixer.shape.window is not None else IndexShape(spec.heads, spec.key_dim, spec.value_dim)


def check_page_size(page_size: int) -> None:
    """Raises ConfigurationError unless pages can be indexed."""
    if page_size != PAGE:
        raise ConfigurationError(f"page_size must be {PAGE} for sparse attention, not {page_size}; or attention dense.")


def with_errors(batch: Batch) -> Batch:
    """``batch`` with what its policies allow in its layout. A sequence is sparse by its first row; one of more than
    :data:`SPARSE_ROWS` rows, a prompt, is dense."""
    layout = batch.layout
    errors = [0.0] * layout.num_sequences
    for index, (policy, (start, stop)) in enumerate(zip(batch.sparse, pairwise(layout.query_starts), strict=True)):
        context = layout.context_lens[index] - (stop - start) + 1
        if policy is not None and 0 < stop - start <= SPARSE_ROWS and context > policy.dense_until:
            errors[index] = policy.error
    return replace(batch, sparse=(), layout=replace(layout, errors=tuple(errors) if any(errors) else ()))
