"""Examples of any length -> rows of at most ``max_tokens`` tokens, without padding.

Examples are shuffled, and each window of the shuffled order is packed by best-fit decreasing (the longest first, each
into the fullest row that has room; about 11/9 of the fewest rows at most: Johnson et al., SIAM J. Comput. 3, 1974). So
a row is random, nearly full, and known before any token is read. Within a row the examples lie by falling length: equal
lengths are neighbours, and attention takes them in one call.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek_tune.data.cache import TokenCache

WINDOW = 4096
"""Examples that are packed together."""
IGNORED = -100
"""The target of a token that nothing is learned from."""


@dataclass(frozen=True)
class Packer:
    """Makes the rows of each epoch.

    Attributes:
        lengths: int64 [examples of the data set], each at most ``max_tokens``.
        indices: the examples to train on.
        max_tokens: of a row.
        seed: of the order.
    """

    lengths: NDArray[np.int64]
    indices: NDArray[np.int64]
    max_tokens: int
    seed: int = 0

    def rows(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The examples of each row of an epoch, from row ``start`` on. Seed and epoch decide them."""
        return islice(self._rows(epoch), start, None)

    def _rows(self, epoch: int) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.indices)
        for at in range(0, len(order), WINDOW):
            rows = best_fit(self.lengths, order[at : at + WINDOW], self.max_tokens)
            for row in random.permutation(len(rows)):
                yield rows[row]

    @cached_property
    def tokens(self) -> int:
        """Of one epoch."""
        return int(self.lengths[self.indices].sum())

    def efficiency(self) -> float:
        """The share of the rows' room that the first epoch fills."""
        rows = sum(1 for _ in self.rows(0))
        return self.tokens / (rows * self.max_tokens) if rows else 0.0


def best_fit(lengths: NDArray[np.int64], examples: NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Best-fit decreasing: rows of ``examples`` whose ``lengths`` add up to at most ``max_tokens``."""
    order = examples[np.argsort(-lengths[examples], kind="stable")]
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for example in order.tolist():
        length = int(lengths[example])
        assert length <= max_tokens, f"example {example} has {length} tokens"
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = max_tokens, len(rows)
            rows.append([])
        rows[row].append(example)
        insort(room, (left - length, row))
    return rows


@dataclass(frozen=True)
class PackedRow:
    """Several examples one after the other, behind what all of them begin with.

    Attributes:
        ids: int64 [tokens].
        positions: int64 [tokens], from 0 at the beginning of each example.
        targets: int64 [tokens]: what comes next where that is an answer's token, else ``IGNORED``.
        lengths: tokens of each example without the shared ones, in order. Tokens behind them are padding.
        examples: indices into the data set.
        shared: tokens at the start of the row that every example begins with. Nothing is learned from them.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: tuple[int, ...]
    examples: tuple[int, ...]
    shared: int = 0

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """int32 [examples + 1]: where each example begins behind the shared tokens, and the end of the last."""
        return np.cumsum([self.shared, *self.lengths], dtype=np.int32)

    @property
    def example_tokens(self) -> int:
        """Of the examples, what they share counted in each."""
        return sum(self.lengths) + self.shared * len(self.lengths)

    @property
    def answer_tokens(self) -> int:
        """Targets that are learned from."""
        return int((self.targets != IGNORED).sum())


def pack(cache: TokenCache, examples: Sequence[int], *, share: bool = True, pad_to: int = 1) -> PackedRow:
    """The row of these examples, padded at its end to a multiple of ``pad_to`` tokens.

    With ``share``, tokens that all of them begin with stand once: up to the last before any of their answers is told,
    and only if there are two examples or more.
    """
    read = [cache.example(example) for example in examples]
    shared = _shared(read) if share and len(read) > 1 else 0
    ids = [read[0][0][:shared].astype(np.int64)]
    positions, targets = [np.arange(shared)], [np.full(shared, IGNORED, np.int64)]
    for tokens, answers in read:
        target = np.full(len(tokens), IGNORED, np.int64)
        target[:-1][answers[1:]] = tokens[1:][answers[1:]]
        ids.append(tokens[shared:].astype(np.int64))
        positions.append(np.arange(shared, len(tokens)))
        targets.append(target[shared:])
    used = sum(map(len, ids))
    zeros = np.zeros(-used % pad_to, np.int64)
    return PackedRow(
        np.concatenate([*ids, zeros]),
        np.concatenate([*positions, zeros]),
        np.concatenate([*targets, zeros + IGNORED]),
        tuple(len(tokens) - shared for tokens, _ in read),
        tuple(examples),
        shared,
    )


def _shared(examples: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> int:
    """Tokens that all examples begin with, none of which says an answer's token."""
    first, most = examples[0][0], min(int(np.argmax(answers)) - 1 for _, answers in examples)
    for tokens, _ in examples[1:]:
        most = min(most, len(tokens) - 1)
        different = np.flatnonzero(tokens[:most] != first[:most])
        most = int(different[0]) if len(different) else most
    return max(0, most)
