"""From scheduled chunks to the tensors of one forward."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepseek.engine.request import Sequence
from deepseek.engine.scheduler import Chunk
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch, Model


@dataclass(frozen=True)
class StepBatch:
    """A model batch, and which logits belong to which chunk.

    Attributes:
        batch: what the model gets.
        sampled: chunks whose next token is to be sampled, in the order of the first logits rows: one row for each, and
            one more for each token of its draft.
        scored: (chunk, first position scored, number of rows) of score requests, in the order of the rows after them.
        silent: chunks without logits: more of their prompts is to come.
        embedded: (chunk, number of rows) of embedding requests, in the order of ``hidden_rows``.
        hidden_rows: int64, the rows whose hidden states are wanted; None if there are no such requests.
    """

    batch: Batch
    sampled: list[Chunk]
    scored: list[tuple[Chunk, int, int]]
    silent: list[Chunk]
    embedded: list[tuple[Chunk, int]]
    hidden_rows: Tensor | None

    @property
    def row_owners(self) -> list[Sequence]:
        """The sequence of each sampled row: one row behind each chunk's known tokens, and one behind each token of its
        draft."""
        return [chunk.sequence for chunk in self.sampled for _ in range(1 + len(chunk.draft))]

    @property
    def logprob_rows(self) -> tuple[list[int], list[int]]:
        """The sampled rows whose log-probabilities are wanted, and how many of the likeliest."""
        wanted = [(row, owner.params.logprobs) for row, owner in enumerate(self.row_owners) if owner.params is not None]
        rows = [(row, top) for row, top in wanted if top is not None]
        return [row for row, _ in rows], [top for _, top in rows]

    @property
    def scored_tokens(self) -> tuple[list[int], list[int]]:
        """The row of each token that is scored, among the scored rows, and the token: of each chunk its own, and
        behind the last of a sequence the alternatives to it."""
        rows: list[int] = []
        tokens: list[int] = []
        start = 0
        for chunk, first, count in self.scored:
            others = chunk.alternatives
            rows += [*range(start, start + count), *[start + count - 1] * len(others)]
            tokens += [*chunk.sequence.tokens[first : first + count], *others]
            start += count
        return rows, tokens


def arrange(chunks: Seq[Chunk], wide_rows: int) -> tuple[list[Chunk], int, int]:
    """The chunks in the order of one batch, and how many of its rows are narrow, and narrow in attention (see
    :class:`Batch`).

    Of a reproducible sequence, prompts are wide and answers narrow, always. The others are what is faster together:
    wide if that makes ``wide_rows`` rows or more.
    """
    fixed = [chunk for chunk in chunks if chunk.sequence.reproducible]
    wide = [chunk for chunk in fixed if chunk.sequence.in_prompt]
    narrow = [chunk for chunk in fixed if not chunk.sequence.in_prompt]
    free = [chunk for chunk in chunks if not chunk.sequence.reproducible]
    if sum(chunk.num_rows for chunk in (*wide, *free)) < wide_rows:
        narrow, free = narrow + free, []
    short = [chunk for chunk in free if chunk.num_rows < wide_rows]
    wide += [chunk for chunk in free if chunk.num_rows >= wide_rows]
    narrow_rows = sum(chunk.num_rows for chunk in narrow)
    for part in (narrow, short, wide):  # rows of one adapter side by side
        part.sort(key=lambda chunk: chunk.sequence.adapter_number)
    return narrow + short + wide, narrow_rows, narrow_rows + sum(chunk.num_rows for chunk in short)


def build_batch(chunks: Seq[Chunk], page_size: int, model: Model, previous: Tensor | None = None) -> StepBatch:
    """One ragged batch of all chunks; ``previous`` has the tokens that sequences only know the places of."""
    chunks, narrow_rows, narrow_attention_rows = arrange(chunks, model.wide_rows)
    device = model.device
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    context_lens: list[int] = []
    for chunk in chunks:
        sequence = chunk.sequence
        first = chunk.start
        last = first + chunk.num_rows
        token_ids += sequence.tokens[first : first + chunk.num_tokens]
        token_ids += chunk.draft
        positions += range(first, last)
        slots += [sequence.pages[p // page_size] * page_size + p % page_size for p in range(first, last)]
        starts.append(len(token_ids))
        context_lens.append(last)
    embedded, hidden_rows = _hidden_rows(chunks, starts)
    sampled, scored, silent, rows = _logits_rows(chunks, starts)
    layout = PagedLayout(
        page_size=page_size,
        query_starts=tuple(starts),
        context_lens=tuple(context_lens),
        pages=tuple(chunk.sequence.pages for chunk in chunks),
        write_slots=_ids(slots, device),
    )
    policies = tuple(chunk.policy for chunk in chunks)
    vector_rows, vectors = _vectors(chunks, starts, device)
    batch = Batch(
        _ids(token_ids, device),
        _ids(positions, device),
        layout,
        _ids(rows, device),
        narrow_rows,
        narrow_attention_rows,
        policies if any(policies) else (),
        _segments(chunks, starts),
        vector_rows,
        vectors,
        previous=previous,
    )
    return StepBatch(batch, sampled, scored, silent, embedded, _ids(hidden_rows, device) if embedded else None)


def _segments(chunks: Seq[Chunk], starts: Seq[int]) -> tuple[tuple[int, int, int], ...]:
    """See :class:`Batch`; chunks that follow one another with the same adapter are one segment."""
    segments: list[tuple[int, int, int]] = []
    for chunk, (start, end) in zip(chunks, pairwise(starts), strict=True):
        number = chunk.sequence.adapter_number
        if number < 0:
            continue
        if segments and segments[-1][0] == number and segments[-1][2] == start:
            start = segments.pop()[1]
        segments.append((number, start, end))
    return tuple(segments)


def _vectors(chunks: Seq[Chunk], starts: Seq[int], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The rows whose input is an adapter's vector, and these vectors."""
    rows: list[int] = []
    vectors: list[Tensor] = []
    for chunk, start in zip(chunks, starts, strict=False):
        sequence = chunk.sequence
        given = None if sequence.adapter is None else sequence.adapter.adapter.vectors
        if given is None or chunk.start >= len(given):
            continue
        count = min(chunk.num_tokens, len(given) - chunk.start)
        rows += range(start, start + count)
        vectors.append(given[chunk.start : chunk.start + count])
    if not rows:
        return None, None
    return _ids(rows, device), torch.cat(vectors).to(device)


def _hidden_rows(chunks: Seq[Chunk], starts: Seq[int]) -> tuple[list[tuple[Chunk, int]], list[int]]:
    """See :class:`StepBatch`."""
    embedded: list[tuple[Chunk, int]] = []
    rows: list[int] = []
    for chunk, start in zip(chunks, starts, strict=False):
        sequence = chunk.sequence
        if sequence.pooler is not None:
            positions = sequence.pooler.positions(chunk.start, chunk.num_tokens, sequence.target)
            embedded.append((chunk, len(positions)))
            rows += [start + position - chunk.start for position in positions]
    return embedded, rows


def _logits_rows(
    chunks: Seq[Chunk], starts: Seq[int]
) -> tuple[list[Chunk], list[tuple[Chunk, int, int]], list[Chunk], list[int]]:
    """The chunks by what is to be done with their logits (see :class:`StepBatch`), and the rows of those."""
    sampled: list[Chunk] = []
    scored: list[tuple[Chunk, int, int]] = []
    silent: list[Chunk] = []
    sampled_rows: list[int] = []
    scored_rows: list[int] = []
    for chunk, start in zip(chunks, starts, strict=False):
        sequence = chunk.sequence
        if sequence.pooler is not None:
            continue
        if sequence.score_start is None:
            if chunk.completes:
                sampled.append(chunk)
                sampled_rows += range(start + chunk.num_tokens - 1, start + chunk.num_rows)
            else:
                silent.append(chunk)
            continue
        # The row at position p predicts position p + 1.
        first = max(chunk.start, sequence.score_start - 1)
        count = chunk.end - first
        if count > 0:
            scored.append((chunk, first + 1, count))
            scored_rows += range(start + first - chunk.start, start + chunk.num_tokens)
        else:
            silent.append(chunk)
    return sampled, scored, silent, sampled_rows + scored_rows


def _ids(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
