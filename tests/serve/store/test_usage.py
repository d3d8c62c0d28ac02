"""Usage: added in memory, written in groups, and right whatever happens between."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deepseek_serve.store import usage as usage_module
from deepseek_serve.store.store import Store
from deepseek_serve.store.usage import HOUR, Spent, Tokens, UsageRow
from tests.serve.postgres import running_postgres
from tests.serve.store.conftest import Times

pytestmark = pytest.mark.anyio
T = Tokens(10, 4, 3, 1)


async def everything(store: Store, **options: object) -> list[UsageRow]:
    wanted: dict[str, object] = {"tenant": None, "bucket": HOUR, "by_model": True} | options
    return await store.usage.rows(0, 2**40, **wanted)  # type: ignore[arg-type]


async def test_adds_up_over_flushes(store: Store, times: Times) -> None:
    hour = int(times.wall) // HOUR * HOUR
    store.usage.add("a", "m", T)
    store.usage.add("a", "m", T, "cancelled")
    assert await store.usage.flush() and store.usage.waiting == 0
    store.usage.add("a", "m", Tokens(1), "failed")
    store.usage.add("b", "m", T)
    before = await everything(store)
    assert await store.usage.flush()
    assert before == await everything(store)  # what waits is counted too
    assert before == [
        UsageRow("a", "m", hour, Spent(3, 1, 1, 21, 8, 6, 2)),
        UsageRow("b", "m", hour, Spent(1, 0, 0, 10, 4, 3, 1)),
    ]


async def test_buckets_models_and_keys(store: Store, times: Times) -> None:
    day = int(times.wall) // 86_400 * 86_400
    times.wall = day + 10.0
    for key, model, hours in (("a", "m", 0), ("a", "n", 1), ("a", "m", 25), ("b", "m", 2)):
        times.wall = day + hours * HOUR + 59.0
        store.usage.add(key, model, Tokens(1))
    await store.usage.flush()
    one = Spent(1, prompt_tokens=1)
    by_day = await everything(store, tenant="a", bucket=86_400, by_model=False)
    assert by_day == [UsageRow("a", "", day, one + one), UsageRow("a", "", day + 86_400, one)]
    hourly = await store.usage.rows(day + HOUR, day + 25 * HOUR, tenant="a", bucket=HOUR, by_model=True)
    assert hourly == [UsageRow("a", "n", day + HOUR, one)]
    assert (await store.usage.spent("a", day)).requests == 3
    assert (await store.usage.spent("a", day + HOUR + 1800)).requests == 2  # of the whole hour
    assert await store.usage.spent("nobody", 0) == Spent()


async def test_two_servers_write_the_same_rows(tmp_path: Path, database_url: str | None, store: Store) -> None:
    other = Store(tmp_path / "data", database_url)
    await other.open()
    for _ in range(20):
        for one in (store, other):
            for model in ("m", "n", "o"):
                one.usage.add("a", model, Tokens(1))
        await asyncio.gather(store.usage.flush(), other.usage.flush())
    await other.stop()
    assert (await store.usage.spent("a", 0)).requests == 120


async def test_more_rows_than_one_statement_takes(store: Store) -> None:
    for i in range(usage_module.WRITE_AT_ONCE + 1):
        store.usage.add(f"key-{i}", "m", Tokens(1))
    assert await store.usage.flush()
    assert len(await everything(store)) == usage_module.WRITE_AT_ONCE + 1


async def test_waits_within_a_bound_for_a_database_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "MAX_PENDING", 3)
    with running_postgres() as server:
        store = Store(tmp_path, server.new_database())
        await store.open()
        store.usage.add("a", "m", T)
        assert await store.usage.flush()
        server.stop()
        for key in ("a", "b", "c", "d", "e", "a"):
            store.usage.add(key, "m", T)
        assert not await store.usage.flush()
        assert not await store.usage.flush()
        assert (store.usage.waiting, store.usage.lost, store.usage.failures, store.up) == (3, 2, 2, False)
        server.start()
        assert await store.usage.flush()
        assert (await store.usage.spent("a", 0)).requests == 3 and store.up
        await store.stop()


async def test_what_is_left_is_written_at_the_end(tmp_path: Path, database_url: str | None) -> None:
    store = Store(tmp_path, database_url)
    await store.start()
    store.usage.add("a", "m", T)
    await store.stop()
    again = Store(tmp_path, database_url)
    await again.open()
    assert (await again.usage.spent("a", 0)).requests == 1
    await again.stop()
