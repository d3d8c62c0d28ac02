"""Pages of long contexts that lie in a file when memory is short.

Page numbers below ``BlockPool.resident`` are memory, the others a mapped file in the same range of addresses: attention
reads both alike, and what it does not read is not loaded. The scheduler hands out both kinds. Before each step, pages
that will be written and have a spilled number exchange it with one in memory, whose content, if it has any, goes to the
file. So **only full pages lie there, and nothing writes to them**.

What gives way, in this order: blank pages; pages that running sequences hold for tokens to come; cached prefixes,
the oldest first; the middles of running sequences, sparse and long ones first, whose pages are read least; other full
pages. Nothing is moved back: the system keeps in memory what is read often.

Integrity. A page's checksum is taken from memory when it is moved. It is checked whenever the prefix cache is about to
hand the page to a request (preempted ones included), before anything is computed with it; and while sequences hold it,
one spilled page after the other, one per step. So a page that rots on the disk does not enter a request through the
cache, and one that rots under a running request is found within about as many steps as there are spilled pages; tokens
sampled in between may be wrong. A corrupt page and all behind it are forgotten, and their sequences computed again.
A read error of the disk itself (SIGBUS) ends the engine's process.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from deepseek.engine.block_pool import BlockPool
from deepseek.engine.request import Sequence
from deepseek.engine.scheduler import Chunk
from deepseek.models.base import SpillableCache

logger = logging.getLogger(__name__)

SINK_PAGES = 1  # the first pages of a sequence, and the last full ones, are read in every step
RECENT_PAGES = 8
CHECKS_PER_STEP = 1
_MOST_SKIPPED = 64  # pages that a step passes over to find one to check


def least_resident(max_running: int, max_batch_tokens: int, page_size: int) -> int:
    """Pages in memory with which every step finds room for what it writes: that of the mixed batch and of an isolated
    sequence, and the pages at both ends of each chunk."""
    return 2 * -(-max_batch_tokens // page_size) + 2 * max_running + 2


class _Victim(NamedTuple):
    """A page in memory that gives way: at ``place`` in the page tables that hold it, -1 if none does."""

    page: int
    place: int
    has_content: bool


class Spill:
    """Moves pages of a pool with ``resident`` below ``num_pages``.

    Attributes:
        moved, checked, corrupt: pages, counted from the start.
    """

    def __init__(self, cache: SpillableCache, pool: BlockPool, page_size: int) -> None:
        self._cache = cache
        self._pool = pool
        self._page_size = page_size
        # With the number of allocations at which they were taken, in the order in which they are checked.
        self._checksums: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.moved = self.checked = self.corrupt = 0

    @property
    def pages(self) -> int:
        """Pages whose content was moved to the file and not replaced since."""
        return len(self._checksums)

    def place(self, chunks: Collection[Chunk], running: Collection[Sequence]) -> None:
        """Put the pages that ``chunks`` write into memory. Page tables of ``running``, which are all that hold pages,
        are changed."""
        size, resident = self._page_size, self._pool.resident
        ends: dict[Sequence, int] = {}
        wanted: list[tuple[Sequence, int]] = []
        for chunk in chunks:
            sequence = chunk.sequence
            ends[sequence] = end = -(-(sequence.computed + chunk.num_rows) // size)
            first = sequence.computed // size
            wanted += [(sequence, i) for i in range(first, end) if sequence.pages[i] >= resident]
        if not wanted:
            return
        victims = self._victims(running, ends)
        for sequence, index in wanted:
            victim, spilled = next(victims), sequence.pages[index]
            if victim.has_content:
                self._move(victim.page, spilled)
            self._pool.swap(victim.page, spilled)
            for holder in running if victim.place >= 0 else ():
                if victim.place < len(holder.pages) and holder.pages[victim.place] == victim.page:
                    holder.pages[victim.place] = spilled
            sequence.pages[index] = victim.page

    def intact(self, pages: Seq[int]) -> int:
        """How many of the first ``pages`` can be used; the one behind them is corrupt."""
        for count, page in enumerate(pages):
            if not self._check(page):
                return count
        return len(pages)

    def check_next(self) -> int | None:
        """Check the next pages in turn that somebody holds. Returns one that is corrupt."""
        checks = 0
        for _ in range(min(len(self._checksums), _MOST_SKIPPED)):
            if checks == CHECKS_PER_STEP:
                break
            page = next(iter(self._checksums))
            self._checksums.move_to_end(page)
            if self._pool.is_held(page):
                checks += 1
                if not self._check(page):
                    return page
        return None

    def _check(self, page: int) -> bool:
        expected, allocations = self._checksums.get(page, (0, -1))
        if allocations != self._pool.allocations(page):
            self._checksums.pop(page, None)  # of what the page held before it was given out anew
            return True
        self.checked += 1
        if self._cache.checksum(page) == expected:
            return True
        self.corrupt += 1
        del self._checksums[page]
        logger.error("page %d in the spill file is corrupt; what depends on it is computed again", page)
        return False

    def _move(self, page: int, spilled: int) -> None:
        self._cache.copy_page(page, spilled)
        self._checksums[spilled] = self._cache.checksum(page), self._pool.allocations(spilled)
        self.moved += 1

    def _victims(self, running: Collection[Sequence], ends: dict[Sequence, int]) -> Iterator[_Victim]:
        """Pages in memory that no chunk writes, in the order in which they give way. Each is taken before the next is
        asked for."""
        while (page := self._pool.blank_resident()) is not None:
            yield _Victim(page, -1, False)
        size = self._page_size
        for sequence in running:
            written = max(ends.get(sequence, 0), -(-sequence.computed // size))
            yield from self._held(sequence, written, len(sequence.pages), has_content=False)
        while (page := self._pool.cached_resident()) is not None:
            yield _Victim(page, -1, True)
        coldest = sorted(running, key=lambda sequence: (sequence.sparse is None, -sequence.computed))
        for sequence in coldest:
            yield from self._held(sequence, SINK_PAGES, sequence.computed // size - RECENT_PAGES)
        for sequence in coldest:
            yield from self._held(sequence, 0, sequence.computed // size)
        raise AssertionError("a step writes more pages than are in memory")

    def _held(self, sequence: Sequence, first: int, last: int, *, has_content: bool = True) -> Iterator[_Victim]:
        if last <= first:
            return
        pages = np.array(sequence.pages[first:last], dtype=np.int32)
        for index in np.flatnonzero(pages < self._pool.resident) + first:
            page = sequence.pages[int(index)]
            if page < self._pool.resident:  # another sequence's share of it may have gone meanwhile
                yield _Victim(page, int(index), has_content)
