"""Decoding behind a context of which only the beginning was computed.

How fast a token is decoded does not depend on where the keys and values of its context came from, but a prompt of a
million tokens takes hours to compute. The pages behind the beginning are copies of its pages, with their index. What
sparse attention selects does depend on them, so figures from here are marked as such.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from deepseek.attention.policy import SparsePolicy
from deepseek.errors import BenchmarkError
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch, Model

_CHUNK = 512


def decode_filled(
    model: Model,
    cache: Any,
    beginning: Sequence[int],
    tokens: int,
    output: int,
    page_size: int,
    policy: SparsePolicy | None,
) -> float:
    """Seconds of ``output`` decoding steps of one sequence behind ``tokens`` others, after one unmeasured step.

    Args:
        model: computes the beginning and the steps.
        cache: nobody else's; its first pages are written over, enough for ``tokens + output + 1`` tokens.
        beginning: token ids. Its first page, whose first token many heads look at, is not repeated; the full pages
            behind it are, in order, as often as it takes.
        policy: how sparse attention is; None is dense.

    Raises:
        BenchmarkError: the beginning has less than two full pages.
    """
    full = min(len(beginning), tokens) // page_size
    if full < 2:
        raise BenchmarkError(
            f"a context is filled from at least {2 * page_size} tokens of text: these are {len(beginning)}."
        )
    pages = range(-(-(tokens + output + 1) // page_size))
    ids = list(beginning[: full * page_size])
    token = 0
    start = 0.0
    with torch.inference_mode():
        for done in range(0, len(ids), _CHUNK):
            model.forward(_rows(ids[done : done + _CHUNK], done, pages, page_size, policy), cache)
        for page in pages[full:]:
            cache.copy_page(1 + (page - 1) % (full - 1), page)
        for step in range(output + 1):
            if step == 1:
                start = time.perf_counter()
            logits = model.forward(_rows([token], tokens + step, pages, page_size, policy), cache)
            token = int(logits[0].argmax())
    return time.perf_counter() - start


def _rows(ids: Sequence[int], begin: int, pages: Sequence[int], page_size: int, policy: SparsePolicy | None) -> Batch:
    """Consecutive rows of one sequence that lies on ``pages``, the first ones of the cache; logits of the last."""
    positions = range(begin, begin + len(ids))
    layout = PagedLayout(
        page_size=page_size,
        query_starts=(0, len(ids)),
        context_lens=(positions.stop,),
        pages=(pages,),
        write_slots=torch.tensor([pages[at // page_size] * page_size + at % page_size for at in positions]),
    )
    narrow = 1 if len(ids) == 1 else 0
    return Batch(
        token_ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        layout=layout,
        logits_rows=torch.tensor([len(ids) - 1]),
        narrow_rows=narrow,
        narrow_attention_rows=narrow,
        sparse=() if policy is None else (policy,),
    )
