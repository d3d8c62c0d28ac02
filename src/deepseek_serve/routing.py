"""Which of a model's replicas answers: the one whose cache knows the prompt's beginning, unless it is clearly busier.

The rule comes from SGLang's router (``cache_aware`` of sglang-router 0.3.2). It differs in that prompts are compared by
pages of tokens, not characters; that the load of the replica in question counts, not the busiest one's; that the rest
goes to the least busy replica, not to the one that knows least; and in the numbers, which are for processors:

1. Of the replicas that know most of the prompt, if that is at least :data:`SHARE` of it, the least busy one.
2. But if that one has more than :data:`MORE` answers more than the least busy replica of all, and more than
   :data:`TIMES` times as many, or if nobody knows enough: the least busy replica, of equals the one that knows least.

What a replica knows is guessed from what was sent to it: the digests of as many pages as its cache has, the least
recently used go first. A replica that was started again knows nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Generic, Literal, Protocol, TypeVar

from deepseek.config import PAGE_SIZE
from deepseek.engine.block_pool import page_digests
from deepseek.engine.events import EngineInfo
from deepseek.errors import EngineOverloadedError
from deepseek.runtime.client import RETRY_WHILE_STARTING

SHARE = 0.3
MORE = 4  # answers; a step's time hardly grows with so few rows
TIMES = 1.5
MAX_PAGES = 512  # of a prompt that are looked at; hashing them takes about a millisecond

Reason = Literal["prefix", "load"]


class Replica(Protocol):
    """What routing needs of an engine's client."""

    @property
    def state(self) -> str: ...
    @property
    def responsive(self) -> bool: ...
    @property
    def pending(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def info(self) -> EngineInfo | None: ...
    def check_ready(self) -> None: ...


R = TypeVar("R", bound=Replica)


class _Known(Generic[R]):
    """The pages that a replica's cache probably has."""

    def __init__(self, replica: R, page_size: int) -> None:
        self.replica = replica
        self._page_size = page_size
        self._pages: OrderedDict[bytes, None] = OrderedDict()
        self._restarts = replica.restarts

    def __len__(self) -> int:
        return len(self._pages)

    def matching(self, digests: Sequence[bytes]) -> int:
        """How many of the first pages are known."""
        if self._restarts != self.replica.restarts:
            self._pages.clear()
            self._restarts = self.replica.restarts
        return next((i for i, digest in enumerate(digests) if digest not in self._pages), len(digests))

    def add(self, digests: Sequence[bytes]) -> None:
        """The replica computes these pages. A prompt's beginning is kept longer than its end, which needs it."""
        info = self.replica.info
        room = info.kv_cache_tokens // self._page_size if info is not None else 0
        for digest in reversed(digests):
            self._pages[digest] = None
            self._pages.move_to_end(digest)
        while len(self._pages) > room:
            self._pages.popitem(last=False)


class Router(Generic[R]):
    """Chooses among the replicas of one model.

    Attributes:
        counts: how many requests went where their prefix is, and how many where there was least to do.
    """

    def __init__(self, replicas: Sequence[R], page_size: int = PAGE_SIZE) -> None:
        self.counts: Counter[Reason] = Counter()
        self._page_size = page_size
        self._all = [_Known(replica, page_size) for replica in replicas]

    def check_ready(self) -> None:
        """Raise as :meth:`EngineClient.check_ready` does if no replica is ready."""
        states = {known.replica.state: known.replica for known in self._all}
        for state in ("ready", "restarting", "starting"):
            if state in states:
                states[state].check_ready()
                return
        for known in self._all:
            known.replica.check_ready()
        raise EngineOverloadedError("The model is starting.", retry_after=RETRY_WHILE_STARTING)  # no engine yet

    def choose(self, prompt: Sequence[int], salt: str = "") -> R:
        """The replica for a prompt, and a note that it has it now.

        Args:
            prompt: token ids.
            salt: who shares cached prefixes: the same only.

        Raises :class:`EngineOverloadedError` while none is there, :class:`EngineDeadError` if none will be.
        """
        if len(self._all) == 1:
            return self._all[0].replica
        self.check_ready()
        able = [known for known in self._all if known.replica.responsive]
        able = able or [known for known in self._all if known.replica.state == "ready"]
        digests = list(islice(page_digests(prompt, self._page_size, salt), MAX_PAGES))
        chosen, reason = _choose(able, digests)
        chosen.add(digests)
        self.counts[reason] += 1
        return chosen.replica


def _choose(able: Sequence[_Known[R]], digests: Sequence[bytes]) -> tuple[_Known[R], Reason]:
    matches = [known.matching(digests) for known in able]
    idlest = min(able, key=lambda known: (known.replica.pending, len(known)))
    longest = max(matches)
    if not longest or longest < SHARE * len(digests):
        return idlest, "load"
    knowing = [known for known, match in zip(able, matches, strict=True) if match == longest]
    best = min(knowing, key=lambda known: known.replica.pending)
    least = idlest.replica.pending
    if best.replica.pending > least + MORE and best.replica.pending > TIMES * least:
        return idlest, "load"
    return best, "prefix"
