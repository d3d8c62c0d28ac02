"""Who is next among those who wait: priority classes, and within a class fair shares between tenants.

Fair queueing by virtual time, as start-time fair queueing does for packets (Goyal, Vin, Cheng, SIGCOMM '96) and the
virtual token counter for language models (Sheng et al., "Fairness in Serving Large Language Models", OSDI '24): a
tenant's clock advances by the work done for it, divided by its weight; the waiting tenant whose clock shows least is
next. Work is charged when it is done, not when it is announced, so nobody gains by understating an answer's length. A
tenant that comes back after a pause starts at the mean clock of those present: what it did not use meanwhile is not
saved up, and what it used too much of before stays on its account.

Shares are a tree of two levels: an API key (``tenant`` up to the first ``/``) has its part, which its users (the rest
of ``tenant``) divide equally. So a key gains nothing by inventing users. Within a user: first come, first served.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace

from deepseek.engine.request import Sequence

FORGET_AT = 256  # children of a share that may be remembered while they are away


class Share:
    """A key's or a user's part of the service.

    Attributes:
        clock: work done for it so far, divided by its weight, in tokens. Never goes back.
        present: its sequences, waiting and running.
        num_waiting: those of them that wait.
        queue: a user's waiting sequences, the first one first.
    """

    def __init__(self, name: str, parent: Share | None, weight: float = 1.0) -> None:
        self.name = name
        self.parent = parent
        self.weight = weight
        self.clock = 0.0
        self.present = 0
        self.num_waiting = 0
        self.children: dict[str, Share] = {}
        self.queue: OrderedDict[Sequence, None] = OrderedDict()
        self._mean = 0.0  # greatest mean clock of the children present so far
        self._clocks = 0.0  # their weighted sum of clocks
        self._weights = 0.0
        self._heap: list[tuple[float, int, Share]] = []  # children that wait; keys may lag behind their clocks
        self._in_heap = False
        self._pushes = 0
        self._forget_at = FORGET_AT

    def child(self, name: str, weight: float = 1.0) -> Share:
        """The share of that name, made if it is new. A new weight counts from now on."""
        share = self.children.get(name)
        if share is None:
            share = self.children[name] = Share(name, self, weight)
        elif share.weight != weight:
            if share.present:
                self._clocks += (weight - share.weight) * share.clock
                self._weights += weight - share.weight
            share.weight = weight
        return share

    def enter(self) -> None:
        """One more sequence here."""
        self.present += 1
        if self.parent is not None:
            if self.present == 1:
                self.clock = max(self.clock, self.parent._mean)
                self.parent._clocks += self.weight * self.clock
                self.parent._weights += self.weight
            self.parent.enter()

    def leave(self) -> None:
        """One sequence less."""
        self.present -= 1
        parent = self.parent
        if parent is None:
            return
        if not self.present:
            parent._clocks -= self.weight * self.clock
            parent._weights -= self.weight
            parent._forget(self)
        parent.leave()

    def charge(self, work: float) -> None:
        """Account for ``work`` done for one of the sequences present."""
        parent = self.parent
        if parent is None:
            return
        self.clock += work / self.weight
        parent._clocks += work
        parent._mean = max(parent._mean, parent._clocks / parent._weights)
        parent.charge(work)

    def wait(self, change: int) -> None:
        """``change`` more sequences wait here."""
        self.num_waiting += change
        parent = self.parent
        if parent is not None:
            if self.num_waiting and not self._in_heap:
                self._in_heap = True
                parent._pushes += 1
                heappush(parent._heap, (self.clock, parent._pushes, self))
            parent.wait(change)

    def next_child(self) -> Share | None:
        """The waiting child whose clock shows least. Clocks only advance, so a lagging key in the heap is a lower
        bound: it is corrected when it comes up."""
        while self._heap:
            clock, _, child = self._heap[0]
            if not child.num_waiting:
                heappop(self._heap)
                child._in_heap = False
            elif clock < child.clock:
                self._pushes += 1
                heapreplace(self._heap, (child.clock, self._pushes, child))
            else:
                return child
        return None

    def _forget(self, child: Share) -> None:
        """Drop a child that has left, and at times others, if coming back as a stranger changes nothing for them."""
        if self.present == 1:  # it was the last one, so sums carry no rounding along
            self._mean = max(self._mean, child.clock)
            self._clocks = self._weights = 0.0
        if child.clock <= self._mean:
            del self.children[child.name]
        elif len(self.children) > self._forget_at:
            for other in [c for c in self.children.values() if not c.present and c.clock <= self._mean]:
                del self.children[other.name]
            self._forget_at = max(FORGET_AT, 2 * len(self.children))


class FairQueue:
    """Waiting sequences, and the accounts of all that are present. Every operation takes O(log n) for n tenants."""

    def __init__(self) -> None:
        self._classes: dict[int, Share] = {}
        self._shares: dict[Sequence, Share] = {}

    def __len__(self) -> int:
        return sum(root.num_waiting for root in self._classes.values())

    def __iter__(self) -> Iterator[Sequence]:
        for sequence, share in self._shares.items():
            if sequence in share.queue:
                yield sequence

    def priorities(self) -> list[int]:
        """The classes in which somebody waits, the most urgent first."""
        return sorted((priority for priority, root in self._classes.items() if root.num_waiting), reverse=True)

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        root = self._classes.get(sequence.priority)
        if root is None:
            root = self._classes[sequence.priority] = Share("", None)
        share = root.child(sequence.group, sequence.weight).child(sequence.user)
        self._shares[sequence] = share
        share.enter()
        share.queue[sequence] = None
        share.wait(1)

    def head(self, priority: int) -> Sequence | None:
        """The one that is next in its class."""
        group = self._classes[priority].next_child()
        user = group.next_child() if group is not None else None
        return next(iter(user.queue)) if user is not None else None

    def take(self, sequence: Sequence) -> None:
        """It waits no longer, but stays present."""
        share = self._shares[sequence]
        del share.queue[sequence]
        share.wait(-1)

    def put_back(self, sequence: Sequence) -> None:
        """It waits again, ahead of its tenant's others."""
        share = self._shares[sequence]
        share.queue[sequence] = None
        share.queue.move_to_end(sequence, last=False)
        share.wait(1)

    def remove(self, sequence: Sequence) -> None:
        """It is over, whether it waited or not."""
        share = self._shares[sequence]
        if sequence in share.queue:
            self.take(sequence)
        del self._shares[sequence]
        share.leave()

    def charge(self, sequence: Sequence, work: float) -> None:
        """Account for work done for a sequence, in tokens."""
        self._shares[sequence].charge(work)

    def order(self, sequence: Sequence) -> tuple[float, float]:
        """Sorts sequences of one class: the key's clock, then the user's."""
        user = self._shares[sequence]
        assert user.parent is not None
        return user.parent.clock, user.clock
