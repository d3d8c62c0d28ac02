from __future__ import annotations

import random

from deepseek.engine.block_pool import BlockPool, page_digests


def digests(tokens: list[int], salt: str = "") -> list[bytes]:
    return list(page_digests(tokens, 4, salt))


def test_digests_cover_salt_and_everything_before() -> None:
    a = digests([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert len(a) == 2
    assert digests([1, 2, 3, 4, 0, 6, 7, 8])[0] == a[0]
    assert digests([1, 2, 3, 4, 0, 6, 7, 8])[1] != a[1]
    assert digests([0, 2, 3, 4, 5, 6, 7, 8])[1] != a[1]
    assert digests([1, 2, 3, 4], "tenant")[0] != a[0]
    assert list(page_digests([1, 2, 3, 4, 5, 6, 7, 8], 4, "", a[:1])) == a[1:]


def test_pages_follow_each_other_and_leave_room_to_grow() -> None:
    pool = BlockPool(64)
    first = pool.allocate(2)
    second = pool.allocate(2)
    assert first and second
    for _ in range(10):
        first += pool.allocate(1, first[-1]) or []
        second += pool.allocate(1, second[-1]) or []
    assert first == list(range(first[0], first[0] + 12))
    assert second == list(range(second[0], second[0] + 12))


def test_untouched_memory_is_opened_as_it_is_needed() -> None:
    """Memory costs time when it is touched first: many short sequences stay in the beginning of a large cache."""
    pool = BlockPool(16 * 1024)
    for _ in range(500):
        pages = pool.allocate(2)
        assert pages and max(pages) < 1024
        pool.release(pages)
    held = [pool.allocate(2) or [] for _ in range(40)]
    assert max(map(max, held)) < 4 * 1024
    whole = pool.allocate(pool.num_free)
    assert whole is not None and sorted(whole + [page for pages in held for page in pages]) == list(range(16 * 1024))


def test_pages_that_need_not_lie_together_are_the_first_blank_ones() -> None:
    pool = BlockPool(1000, together=False)
    held = [pool.allocate(2) or [] for _ in range(5)]
    assert [page for pages in held for page in pages] == list(range(10))
    pool.release(held[1])
    assert pool.allocate(1, held[0][-1]) == [2]
    assert pool.allocate(2, held[4][-1]) == [10, 11]
    assert pool.allocate(3) == [3, 12, 13]


def test_resident_pages_are_opened_before_spilled_ones() -> None:
    pool = BlockPool(1000, resident=300)
    first = [page for _ in range(300) for page in pool.allocate(1) or []]
    assert sorted(first) == list(range(300))
    assert min(pool.allocate(700) or []) == 300


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4)
    assert pool.allocate(5) is None
    assert pool.num_free == 4
    assert pool.allocate(4) is not None
    assert pool.allocate(1) is None


def test_released_content_is_found_until_its_room_is_needed() -> None:
    pool = BlockPool(4)
    names = digests(list(range(16)))
    pages = pool.allocate(4)
    assert pages is not None
    for page, name in zip(pages, names, strict=True):
        pool.seal(page, name)
    pool.release(pages)
    assert pool.num_free == 4
    assert pool.match(names) == pages
    assert pool.allocate(1) == [pages[3]], "the last page of a sequence gives way first"
    assert pool.match(names) == pages[:3]
    pool.hold(pages[:3])
    assert pool.num_free == 0


def test_without_prefix_cache_nothing_is_found() -> None:
    pool = BlockPool(4, prefix_cache=False)
    names = digests(list(range(4)))
    pages = pool.allocate(1)
    assert pages is not None
    pool.seal(pages[0], names[0])
    pool.release(pages)
    assert pool.match(names) == []


def test_random_traffic_keeps_the_books() -> None:
    rng = random.Random(7)
    pool = BlockPool(32)
    live: list[list[int]] = []
    for step in range(3000):
        if live and rng.random() < 0.5:
            pool.release(live.pop(rng.randrange(len(live))))
        elif live and rng.random() < 0.3:
            shared = rng.choice(live)
            pool.hold(shared)
            live.append(list(shared))
        elif (pages := pool.allocate(rng.randint(1, 6))) is not None:
            if rng.random() < 0.7:
                pool.seal(pages[0], step.to_bytes(32, "big"))
            live.append(pages)
        held = {page for pages in live for page in pages}
        assert pool.num_free == 32 - len(held)
    for pages in live:
        pool.release(pages)
    assert pool.num_free == 32
    everything = pool.allocate(32)
    assert everything is not None
    assert sorted(everything) == list(range(32))
