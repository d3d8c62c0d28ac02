"""Files: whose they are, how much there may be, and what is tidied up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_serve.errors import ApiError
from deepseek_serve.store import files as files_module
from deepseek_serve.store.clock import DISTRUST
from deepseek_serve.store.errors import StoreUnavailableError
from deepseek_serve.store.files import BATCH_LIFETIME, FileRecord, Page
from deepseek_serve.store.store import Store
from tests.serve.store.conftest import Times

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[3]


async def add(
    store: Store, data: bytes = b"data", *, tenant: str = "t", purpose: str = "user_data", lifetime: int | None = None
) -> FileRecord:
    with await store.files.new_content() as content:
        content.write(data)
        return await store.files.add(tenant, content, filename="a.txt", purpose=purpose, lifetime=lifetime)


async def read(store: Store, record: FileRecord) -> bytes:
    with await store.files.open(record) as stream:
        return stream.read()


def contents(store: Store) -> set[str]:
    """Names of everything that lies in the data directory's folders."""
    return {p.name for folder in ("files", "partial") for p in (store.data_dir / folder).rglob("*") if p.is_file()}


async def test_kept_listed_and_deleted(store: Store, times: Times) -> None:
    first, second = await add(store, b"one"), await add(store, b"two", purpose="batch")
    assert await read(store, first) == b"one" and first.expires_at is None
    assert second.expires_at == int(times.wall) + BATCH_LIFETIME
    assert await store.files.get("t", first.id) == first
    assert await store.files.listed("t", Page()) == ([second, first], False)
    assert await store.files.listed("t", Page(), "batch") == ([second], False)
    await store.files.delete("t", first.id)
    assert first.id not in contents(store) and second.id in contents(store)
    with pytest.raises(ApiError) as gone:
        await store.files.delete("t", first.id)
    assert gone.value.status == 404


async def test_other_keys_see_nothing(store: Store) -> None:
    record = await add(store)
    for attempt in (store.files.get, store.files.delete):
        with pytest.raises(ApiError) as told:
            await attempt("other", record.id)
        assert told.value.status == 404
    assert await store.files.listed("other", Page()) == ([], False)
    with pytest.raises(ApiError) as cursor:
        await store.files.listed("other", Page(after=record.id))
    assert cursor.value.status == 400


async def test_other_data_directories_see_nothing(store: Store, database_url: str | None, tmp_path: Path) -> None:
    record = await add(store)
    elsewhere = Store(tmp_path / "elsewhere", database_url)
    await elsewhere.open()
    assert await elsewhere.files.listed("t", Page()) == ([], False)
    await elsewhere.files.sweep()
    assert await store.files.get("t", record.id) == record
    await elsewhere.stop()


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages(store: Store, order: str) -> None:
    ids = [(await add(store)).id for _ in range(5)]
    if order == "desc":
        ids.reverse()
    found: list[str] = []
    more, after = True, None
    while more:
        records, more = await store.files.listed("t", Page(after, 2, order))  # type: ignore[arg-type]
        assert 0 < len(records) <= 2
        found += [record.id for record in records]
        after = found[-1]
    assert found == ids
    assert await store.files.listed("t", Page(after, 2, order)) == ([], False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "file-x", "../../etc/passwd", "\x00", "ü" * 10, "a" * 65, "' OR 1=1 --", "%"])
async def test_ids_that_are_none(store: Store, name: str) -> None:
    await add(store)
    for attempt in (store.files.get("t", name), store.files.delete("t", name)):
        with pytest.raises(ApiError) as told:
            await attempt
        assert told.value.status == 404 and len(told.value.body.message) < 500
    with pytest.raises(ApiError) as cursor:
        await store.files.listed("t", Page(after=name))
    assert cursor.value.status == 400


async def test_quota(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = await add(store, b"x" * 6_000)
    assert await store.files.room("t") == 4_000
    with pytest.raises(ApiError) as told:
        await add(store, b"x" * 4_001)
    assert (told.value.status, told.value.body.code) == (413, "storage_quota_exceeded")
    assert contents(store) - {record.id} == {name for name in contents(store) if name.endswith(".lock")}
    await add(store, b"x" * 4_000)
    with pytest.raises(ApiError):
        await store.files.room("t")
    assert await store.files.room("other") == 10_000
    monkeypatch.setattr(files_module, "MAX_FILES", 2)
    await store.files.delete("t", record.id)
    await add(store, b"x")
    with pytest.raises(ApiError):
        await add(store, b"x")


async def test_uploads_at_a_time_share_the_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.files.upload("t", 100) as first, store.files.upload("t", 100) as second:
        first(60)
        with pytest.raises(ApiError) as told:
            second(60)
        assert told.value.status == 413
        with store.files.upload("other", 100) as third:
            third(100)
    with store.files.upload("t", 100) as again:
        again(100)
    monkeypatch.setattr(files_module, "MAX_UPLOADS", 1)
    with store.files.upload("t", 100), pytest.raises(ApiError) as full, store.files.upload("other", 1):
        pass
    assert full.value.status == 503 and full.value.headers["retry-after"]


async def test_expiry(store: Store, times: Times) -> None:
    short, kept = await add(store, lifetime=3600), await add(store)
    times.pass_by(3599)
    assert await store.files.get("t", short.id) == short
    times.pass_by(1)
    with pytest.raises(ApiError):
        await store.files.get("t", short.id)
    assert await store.files.listed("t", Page()) == ([kept], False)
    assert await store.files.sweep() == 1
    assert short.id not in contents(store) and kept.id in contents(store)


async def test_a_clock_that_is_set_deletes_nothing(store: Store, times: Times) -> None:
    record = await add(store, lifetime=3600)
    times.wall += 10 * 365 * 86_400
    with pytest.raises(ApiError):
        await store.files.get("t", record.id)
    assert await store.files.sweep() == 0
    times.pass_by(DISTRUST - 1)
    assert await store.files.sweep() == 0
    times.wall -= 10 * 365 * 86_400 + DISTRUST  # and back, a little before
    assert await store.files.sweep() == 0
    assert await read(store, await store.files.get("t", record.id)) == b"data"
    times.pass_by(DISTRUST + 3600)
    assert await store.files.sweep() == 1


async def test_orphans_are_swept_when_they_are_old(store: Store) -> None:
    record = await add(store)
    folder = store.files.path(record.id).parent
    for name, age in (("file-old", 7200), ("file-new", 60)):
        (folder / name).write_bytes(b"lost its row in a crash")
        when = folder.stat().st_mtime - age
        os.utime(folder / name, (when, when))
    os.utime(folder / record.id, (1, 1))
    await store.files.sweep()
    assert {path.name for path in folder.iterdir()} == {record.id, "file-new"}


async def test_another_database_of_the_same_folder_sweeps_nothing(store: Store, tmp_path: Path) -> None:
    record = await add(store)
    os.utime(store.files.path(record.id), (1, 1))
    other = Store(tmp_path / "data", f"sqlite:///{tmp_path / 'other.db'}")
    await other.open()
    await other.files.sweep()
    await other.stop()
    assert await read(store, record) == b"data"


async def test_content_that_was_removed_by_hand(store: Store) -> None:
    record = await add(store)
    store.files.path(record.id).unlink()
    with pytest.raises(StoreUnavailableError):
        await store.files.open(record)
    await store.files.delete("t", record.id)


WRITER = """
import sys
from pathlib import Path
from deepseek_serve.store.contents import Contents

contents = Contents(Path(sys.argv[1]))
contents.open(sys.argv[2])
content = contents.new()
content.write(b"x" * 100_000)
print("ready", flush=True)
sys.stdin.read()
"""


async def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(store: Store) -> None:
    database = store.files.path("x").parent.name
    command = [sys.executable, "-c", WRITER, str(store.data_dir), database]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        partial = store.data_dir / "partial"
        before = set(partial.iterdir())
        assert len(before) == 6  # a folder and a lock each, and the store's own
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        again = Store(store.data_dir)
        await again.open()
        await again.stop()
        assert len(set(partial.iterdir()) & before) == 4
        assert sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) > 90_000
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def test_many_at_once(store: Store) -> None:
    records = await asyncio.gather(*(add(store, bytes([i]) * 100) for i in range(40)))
    assert len({record.id for record in records}) == 40
    assert [await read(store, record) for record in records] == [bytes([i]) * 100 for i in range(40)]
