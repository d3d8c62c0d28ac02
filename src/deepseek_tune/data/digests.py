"""Which texts were there before, in a few bytes each."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_FEW = 1 << 14
_SHARE = 16
"""A Python set takes about 100 bytes for a number: it holds one in so many of them, a sorted array the others."""


class Digests:
    """A set of texts, known by eight bytes of a digest; about 20 bytes each, whatever their length.

    Digests of different texts are the same once in 2^64 pairs: with a hundred million texts the chance of any is 0.03%.
    """

    def __init__(self) -> None:
        self._old: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._new: set[int] = set()

    def __len__(self) -> int:
        return len(self._old) + len(self._new)

    def add(self, text: bytes) -> bool:
        """Add a text. Returns whether it is new."""
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        if digest in self._new or self._is_old(np.uint64(digest)):
            return False
        self._new.add(digest)
        if len(self._new) >= max(_FEW, len(self._old) // _SHARE):
            self._merge()
        return True

    def _is_old(self, digest: np.uint64) -> bool:
        at = int(np.searchsorted(self._old, digest))
        return at < len(self._old) and bool(self._old[at] == digest)

    def _merge(self) -> None:
        new = np.fromiter(self._new, np.uint64, len(self._new))
        self._new = set()
        self._old = np.concatenate([self._old, new])
        self._old.sort()
