"""What runs in the next step: continuous batching (Orca, OSDI '22), chunked prefill (Sarathi-Serve, arXiv:2403.02310).

Every running sequence that decodes gets its one row; what is left of the step's rows goes to prompts, in chunks,
those under way and those that wait alike: the most urgent class first, within it the tenant that got least so far
(:mod:`deepseek.engine.fair_queue`), of one tenant the first that came. So neither a flood of requests nor one huge
prompt keeps another tenant waiting.

Room, that is places in the batch and pages, is given back by preemption. A preempted sequence waits, first in its
tenant's line; its full pages stay in the prefix cache, so that it usually resumes without computing them again.

- When a running sequence needs a page and there is none: the latest arrival of the least urgent class gives way, of
  the tenant that has most running.
- When the next in line finds no room: any less urgent sequence gives way. Of its own class, only a tenant that holds
  more than twice as much as the newcomer's would then (the greater part of places or pages, as in dominant resource
  fairness, Ghodsi et al., NSDI '11). Twice, so that two tenants never take turns in throwing each other out.

Isolated sequences (see :class:`Sequence`) take turns: one of them advances per step, in a forward beside the mixed
batch, so that they slow the others down by one sequence's work at most.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from deepseek.attention.policy import SparsePolicy
from deepseek.engine.block_pool import BlockPool, page_digests
from deepseek.engine.fair_queue import FairQueue
from deepseek.engine.request import Sequence

ANSWER_WORK = 2.0  # a token of an answer, generated alone, costs its tenant as much as this many of a prompt
LOGPROBS_WORK = 2.0  # and this more with log-probabilities, which take about as long again as a small model's token
OVERHANG = 2.0  # how many times the newcomer's share a tenant must hold to be preempted for it
MAX_POSTPONED = 64  # sequences that one step looks behind when those in front wait for each other's pages


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` tokens of ``sequence`` from ``start`` on, to be computed in this step, and behind them the tokens
    of a ``draft`` of what may come next (speculation). ``admission`` is the sequence's."""

    sequence: Sequence
    num_tokens: int
    start: int
    admission: int
    completes: bool
    """True if the sequence has a result after this step."""
    draft: tuple[int, ...] = ()

    @classmethod
    def next(cls, sequence: Sequence, num_tokens: int) -> Chunk:
        """The next tokens of a sequence."""
        completes = num_tokens == sequence.remaining
        return cls(sequence, num_tokens, sequence.computed, sequence.admission, completes)

    @property
    def end(self) -> int:
        """Tokens of the sequence in the cache behind it, those of its draft aside."""
        return self.start + self.num_tokens

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.draft)

    @property
    def alternatives(self) -> list[int]:
        """Tokens that are scored in the place of its last one too."""
        return self.sequence.alternatives if self.completes else []

    @property
    def policy(self) -> SparsePolicy | None:
        """How sparsely its rows attend; None is dense."""
        plan = self.sequence.sparse
        return None if plan is None else plan.policy_at(self.start)


class Scheduler:
    """Waiting and running sequences.

    Args:
        pool: the cache's pages.
        page_size: tokens per page.
        max_running: sequences in one step.
        max_batch_tokens: rows in one step, but for a last page of a prompt that is computed in whole pages.
        intact: how many of the first of some cached pages can be used; None if all can.
        given: puts keys and values that are not computed into a sequence's pages, and says how many tokens are there
            then; None if all are computed.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        page_size: int,
        max_running: int,
        max_batch_tokens: int,
        intact: Callable[[Seq[int]], int] | None = None,
        given: Callable[[Sequence], int] | None = None,
    ) -> None:
        self.pool = pool
        self._given = given
        self._intact = intact
        self.page_size = page_size
        self.max_running = max_running
        self.max_batch_tokens = max_batch_tokens
        self.waiting = FairQueue()
        self.running: dict[Sequence, None] = {}
        self.preemptions = 0
        self._isolated_turns: dict[Sequence, None] = {}
        self._chunks: dict[Sequence, Chunk] = {}  # of the step being planned
        self._budget = 0  # rows it has left; below 0 when the last chunk is the rest of a page

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting or running sequence out and give its pages back."""
        if sequence in self.running:
            del self.running[sequence]
            self._release(sequence)
        self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, each with the pages it needs."""
        self._chunks = {}
        self._budget = self.max_batch_tokens
        preemptions = self.preemptions
        prompts: list[Sequence] = []
        for sequence in sorted(self.running, key=lambda sequence: -sequence.priority):
            if sequence.isolated or not sequence.remaining:
                continue
            if sequence.remaining > 1:
                prompts.append(sequence)
            elif self._budget > 0:
                self._grow(sequence, 1)
        turn = min((s for s in self._isolated_turns if s.remaining), key=self._urgency, default=None)
        if turn is not None:
            self._grow(turn, turn.isolated_chunk(self.max_batch_tokens))
        prompts = [sequence for sequence in prompts if sequence in self.running]
        self._fill(
            prompts, admit=self.preemptions == preemptions
        )  # if pages ran out there is none to spare for newcomers
        return list(self._chunks.values())

    def with_draft(self, chunk: Chunk, draft: list[int]) -> Chunk:
        """The chunk with as much of ``draft`` as pages can be had for (nobody gives way to a guess), and no rows that
        would attend otherwise in a chunk of their own."""
        sequence = chunk.sequence
        known = chunk.end
        if sequence.sparse is not None:
            draft = draft[: sequence.sparse.cut(chunk.start, chunk.num_tokens + len(draft)) - chunk.num_tokens]
        missing = -(-(known + len(draft)) // self.page_size) - len(sequence.pages)
        if missing > 0 and self.pool.num_free >= missing + len(self.running):
            sequence.pages.extend(self.pool.allocate(missing, sequence.pages[-1]) or ())
        room = len(sequence.pages) * self.page_size - known
        return replace(chunk, draft=tuple(draft[:room]))

    def started(self, chunk: Chunk) -> None:
        """The chunk is being computed, and what is planned from now on comes behind it."""
        sequence = chunk.sequence
        sequence.computed = chunk.end
        if sequence.isolated:
            self._isolated_turns[sequence] = self._isolated_turns.pop(sequence)  # to the end of the line

    def completed(self, chunk: Chunk, accepted: int = 0) -> None:
        """Account for a computed chunk and for ``accepted`` tokens of its draft, which the sequence's tokens contain by
        now: full pages become findable. What was rejected lies behind ``computed`` and is overwritten. Nothing is left
        of it where the sequence has been preempted since."""
        sequence = chunk.sequence
        if chunk.admission != sequence.admission:
            return
        sequence.computed += accepted
        end = chunk.end + accepted
        self._charge(sequence, end)
        full = sequence.sealable(end) // self.page_size
        if self.pool.prefix_cache and full > sequence.sealed:
            self._extend_digests(sequence)
            for index in range(sequence.sealed, full):
                self.pool.seal(sequence.pages[index], sequence.digests[index])
            sequence.sealed = full

    def recompute(self, page: int) -> list[Sequence]:
        """Start the running sequences that hold a page anew, without it and what lies behind it. Returns them."""
        holders = [sequence for sequence in self.running if page in sequence.pages]
        for sequence in holders:
            self.pool.forget(sequence.pages[sequence.pages.index(page) :])
            self._preempt(sequence)
            sequence.recomputed += 1
        return holders

    def _grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Plan the next tokens of a running sequence, with pages for them; nothing if it has been preempted for a page
        of another one's, or is itself the one to give way."""
        missing = -(-(sequence.computed + num_tokens) // self.page_size) - len(sequence.pages)
        while sequence in self.running:
            pages = self.pool.allocate(missing, sequence.pages[-1]) if missing > 0 else []
            if pages is not None:
                sequence.pages.extend(pages)
                self._plan(sequence, num_tokens)
                return
            self._preempt(self._least_deserving())

    def _plan(self, sequence: Sequence, num_tokens: int) -> None:
        self._chunks[sequence] = Chunk.next(sequence, num_tokens)
        self._budget -= 0 if sequence.isolated else num_tokens
        self._charge(sequence, sequence.computed + num_tokens)

    def _charge(self, sequence: Sequence, computed: int) -> None:
        """Put the first ``computed`` tokens on the tenant's account, those that are not there yet."""
        start = sequence.charged
        if computed > start:
            answer = max(0, computed - max(start, sequence.prompt_length))
            wants_logprobs = sequence.params is not None and sequence.params.logprobs is not None
            each = ANSWER_WORK + LOGPROBS_WORK if wants_logprobs else ANSWER_WORK
            self.waiting.charge(sequence, computed - start - answer + answer * each)
            sequence.charged = computed

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence]
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None and not sequence.isolated:
            self._budget += chunk.num_tokens
        self._release(sequence)
        sequence.restart()
        self.waiting.put_back(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._isolated_turns.pop(sequence, None)
        self.pool.release(sequence.pages)
        sequence.pages = array("i")
        sequence.computed = 0
        sequence.sealed = 0
        sequence.admission += 1

    def _fill(self, prompts: list[Sequence], *, admit: bool) -> None:
        """Give the rows that are left to prompts: of running sequences and, if ``admit``, of waiting ones."""
        underway = {digest for sequence in prompts for digest in sequence.digests[sequence.sealed :]}
        postponed: list[Sequence] = []
        waiting = self.waiting.priorities() if admit else []
        if waiting:  # for pages too that are findable when a step is done that has begun
            for sequence in self.running:
                full = sequence.sealable(sequence.computed) // self.page_size
                underway.update(sequence.digests[sequence.sealed : full])
        for priority in sorted({*waiting, *(s.priority for s in prompts)}, reverse=True):
            own = [s for s in prompts if s.priority == priority]
            while self._budget > 0:
                own = [s for s in own if s in self.running and s not in self._chunks]
                candidates = own
                if admit and priority in waiting and len(postponed) < MAX_POSTPONED:
                    head = self.waiting.head(priority)
                    candidates = [*own, head] if head is not None else own
                if not candidates:
                    break
                sequence = min(candidates, key=self._urgency)
                if sequence not in self.running:
                    self._extend_digests(sequence)
                    if self._awaits_page(sequence, underway):
                        self.waiting.take(sequence)
                        postponed.append(sequence)
                        continue
                    if not self._admit(sequence):
                        admit = False  # nor anybody behind it: they would take what it waits for
                        continue
                    underway.update(sequence.digests[sequence.sealed :])
                    if sequence.isolated:
                        continue  # its turn comes in a later step
                self._plan(sequence, sequence.chunk(self._budget))
        for sequence in reversed(postponed):
            self.waiting.put_back(sequence)

    def _urgency(self, sequence: Sequence) -> tuple[float, ...]:
        return (-sequence.priority, *self.waiting.order(sequence))

    def _awaits_page(self, sequence: Sequence, underway: set[bytes]) -> bool:
        """True if another sequence is computing the very page that this one needs next, to be reused when done."""
        reusable = sequence.digests[: sequence.reusable // self.page_size]
        cached = len(self.pool.match(reusable))
        return cached < len(reusable) and reusable[cached] in underway

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, if need be in the place of others. False without a place or pages."""
        while len(self.running) >= self.max_running or not self._take_pages(sequence):
            victim = self._yielding_to(sequence)
            if victim is None:
                return False
            self._preempt(victim)
        self.waiting.take(sequence)
        self.running[sequence] = None
        if sequence.isolated:
            self._isolated_turns[sequence] = None
        return True

    def _least_deserving(self) -> Sequence:
        """Who gives way to a running sequence. The first one of the most urgent class never does while others run:
        there is always one that comes to its end."""
        lowest = min(sequence.priority for sequence in self.running)
        peers = [sequence for sequence in self.running if sequence.priority == lowest]
        counts = Counter(sequence.group for sequence in peers)
        return max(enumerate(peers), key=lambda item: ((counts[item[1].group] - 1) / item[1].weight, item[0]))[1]

    def _yielding_to(self, newcomer: Sequence) -> Sequence | None:
        """Who gives way to a waiting sequence, or None."""
        lowest = min((sequence.priority for sequence in self.running), default=newcomer.priority)
        if lowest < newcomer.priority:
            return [sequence for sequence in self.running if sequence.priority == lowest][-1]
        peers = [sequence for sequence in self.running if sequence.priority == newcomer.priority]
        family = [sequence for sequence in peers if sequence.group == newcomer.group]
        return self._overhanging(newcomer, peers, lambda sequence: sequence.group) or self._overhanging(
            newcomer, family, lambda sequence: sequence.user
        )

    def _overhanging(
        self, newcomer: Sequence, peers: Iterable[Sequence], holder: Callable[[Sequence], str]
    ) -> Sequence | None:
        """The latest sequence of the holder with most room, if that is too much beside the newcomer's. Isolated ones
        keep theirs: they would lose all their work."""
        places: Counter[str] = Counter({holder(newcomer): 1})
        pages: Counter[str] = Counter({holder(newcomer): -(-newcomer.target // self.page_size)})
        latest: dict[str, Sequence] = {}
        for sequence in peers:
            places[holder(sequence)] += 1
            pages[holder(sequence)] += len(sequence.pages)
            if not sequence.isolated:
                latest[holder(sequence)] = sequence

        def part(name: str, weight: float) -> float:
            return max(places[name] / self.max_running, pages[name] / self.pool.num_pages) / weight

        greatest = max(latest.values(), key=lambda s: part(holder(s), s.weight), default=newcomer)
        own = part(holder(newcomer), newcomer.weight)
        return greatest if part(holder(greatest), greatest.weight) > OVERHANG * own else None

    def _take_pages(self, sequence: Sequence) -> bool:
        """Hold the cached pages and allocate those of all the other tokens known; False without room for both.

        One page for each running sequence stays in reserve, or the newcomer would be preempted at once.
        """
        cached = self.pool.match(sequence.digests[: sequence.reusable // self.page_size])
        needed = -(-sequence.target // self.page_size) - len(cached)
        self.pool.hold(cached)
        enough = self.pool.num_free >= needed + len(self.running)
        if enough and self._intact is not None and (intact := self._intact(cached)) < len(cached):
            self.pool.forget(cached[intact:])
            self.pool.release(cached)
            return self._take_pages(sequence)
        pages = self.pool.allocate(needed, cached[-1] if cached else None) if enough else None
        if pages is None:
            self.pool.release(cached)
            return False
        sequence.pages = array("i", cached + pages)
        sequence.computed = len(cached) * self.page_size
        sequence.sealed = len(cached)
        if self._given is not None:
            sequence.computed = self._given(sequence)
        sequence.charged = max(sequence.charged, sequence.computed)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = max(0, sequence.computed - sequence.before)
            sequence.scheduled_at = time.monotonic()
        return True

    def _extend_digests(self, sequence: Sequence) -> None:
        if self.pool.prefix_cache:
            new = page_digests(
                sequence.known_tokens, self.page_size, sequence.cache_salt, sequence.digests, sequence.marks
            )
            sequence.digests.extend(list(new))
