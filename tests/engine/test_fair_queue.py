"""The queue alone: order, accounts, and what it remembers."""

from __future__ import annotations

import random

import pytest

from deepseek.engine.events import GenerateRequest
from deepseek.engine.fair_queue import FORGET_AT, FairQueue
from deepseek.engine.request import Sequence
from deepseek.sampling import SamplingParams


def sequence(name: str, tenant: str = "", priority: int = 0, weight: float = 1.0) -> Sequence:
    request = GenerateRequest(name, [1], SamplingParams(), priority=priority, tenant=tenant, weight=weight)
    return Sequence.of(request, end_ids=frozenset(), seed=0, max_context=100, isolate_seeds=False)


def serve(queue: FairQueue, work: float = 10.0) -> Sequence:
    """Do the next one's work at once."""
    head = queue.head(queue.priorities()[0])
    assert head is not None
    queue.take(head)
    queue.charge(head, work)
    queue.remove(head)
    return head


def order_of(queue: FairQueue) -> list[str]:
    return [serve(queue).request_id for _ in range(len(queue))]


def test_one_tenant_is_first_come_first_served() -> None:
    queue = FairQueue()
    for i in range(5):
        queue.add(sequence(str(i)))
    assert order_of(queue) == list("01234")
    assert len(queue) == 0 and queue.priorities() == []


def test_a_flood_does_not_delay_another_tenant() -> None:
    queue = FairQueue()
    for i in range(1000):
        queue.add(sequence(f"flood {i}", "a"))
    for _ in range(10):
        serve(queue)
    for i in range(3):
        queue.add(sequence(f"quiet {i}", "b"))
    served = order_of(queue)[:8]
    assert [served.index(f"quiet {i}") for i in range(3)] == [0, 2, 4] or [
        served.index(f"quiet {i}") for i in range(3)
    ] == [1, 3, 5]


@pytest.mark.parametrize(("weights", "parts"), [((1, 1), (30, 30)), ((1, 2), (20, 40)), ((0.5, 2.5), (10, 50))])
def test_parts_follow_weights(weights: tuple[float, float], parts: tuple[int, int]) -> None:
    queue = FairQueue()
    for i in range(100):
        queue.add(sequence(f"a{i}", "a", weight=weights[0]))
        queue.add(sequence(f"b{i}", "b", weight=weights[1]))
    served = [serve(queue).tenant for _ in range(60)]
    assert abs(served.count("a") - parts[0]) <= 1


def test_parts_are_of_work_not_of_requests() -> None:
    queue = FairQueue()
    for i in range(200):
        queue.add(sequence(f"a{i}", "long"))
        queue.add(sequence(f"b{i}", "short"))
    done = {"long": 0, "short": 0}
    for _ in range(110):
        head = queue.head(0)
        assert head is not None
        work = 100 if head.tenant == "long" else 10
        serve(queue, work)
        done[head.tenant] += work
    assert abs(done["long"] - done["short"]) <= 100


def test_users_share_the_part_of_their_key() -> None:
    queue = FairQueue()
    for i in range(100):
        queue.add(sequence(f"x{i}", f"many/{i}"))
        queue.add(sequence(f"y{i}", "one/only"))
        queue.add(sequence(f"z{i}", "one/other"))
    served = [serve(queue).tenant for _ in range(80)]
    assert sum(tenant.startswith("many") for tenant in served) == 40
    assert abs(served.count("one/only") - 20) <= 1


def test_classes_are_strict() -> None:
    queue = FairQueue()
    queue.add(sequence("batch", priority=-10))
    queue.add(sequence("live", "a"))
    queue.add(sequence("vip", "a", priority=7))
    queue.add(sequence("live too", "b"))
    assert queue.priorities() == [7, 0, -10]
    assert order_of(queue) == ["vip", "live", "live too", "batch"]


def test_a_pause_saves_nothing_up_and_forgives_nothing() -> None:
    queue = FairQueue()
    for i in range(50):
        queue.add(sequence(f"a{i}", "a"))
    for _ in range(40):
        serve(queue)
    for i in range(10):
        queue.add(sequence(f"b{i}", "b"))
    assert abs([serve(queue).tenant for _ in range(10)].count("b") - 5) <= 1, "b makes up for its absence"
    queue = FairQueue()
    queue.add(sequence("a0", "a"))
    queue.add(sequence("b0", "b"))
    first = queue.head(0)
    assert first is not None and first.tenant == "a"
    queue.take(first)
    queue.charge(first, 1000)
    queue.remove(first)
    queue.add(sequence("a1", "a"))
    for i in range(1, 9):
        queue.add(sequence(f"b{i}", "b"))
    assert order_of(queue)[-1] == "a1", "a has had more by leaving and coming back"


def test_put_back_is_first_again_and_cancel_takes_out_any() -> None:
    queue = FairQueue()
    all_ = [sequence(str(i), "a") for i in range(6)]
    for item in all_:
        queue.add(item)
    for item in all_[:3]:
        queue.take(item)
    for item in reversed(all_[:3]):
        queue.put_back(item)
    queue.remove(all_[4])
    queue.remove(all_[1])
    assert order_of(queue) == ["0", "2", "3", "5"]


def test_random_operations_keep_the_books() -> None:
    """Against a plain model: the next one's tenant has the least clock, and no tenant is remembered for ever."""
    random_ = random.Random(0)
    queue = FairQueue()
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    for step in range(6000):
        action = random_.random()
        if action < 0.4:
            new = sequence(
                str(step), f"k{random_.randrange(5)}/u{random_.randrange(4000)}", random_.choice((0, 0, -10))
            )
            queue.add(new)
            waiting.append(new)
        elif action < 0.7 and waiting:
            priority = queue.priorities()[0]
            head = queue.head(priority)
            assert head in waiting and head is not None and head.priority == priority
            rivals = [s for s in waiting if s.priority == priority]
            least = min(queue.order(s)[0] for s in rivals)
            assert queue.order(head)[0] == least
            assert queue.order(head)[1] == min(queue.order(s)[1] for s in rivals if s.group == head.group)
            queue.take(head)
            waiting.remove(head)
            running.append(head)
        elif action < 0.9 and running:
            queue.charge(random_.choice(running), random_.randrange(1, 500))
        elif running or waiting:
            pool = random_.choice([p for p in (running, waiting) if p])
            gone = pool.pop(random_.randrange(len(pool)))
            queue.remove(gone)
        assert len(queue) == len(waiting)
    for left in running + waiting:
        queue.remove(left)
    assert len(queue) == 0 and list(queue) == []
    groups = [group for root in queue._classes.values() for group in root.children.values()]
    assert len(groups) <= 10
    assert all(len(group.children) <= 2 * FORGET_AT for group in groups)
