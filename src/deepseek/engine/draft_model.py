"""Guessing tokens with a small model that shares the vocabulary (Leviathan et al., arXiv:2211.17192)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepseek.engine.batch import build_batch
from deepseek.engine.block_pool import BlockPool
from deepseek.engine.request import Sequence
from deepseek.engine.sampler import sample
from deepseek.engine.scheduler import Chunk
from deepseek.models.base import Model
from deepseek.tokenizer.tokenizer import Tokenizer


@dataclass
class _Shadow:
    """A sequence as the draft model sees it.

    Attributes:
        state: tokens with the last draft behind them, and pages and progress in the draft model's cache.
        settled: tokens that are the sequence's own, and not a draft.
    """

    state: Sequence
    settled: int = 0

    def settle(self, tokens: list[int]) -> None:
        """Take over the sequence's ``tokens``; drafts that came true stay computed."""
        own = self.state.tokens
        while self.settled < min(len(own), len(tokens)) and own[self.settled] == tokens[self.settled]:
            self.settled += 1
        # One row at least must be computed to get logits.
        self.state.computed = min(self.state.computed, self.settled, len(tokens) - 1)
        own[self.settled :] = tokens[self.settled :]
        self.settled = len(tokens)


class DraftModel:
    """A drafter (:class:`deepseek.engine.speculation.Drafter`) with a model and a cache of its own.

    A draft is sampled with the options and the uniform numbers with which the engine will sample the same positions, so
    that it comes true wherever both models' distributions agree, also at high temperatures.

    Args:
        model: the small model.
        num_pages: pages of its cache. A sequence they do not hold gets no drafts.
        page_size: tokens per page.
        max_rows: tokens to catch up with in one step, of all sequences together.
        vocab_size: number of logits of the large model.
        cost: time to draft one token, as a share of a step of the large model.
    """

    def __init__(
        self, model: Model, *, num_pages: int, page_size: int, max_rows: int, vocab_size: int, cost: float
    ) -> None:
        self.cost = cost
        self._model = model
        self._page_size = page_size
        self._max_rows = max_rows
        self._vocab_size = vocab_size
        self._pool = BlockPool(num_pages, prefix_cache=False)
        self._cache = model.new_cache(num_pages, page_size)
        self._shadows: dict[Sequence, _Shadow] = {}

    @torch.inference_mode()
    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Up to ``wanted[sequence]`` tokens for each sequence; none while its prompt is being caught up with."""
        chunks = self._catch_up(wanted)
        drafts: dict[Sequence, list[int]] = {}
        while chunks:
            logits = self._forward(list(chunks.values()))
            ready = [sequence for sequence, chunk in chunks.items() if chunk.completes]
            for chunk in chunks.values():
                chunk.sequence.computed += chunk.num_tokens
            ahead = [drafts.get(sequence, []) for sequence in ready]
            guesses = sample(self._model.choose_tokens, logits, ready, ahead) if ready else []
            chunks = {}
            for sequence, guess in zip(ready, guesses, strict=True):
                if guess is None:
                    continue
                drafts.setdefault(sequence, []).append(guess)
                if len(drafts[sequence]) < wanted[sequence]:
                    state = self._shadows[sequence].state
                    state.tokens.append(guess)
                    chunks[sequence] = Chunk.next(state, 1)
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """Give the pages of an ended sequence back."""
        shadow = self._shadows.pop(sequence, None)
        if shadow is not None:
            self._pool.release(shadow.state.pages)

    def _catch_up(self, wanted: dict[Sequence, int]) -> dict[Sequence, Chunk]:
        """The first forward's chunks: what the draft model has not seen of each sequence."""
        chunks: dict[Sequence, Chunk] = {}
        rows = self._max_rows
        for sequence, length in wanted.items():
            shadow = self._shadows.get(sequence)
            if shadow is None:
                shadow = self._shadows[sequence] = _Shadow(
                    replace(sequence, tokens=[], pages=array("i"), computed=0, adapter=None)
                )
            state = shadow.state
            shadow.settle(sequence.tokens)
            num_tokens = min(state.remaining, rows)
            end = len(state.tokens) + length
            if num_tokens and end <= self._model.max_context and self._make_room(state, end):
                chunks[sequence] = Chunk.next(state, num_tokens)
                rows -= num_tokens
        return chunks

    def _make_room(self, state: Sequence, end: int) -> bool:
        """Give ``state`` the pages for ``end`` tokens; False if there are none."""
        missing = -(-end // self._page_size) - len(state.pages)
        if missing <= 0:
            return True
        pages = self._pool.allocate(missing, state.pages[-1] if state.pages else None)
        state.pages.extend(pages or ())
        return pages is not None

    def _forward(self, chunks: list[Chunk]) -> Tensor:
        """Logits fp32 [R, vocab_size] behind the chunks that complete their sequences."""
        step = build_batch(chunks, self._page_size, self._model)
        # A prompt may hold ids of the large model's padding that the small one does not have.
        step.batch.token_ids.clamp_(max=self._model.vocab_size - 1)
        logits = self._model.forward(step.batch, self._cache)
        # The padding may be negative: ids that the large model does not have are cut off.
        return torch.nn.functional.pad(
            logits, (0, self._vocab_size - logits.shape[1]), value=torch.finfo(logits.dtype).min
        )


def vocabulary_difference(large: Tokenizer, small: Tokenizer) -> str | None:
    """Where two vocabularies first differ, in words; None if every id stands for the same in both. Ids past the end of
    one of them may stand for nothing in the other."""
    for token_id in range(max(large.vocab_size, small.vocab_size)):
        ours, theirs = large.token_bytes(token_id), small.token_bytes(token_id)
        if ours != theirs:
            return f"token {token_id} is {ours!r} in the model and {theirs!r} in the draft model"
    return None
