"""The steps of a batch, and results that are kept once."""

from __future__ import annotations

import asyncio

import pytest

from deepseek_serve.errors import ApiError
from deepseek_serve.store import batches as batches_module
from deepseek_serve.store.batches import WINDOW, BatchProblem, BatchRecord, LineResult
from deepseek_serve.store.files import FileRecord, Page
from deepseek_serve.store.store import Store
from deepseek_serve.store.usage import Tokens
from tests.serve.store.conftest import Times

pytestmark = pytest.mark.anyio
SERVER = "server"


async def create(store: Store, tenant: str = "t", **options: object) -> BatchRecord:
    with await store.files.new_content() as content:
        content.write(b"{}\n")
        source = await store.files.add(tenant, content, filename="in", purpose="batch", lifetime=None)
    values: dict[str, object] = {"metadata": None, "output_expires_after": None} | options
    return await store.batches.create(
        tenant,
        server=SERVER,
        endpoint="/v1/completions",
        input_file_id=source.id,
        **values,  # type: ignore[arg-type]
    )


def output(store: Store) -> FileRecord:
    return store.files.record("t", 5, filename="out", purpose="batch_output", lifetime=None, file_id="file-out")


async def test_from_the_beginning_to_the_end(store: Store, times: Times) -> None:
    made = await create(store, metadata={"k": "世界\u0000"})
    assert made.status == "validating" and made.expires_at == made.created_at + WINDOW
    assert made.metadata == {"k": "世界\u0000"}
    assert [batch.id for batch in await store.batches.unfinished(SERVER)] == [made.id]
    assert await store.batches.unfinished("another model's") == []
    assert await store.batches.start(made.id, total=3, model="m")
    assert not await store.batches.start(made.id, total=3, model="m")
    tokens = Tokens(1, 2, 3, 4)
    await store.batches.add_result(made.id, LineResult(1, True, '"one\\u0000"'), tokens)
    await store.batches.add_result(made.id, LineResult(3, False, "three"), Tokens())
    await asyncio.gather(*(store.batches.add_result(made.id, LineResult(2, True, f"{i}"), tokens) for i in range(5)))
    assert await store.batches.finished_lines(made.id) == {1, 2, 3}
    first = await store.batches.results(made.id, after=0, limit=2)
    assert [result.line for result in first] == [1, 2] and first[0].result == '"one\\u0000"'
    assert [result.line for result in await store.batches.results(made.id, after=2, limit=2)] == [3]
    now = await store.batches.get("t", made.id)
    assert (now.status, now.total, now.completed, now.failed, now.model) == ("in_progress", 3, 2, 1, "m")
    assert (now.prompt_tokens, now.cached_tokens, now.completion_tokens, now.reasoning_tokens) == (2, 4, 6, 8)
    assert await store.batches.finalizing(made.id)
    for _ in range(2):  # a crash between may repeat it
        await store.batches.finish(made.id, "completed", output(store), None)
    end = await store.batches.get("t", made.id)
    assert (end.status, end.output_file_id, end.error_file_id) == ("completed", "file-out", None)
    assert end.completed_at == int(times.wall) and end.cancelled_at is None
    assert (await store.files.get("t", "file-out")).bytes == 5
    assert await store.batches.finished_lines(made.id) == set() and await store.batches.unfinished(SERVER) == []


async def test_cancelling(store: Store) -> None:
    made = await create(store)
    await store.batches.start(made.id, total=1, model="m")
    told = await store.batches.cancel("t", made.id)
    assert told.status == "cancelling" and told.cancelling_at is not None
    assert await store.batches.cancel("t", made.id) == told
    await store.batches.add_result(made.id, LineResult(1, True, "late, but done"), Tokens())
    assert (await store.batches.get("t", made.id)).completed == 1
    assert not await store.batches.finalizing(made.id)
    await store.batches.finish(made.id, "expired", None, None)  # it was cancelled before it expired
    end = await store.batches.get("t", made.id)
    assert end.status == "cancelled" and end.cancelled_at is not None and end.expired_at is None
    await store.batches.add_result(made.id, LineResult(2, True, "too late"), Tokens())
    assert await store.batches.finished_lines(made.id) == set()
    assert (await store.batches.get("t", made.id)).completed == 1


async def test_failing(store: Store) -> None:
    made = await create(store)
    problems = [BatchProblem("invalid_json_line", "It is not.", 1, None)]
    await store.batches.fail(made.id, problems)
    end = await store.batches.get("t", made.id)
    assert end.status == "failed" and end.errors == problems
    assert not await store.batches.start(made.id, total=1, model="m")
    with pytest.raises(ApiError) as told:
        await store.batches.cancel("t", made.id)
    assert told.value.status == 409
    cancelled = await create(store)
    await store.batches.cancel("t", cancelled.id)
    await store.batches.fail(cancelled.id, problems)
    assert (await store.batches.get("t", cancelled.id)).status == "cancelling"


async def test_an_input_that_is_in_use_stays(store: Store, times: Times) -> None:
    made = await create(store)
    with pytest.raises(ApiError) as told:
        await store.files.delete("t", made.input_file_id)
    assert told.value.status == 409 and told.value.headers["x-should-retry"] == "false"
    times.pass_by(40 * 86_400)
    assert await store.files.sweep() == 0 and store.files.path(made.input_file_id).exists()
    await store.batches.fail(made.id, [])
    assert await store.files.sweep() == 1 and not store.files.path(made.input_file_id).exists()


async def test_number_of_unfinished_ones_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MAX_UNFINISHED", 2)
    first = await create(store)
    await create(store)
    with pytest.raises(ApiError) as told:
        await create(store)
    assert told.value.status == 429
    await create(store, "other")
    await store.batches.fail(first.id, [])
    await create(store)


async def test_pages_and_keys(store: Store) -> None:
    ids = [(await create(store)).id for _ in range(3)][::-1]
    records, more = await store.batches.listed("t", Page(None, 2))
    assert [record.id for record in records] == ids[:2] and more
    records, more = await store.batches.listed("t", Page(ids[1], 2))
    assert [record.id for record in records] == ids[2:] and not more
    assert await store.batches.listed("other", Page()) == ([], False)
    for attempt in (store.batches.get, store.batches.cancel):
        with pytest.raises(ApiError) as told:
            await attempt("other", ids[0])
        assert told.value.status == 404
