"""Stored responses: kept, changed, chained and forgotten, each key its own."""

from __future__ import annotations

import pytest

from deepseek_serve.errors import ApiError
from deepseek_serve.store.responses import ResponseRecord
from deepseek_serve.store.store import Store
from tests.serve.store.conftest import Times

pytestmark = pytest.mark.anyio


def response(
    name: str,
    *,
    previous: str | None = None,
    status: str = "completed",
    expires: int | None = None,
    owner: str | None = None,
) -> ResponseRecord:
    return ResponseRecord(
        id=name,
        tenant="t",
        created_at=1,
        expires_at=expires,
        model="m",
        status=status,
        previous_id=previous,
        body='{"text": "\\u0000 世界"}',
        input_items="[]",
        owner=owner,
    )


async def test_kept_changed_and_deleted(store: Store) -> None:
    await store.responses.add(response("resp_1", status="queued", owner="me"))
    await store.responses.add(response("resp_2", status="queued", owner="another"))
    assert not await store.responses.update("other", "resp_1", status="failed", body="{}")
    assert await store.responses.update("t", "resp_1", status="in_progress", body="[]")
    assert sorted(await store.responses.owners()) == ["another", "me"]
    assert [record.id for record in await store.responses.unfinished("me")] == ["resp_1"]
    assert await store.responses.unfinished_ids("me") == {"resp_1"}
    assert await store.responses.update("t", "resp_1", status="cancelled", body="{}")
    assert not await store.responses.update("t", "resp_1", status="completed", body="[]"), "it has ended"
    found = await store.responses.get("t", "resp_1")
    assert (found.status, found.body) == ("cancelled", "{}") and not await store.responses.unfinished("me")
    assert await store.responses.owners() == ["another"]
    for attempt in (store.responses.get, store.responses.delete):
        with pytest.raises(ApiError) as told:
            await attempt("other", "resp_1")
        assert told.value.status == 404
    await store.responses.delete("t", "resp_1")
    with pytest.raises(ApiError):
        await store.responses.get("t", "resp_1")


async def test_chains(store: Store) -> None:
    for i in range(5):
        await store.responses.add(response(f"resp_{i}", previous=f"resp_{i - 1}" if i else None))
    assert [r.id for r in await store.responses.chain("t", "resp_3", limit=10)] == [f"resp_{i}" for i in range(4)]
    assert [r.id for r in await store.responses.chain("t", "resp_3", limit=2)] == ["resp_2", "resp_3"]
    await store.responses.delete("t", "resp_1")
    with pytest.raises(ApiError, match="resp_1"):
        await store.responses.chain("t", "resp_3", limit=10)


async def test_expiry(store: Store, times: Times) -> None:
    await store.responses.add(response("resp_1", expires=int(times.wall) + 10))
    await store.responses.add(response("resp_2"))
    times.pass_by(10)
    with pytest.raises(ApiError):
        await store.responses.get("t", "resp_1")
    assert await store.responses.sweep() == 1
    assert (await store.responses.get("t", "resp_2")).id == "resp_2"
