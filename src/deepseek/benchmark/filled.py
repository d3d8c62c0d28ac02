"""Decoding behind a context that was never computed: keys and values are made up.

How fast a token is decoded does not depend on where the keys and values of its context came from, but a prompt of a
million tokens takes hours to compute densely. What sparse attention selects does depend on them, so figures from here
are marked as such.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from deepseek.attention.policy import SparsePolicy
from deepseek.errors import BenchmarkError
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch, Model


@runtime_checkable
class Fillable(Protocol):
    """A model whose cache can be filled without computing anything."""

    def fill_cache(self, cache: Any, pages: Sequence[int], tokens: int, seed: int) -> None:
        """Write keys and values made from ``seed`` for the first ``tokens`` tokens of a sequence on ``pages``, and the
        index of every page that is full."""
        ...


def decode_filled(
    model: Model, cache: Any, tokens: int, output: int, page_size: int, policy: SparsePolicy | None, *, seed: int = 0
) -> float:
    """Seconds of ``output`` decoding steps of one sequence behind ``tokens`` made-up ones, after one unmeasured step.

    Args:
        model: its cache must be fillable.
        cache: nobody else's; its first pages are written over, enough for ``tokens + output + 1`` tokens.
        policy: how sparse the steps' attention is; None is dense.

    Raises:
        BenchmarkError: the model's cache cannot be filled.
    """
    if not isinstance(model, Fillable):
        raise BenchmarkError(
            "this model's cache cannot be filled with made-up keys and values: measure it with --fill none."
        )
    pages = range(-(-(tokens + output + 1) // page_size))
    model.fill_cache(cache, pages, tokens, seed)
    token = 0
    start = 0.0
    with torch.inference_mode():
        for step in range(output + 1):
            if step == 1:
                start = time.perf_counter()
            logits = model.forward(_row(token, tokens + step, pages, page_size, policy), cache)
            token = int(logits[0].argmax())
    return time.perf_counter() - start


def _row(token: int, position: int, pages: Sequence[int], page_size: int, policy: SparsePolicy | None) -> Batch:
    """One row of one sequence that lies on ``pages``, the first ones of the cache."""
    layout = PagedLayout(
        page_size=page_size,
        query_starts=(0, 1),
        context_lens=(position + 1,),
        pages=(pages,),
        write_slots=torch.tensor([pages[position // page_size] * page_size + position % page_size]),
    )
    return Batch(
        token_ids=torch.tensor([token]),
        positions=torch.tensor([position]),
        layout=layout,
        logits_rows=torch.tensor([0]),
        narrow_rows=1,
        narrow_attention_rows=1,
        sparse=() if policy is None else (policy,),
    )
