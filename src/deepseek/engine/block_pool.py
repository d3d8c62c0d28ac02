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

    Args:
        num_pages: pages in the cache.
        prefix_cache: keep the content of released pages findable.
    """

    def __init__(self, num_pages: int, *, prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.prefix_cache = prefix_cache
        self._holders = [0] * num_pages
        self._digests: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._blank = np.ones(num_pages, dtype=bool)
        self._num_blank = num_pages

    @property
    def num_free(self) -> int:
        """Pages nobody holds; cached ones count, their content gives way."""
        return self._num_blank + len(self._cached)

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
                del self._cached[page]
            self._holders[page] += 1

    def allocate(self, count: int, after: int | None = None) -> list[int] | None:
        """``count`` pages with one holder each, or None (and no change) if there are not enough.

        Pages side by side let attention read without a copy, so pages follow ``after`` where they can; a new sequence
        starts in the middle of the longest blank run, which leaves room to grow to it and to its neighbour.
        """
        if count > self.num_free:
            return None
        pages: list[int] = []
        for remaining in range(count, 0, -1):
            page = self._next_page(after, remaining)
            self._holders[page] = 1
            pages.append(page)
            after = page
        return pages

    def _next_page(self, after: int | None, wanted: int) -> int:
        if not self._num_blank:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
            return page
        page = -1 if after is None else after + 1
        if not (0 <= page < self.num_pages and self._blank[page]):
            page = self._roomiest(wanted)
        self._blank[page] = False
        self._num_blank -= 1
        return page

    def _roomiest(self, wanted: int) -> int:
        edges = np.flatnonzero(np.diff(self._blank, prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        longest = int(np.argmax(ends - starts))
        start, length = int(starts[longest]), int(ends[longest] - starts[longest])
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
                self._cached[page] = None

    def _forget(self, page: int) -> None:
        digest = self._digests[page]
        assert digest is not None
        del self._page_of[digest]
        self._digests[page] = None
