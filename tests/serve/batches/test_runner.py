"""Who runs which batch, in which order, and on whose account."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deepseek.config import EngineConfig
from deepseek.runtime.client import EngineClient
from deepseek_serve.auth import ApiKey
from deepseek_serve.batches.runner import BatchRunner, in_turns, server_name
from deepseek_serve.config import ServeConfig
from deepseek_serve.entry import BATCH_PRIORITY, BatchEntry
from deepseek_serve.models import ServedModel
from deepseek_serve.state import ServerState
from deepseek_serve.store.batches import BatchRecord
from deepseek_serve.store.clock import Clock
from deepseek_serve.store.contents import hold_lock
from deepseek_serve.store.store import Store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def state_of(tmp_path: Path, model: str = "m", **config: Any) -> ServerState:
    engine = EngineConfig(model=model)
    served = ServedModel((model,), model, engine, EngineClient(engine))
    return ServerState(ServeConfig(data_dir=str(tmp_path), **config), served)


def test_keys_take_turns() -> None:
    names = iter(itertools.count())
    fields = dict.fromkeys(BatchRecord.__struct_fields__)

    def record(tenant: str) -> BatchRecord:
        return BatchRecord(**fields | {"id": f"{next(names)}", "tenant": tenant})  # type: ignore[arg-type]

    records = [record(tenant) for tenant in "aaabbc"]
    assert [r.tenant + r.id for r in in_turns(records)] == ["a0", "b3", "c5", "a1", "b4", "a2"]


def test_lines_run_behind_everybody_on_their_keys_account(tmp_path: Path) -> None:
    key = ApiKey.of("sk-1", name="team", weight=3.0, priority=5, concurrency=1)
    state = state_of(tmp_path, api_keys=(key,))
    with ExitStack() as resources:
        entry = BatchEntry(state, "team", resources, user_id="u")
        entry.take(100)
        assert (entry.priority, entry.weight) == (BATCH_PRIORITY, 3.0)
        assert (entry.account, entry.tenant, entry.cache_salt) == ("team", "team/u", "team:u")
        assert state.admission.in_use == 0
        gone = BatchEntry(state, "removed-key", resources)
        assert (gone.account, gone.weight) == ("removed-key", 1.0)


async def create(store: Store) -> tuple[str, str]:
    """(batch, server) of another model's."""
    with await store.files.new_content() as content:
        content.write(b"{}\n")
        source = await store.files.add("", content, filename="in", purpose="batch", lifetime=None)
    options: dict[str, Any] = {"metadata": None, "output_expires_after": None}
    batch = await store.batches.create(
        "", server="another", endpoint="/v1/completions", input_file_id=source.id, **options
    )
    return batch.id, "another"


@pytest.mark.anyio
async def test_batches_of_a_model_that_is_served_no_more_come_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_of(tmp_path)
    store = state.store
    await store.open()
    names = [(await create(store))[0] for _ in range(3)]
    assert server_name(state) != "another"
    await store.batches.start(names[1], total=1, model="x")
    await store.batches.start(names[2], total=1, model="x")
    await store.batches.cancel("", names[2])
    monkeypatch.setattr("deepseek_serve.batches.runner.ADOPTION_INTERVAL", 0.0)
    monkeypatch.setattr("deepseek_serve.batches.runner.POLL", 0.05)
    runner = asyncio.create_task(BatchRunner(state).run())

    async def statuses(*wanted: str) -> None:
        async with asyncio.timeout(10):
            while [(await store.batches.get("", name)).status for name in names] != list(wanted):
                await asyncio.sleep(0.05)

    await statuses("validating", "in_progress", "cancelled")
    async with asyncio.timeout(10):  # and the lock is free for a server of that model
        while (lock := hold_lock(tmp_path / "batches-another.lock")) is None:
            await asyncio.sleep(0.05)
    os.close(lock)
    late = Clock(lambda: 2**40)
    monkeypatch.setattr(store.batches, "_clock", late)
    monkeypatch.setattr(store, "clock", late)
    await statuses("failed", "expired", "cancelled")
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await store.stop()


@pytest.mark.anyio
async def test_one_process_runs_a_models_batches(tmp_path: Path) -> None:
    first, second, other = state_of(tmp_path), state_of(tmp_path), state_of(tmp_path, "another model")
    await first.store.open()
    runners = [BatchRunner(state) for state in (first, second, other)]
    one = runners[0]._try_lock(server_name(first))
    assert one is not None
    assert runners[1]._try_lock(server_name(second)) is None
    assert runners[2]._try_lock(server_name(other)) is not None
    await first.store.stop()


def test_settings_travel_as_json(tmp_path: Path) -> None:
    config = ServeConfig(data_dir=str(tmp_path), database_url="postgresql+psycopg://u@h/d", batch_concurrency=3)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServeConfig) == config
