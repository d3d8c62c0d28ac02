"""Pages of the KV cache: who holds them, which can be reused, which lie side by side.

Finished pages stay findable by the content they hold (the hash of all tokens up to their end, as in vLLM's automatic
prefix caching) until their room is needed; least recently released pages go first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

_OPENED_SHARE = 16
"""A new cache begins with this part of its pages."""
_ROOM = 64
"""Pages in a row that a new sequence should find; with fewer, more of the cache is opened."""


def page_digests(
    tokens: Sequence[int],
    page_size: int,
    salt: str,
    parents: Sequence[bytes] = (),
    marks: Mapping[int, str] = MappingProxyType({}),
) -> Iterator[bytes]:
    """Digest of each full page of ``tokens`` after the ``parents`` already known.

    A digest covers the salt, every token up to the page's end and the ``marks`` (page -> text) of the pages up to it:
    equal digests mean equal keys and values if marks say where these begin to depend on more than the tokens.
    """
    digest = parents[-1] if parents else blake2b(salt.encode(), digest_size=32).digest()
    for start in range(len(parents) * page_size, len(tokens) - page_size + 1, page_size):
        page = array("q", tokens[start : start + page_size]).tobytes()
        mark = marks.get(start // page_size, "").encode()
        digest = blake2b(digest + page + mark, digest_size=32).digest()
        yield digest


class BlockPool:
    """Reference-counted pages. A page is held (count > 0), cached (count 0, content findable), or blank.

    Memory that no page has used yet costs time when it is touched first (whole huge pages are cleared), so new places
    are looked for in the beginning of the cache: the first blank page, or, if a sequence's pages should lie together,
    in a part that grows as it fills.

    Args:
        num_pages: pages in the cache.
        resident: those below this number are in memory, the others are spilled (see :mod:`deepseek.engine.spill`); None
            if all are in memory.
        prefix_cache: keep the content of released pages findable.
        together: leave sequences room to grow in place.
    """

    def __init__(
        self, num_pages: int, *, resident: int | None = None, prefix_cache: bool = True, together: bool = True
    ) -> None:
        self.num_pages = num_pages
        self._together = together
        self.resident = num_pages if resident is None else resident
        self.prefix_cache = prefix_cache
        self._holders = [0] * num_pages
        self._allocations = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # in memory
        self._cached_spilled: OrderedDict[int, None] = OrderedDict()
        self._blank = np.ones(num_pages, dtype=bool)
        self._num_blank = num_pages
        self._opened = max(1, num_pages // _OPENED_SHARE)

    @property
    def num_free(self) -> int:
        """Pages nobody holds; cached ones count, their content gives way."""
        return self._num_blank + len(self._cached) + len(self._cached_spilled)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """The pages that hold the longest known beginning of ``digests``. They are not held yet."""
        pages: list[int] = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Add one holder to each page, reviving cached ones."""
        for page in pages:
            if self._holders[page] == 0:
                del self._shelf(page)[page]
            self._holders[page] += 1

    def allocate(self, count: int, after: int | None = None) -> list[int] | None:
        """``count`` pages with one holder each, or None (and no change) if there are not enough.

        Pages follow ``after`` where they can. Those that should lie together begin in the middle of the longest blank
        run, which leaves room to grow to a new sequence and to its neighbour.
        """
        if count > self.num_free:
            return None
        pages: list[int] = []
        for remaining in range(count, 0, -1):
            page = self._next_page(after, remaining)
            self._holders[page] = 1
            self._allocations[page] += 1
            pages.append(page)
            after = page
        return pages

    def _next_page(self, after: int | None, wanted: int) -> int:
        if not self._num_blank:
            page, _ = (self._cached_spilled or self._cached).popitem(last=False)
            self._drop_digest(page)
            return page
        page = -1 if after is None else after + 1
        if not (0 <= page < self.num_pages and self._blank[page]):
            page = self._roomiest(wanted) if self._together else int(np.argmax(self._blank))
        self._blank[page] = False
        self._num_blank -= 1
        return page

    def _roomiest(self, wanted: int) -> int:
        limit = self.resident if self._blank[: self.resident].any() else self.num_pages
        start, length = _longest_run(self._blank[: min(self._opened, limit)])
        while length < max(4 * wanted, _ROOM) and self._opened < limit:
            self._opened = min(2 * self._opened, limit)
            start, length = _longest_run(self._blank[: self._opened])
        return start if start == 0 else start + max(0, length - wanted) // 2

    def seal(self, page: int, digest: bytes) -> None:
        """Make a full, held page findable. If another page already holds the same content, that one stays the one."""
        if self.prefix_cache and digest not in self._page_of and self._digests[page] is None:
            self._page_of[digest] = page
            self._digests[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Take one holder from each page. Later pages of a sequence give way before earlier ones."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, f"page {page} released more often than held"
            if self._holders[page]:
                continue
            if self._digests[page] is None:
                self._blank[page] = True
                self._num_blank += 1
            else:
                self._shelf(page)[page] = None

    def is_held(self, page: int) -> bool:
        return self._holders[page] > 0

    def allocations(self, page: int) -> int:
        """How often the page was given out anew: what it held before is nobody's."""
        return self._allocations[page]

    def forget(self, pages: Sequence[int]) -> None:
        """Let nobody find the content of these pages any more."""
        for page in pages:
            if self._digests[page] is None:
                continue
            self._drop_digest(page)
            if not self._holders[page]:
                del self._shelf(page)[page]
                self._blank[page] = True
                self._num_blank += 1

    def blank_resident(self) -> int | None:
        """A blank page in memory."""
        page = int(np.argmax(self._blank[: self.resident]))
        return page if self._blank[page] else None

    def cached_resident(self) -> int | None:
        """The cached page in memory that was released first."""
        return next(iter(self._cached), None)

    def swap(self, resident: int, spilled: int) -> None:
        """Exchange what is known of two pages: of a held one without findable content, ``spilled``, and of any one in
        memory. Contents and page tables are the caller's business."""
        assert resident < self.resident <= spilled, f"pages {resident} and {spilled} are on the same side"
        assert self._holders[spilled] and self._digests[spilled] is None
        if resident in self._cached:
            del self._cached[resident]
            self._cached_spilled[spilled] = None
        digest = self._digests[resident]
        if digest is not None:
            self._page_of[digest] = spilled
        self._digests[spilled], self._digests[resident] = digest, None
        self._holders[resident], self._holders[spilled] = self._holders[spilled], self._holders[resident]
        self._blank[spilled], self._blank[resident] = bool(self._blank[resident]), False

    def _shelf(self, page: int) -> OrderedDict[int, None]:
        return self._cached if page < self.resident else self._cached_spilled

    def _drop_digest(self, page: int) -> None:
        digest = self._digests[page]
        assert digest is not None
        del self._page_of[digest]
        self._digests[page] = None


def _longest_run(blank: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the longest run of True begins, and its length; (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(blank, prepend=False, append=False))
    if not len(edges):
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest] - starts[longest])
