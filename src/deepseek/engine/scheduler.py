"""What runs in the next step: continuous batching (Orca, OSDI '22), chunked prefill (Sarathi-Serve, arXiv:2403.02310).

Policy: first come, first served. Every running sequence that decodes gets its one row; what is left of the step's rows
goes to prompts, in chunks. When pages run out, the latest arrival gives its own back and waits, first in line; its
full pages stay in the prefix cache, so that it usually resumes without computing them again.

Isolated sequences (see :class:`Sequence`) take turns: one of them advances per step, in a forward beside the mixed
batch, so that they slow the others down by one sequence's work at most.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, replace

from deepseek.engine.block_pool import BlockPool, page_digests
from deepseek.engine.request import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` tokens of ``sequence`` from ``sequence.computed`` on, to be computed in this step, and behind them
    the tokens of a ``draft`` of what may come next (speculation)."""

    sequence: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def completes(self) -> bool:
        """True if the sequence has a result after this step."""
        return self.num_tokens == self.sequence.remaining

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.draft)


class Scheduler:
    """Waiting and running sequences.

    Args:
        pool: the cache's pages.
        page_size: tokens per page.
        max_running: sequences in one step.
        max_batch_tokens: rows in one step.
    """

    def __init__(self, pool: BlockPool, *, page_size: int, max_running: int, max_batch_tokens: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self.max_running = max_running
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._isolated_turns: dict[Sequence, None] = {}

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting or running sequence out and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, each with the pages it needs."""
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        preemptions = self.preemptions
        decodes = [not sequence.isolated and sequence.remaining == 1 for sequence in self.running]
        decodes_ahead = sum(decodes)
        turn = next(iter(self._isolated_turns), None)
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if decodes[index]:
                decodes_ahead -= 1
                num_tokens = min(1, budget - decodes_ahead)
            elif sequence.isolated:
                num_tokens = sequence.isolated_chunk(self.max_batch_tokens) if sequence is turn else 0
            else:
                num_tokens = min(sequence.next_tokens, budget - decodes_ahead)
            if num_tokens > 0:
                if not self._make_room(sequence, num_tokens):
                    break  # the sequence itself, the last one running, was preempted
                chunks.append(Chunk(sequence, num_tokens))
                budget -= 0 if sequence.isolated else num_tokens
            index += 1
        if self.preemptions > preemptions:
            return chunks  # no page to spare for newcomers
        return chunks + self._admit(budget)

    def with_draft(self, chunk: Chunk, draft: list[int]) -> Chunk:
        """The chunk with as much of ``draft`` as pages can be had for: nobody gives way to a guess."""
        sequence = chunk.sequence
        known = sequence.computed + chunk.num_tokens
        missing = -(-(known + len(draft)) // self.page_size) - len(sequence.pages)
        if missing > 0 and self.pool.num_free >= missing + len(self.running):
            sequence.pages.extend(self.pool.allocate(missing, sequence.pages[-1]) or ())
        room = len(sequence.pages) * self.page_size - known
        return replace(chunk, draft=tuple(draft[:room]))

    def completed(self, chunk: Chunk, accepted: int = 0) -> None:
        """Account for a computed chunk and for ``accepted`` tokens of its draft, which the sequence's tokens contain by
        now: full pages become findable. What was rejected lies behind ``computed`` and is overwritten."""
        sequence = chunk.sequence
        sequence.computed += chunk.num_tokens + accepted
        if sequence.isolated:
            self._isolated_turns[sequence] = self._isolated_turns.pop(sequence)  # to the end of the line
        full = sequence.sealable // self.page_size
        if self.pool.prefix_cache and full > sequence.sealed:
            self._extend_digests(sequence)
            for index in range(sequence.sealed, full):
                self.pool.seal(sequence.pages[index], sequence.digests[index])
            sequence.sealed = full

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give ``sequence`` the pages for its next tokens, preempting later arrivals; False if it was preempted."""
        missing = -(-(sequence.computed + num_tokens) // self.page_size) - len(sequence.pages)
        if missing <= 0:
            return True
        while (pages := self.pool.allocate(missing, sequence.pages[-1])) is None:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages.extend(pages)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._isolated_turns.pop(sequence, None)
        self.pool.release(sequence.pages)
        sequence.pages = array("i")
        sequence.computed = 0
        sequence.sealed = 0

    def _admit(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        if not self.waiting:
            return chunks
        underway = self._digests_underway()
        postponed: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting.popleft()
            self._extend_digests(sequence)
            cached = self.pool.match(sequence.digests[: sequence.reusable // self.page_size])
            upcoming = sequence.digests[len(cached) : len(cached) + 1]
            if underway.intersection(upcoming) and sequence.reusable // self.page_size > len(cached):
                postponed.append(sequence)  # another sequence is computing this very page: reuse it when it is done
                continue
            if not self._take_pages(sequence, cached):
                postponed.append(sequence)
                break
            self.running.append(sequence)
            if sequence.isolated:
                self._isolated_turns[sequence] = None  # its turn comes in a later step
                continue
            num_tokens = min(sequence.next_tokens, budget)
            chunks.append(Chunk(sequence, num_tokens))
            budget -= num_tokens
            underway.update(sequence.digests[len(cached) :])
        self.waiting.extendleft(reversed(postponed))
        return chunks

    def _take_pages(self, sequence: Sequence, cached: list[int]) -> bool:
        """Hold the cached pages and allocate those of all the other tokens known; False without room for both.

        One page for each running sequence stays in reserve, or the newcomer would be preempted at once.
        """
        needed = -(-sequence.target // self.page_size) - len(cached)
        self.pool.hold(cached)
        enough = self.pool.num_free >= needed + len(self.running)
        pages = self.pool.allocate(needed, cached[-1] if cached else None) if enough else None
        if pages is None:
            self.pool.release(cached)
            return False
        sequence.pages = array("i", cached + pages)
        sequence.computed = len(cached) * self.page_size
        sequence.sealed = len(cached)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        return True

    def _digests_underway(self) -> set[bytes]:
        """Digests of the prompt pages that running sequences will fill in coming steps."""
        prefills = [s for s in self.running if s.remaining > 1 and not s.isolated]
        return {digest for s in prefills for digest in s.digests[s.sealed :]}

    def _extend_digests(self, sequence: Sequence) -> None:
        if self.pool.prefix_cache:
            new = page_digests(sequence.tokens, self.page_size, sequence.cache_salt, sequence.digests)
            sequence.digests.extend(list(new))
