"""Opening, migrating, failing and coming back."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Connection, inspect, select, text

from deepseek.errors import ConfigurationError
from deepseek_serve.store import migrations, schema
from deepseek_serve.store.database import Database, sqlite_url
from deepseek_serve.store.errors import StoreFullError, StoreUnavailableError
from deepseek_serve.store.migrations import migrate
from deepseek_serve.store.store import DATABASE_FILE, Store
from tests.serve.postgres import Postgres, running_postgres

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[3]

PROCESS = """
import asyncio, sys
from pathlib import Path
from deepseek_serve.store.store import Store
from deepseek_serve.store.usage import Tokens

async def main():
    store = Store(Path(sys.argv[1]), sys.argv[2] or None)
    await store.open()
    for _ in range(20):
        store.usage.add("a", "m", Tokens(1))
        assert await store.usage.flush()
    await store.stop()

asyncio.run(main())
"""


async def test_processes_that_start_together_share_one_schema(tmp_path: Path, database_url: str | None) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "data"), database_url or ""]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) for _ in range(4)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, None, 60)
        assert process.returncode == 0, errors.decode()
    store = Store(tmp_path / "data", database_url)
    await store.open()
    assert (await store.usage.spent("a", 0)).requests == 80
    await store.stop()


async def test_steps_lead_from_older_versions_to_the_newest(tmp_path: Path, database_url: str | None) -> None:
    def add_column(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE deepseek_files ADD COLUMN colour VARCHAR(8)"))

    def fill_column(connection: Connection) -> None:
        connection.execute(text("UPDATE deepseek_files SET colour = 'red'"))

    database = Database(database_url or sqlite_url(tmp_path / "x.db"))
    name = await database.open()
    row = {"id": "file-1", "site": "s", "tenant": "", "created_at": 1, "bytes": 1, "filename": "f", "purpose": "batch"}
    await database.write(lambda c: c.execute(schema.files.insert().values(**row)) and None)
    newest = migrations.VERSION
    target, steps = newest + 2, {newest + 1: add_column, newest + 2: fill_column}
    assert await database.write(lambda c: migrate(c, target=target, steps=steps)) == name
    assert await database.write(lambda c: migrate(c, target=target, steps=steps)) == name  # nothing to do
    assert await database.read(lambda c: c.execute(text("SELECT colour FROM deepseek_files")).scalars().all()) == [
        "red"
    ]
    assert await database.read(lambda c: c.execute(select(schema.version.c.version)).scalar()) == target
    with pytest.raises(ConfigurationError, match=rf"version {target}.*up to {newest}.*Upgrade"):
        await database.open()
    await database.close()


async def test_a_step_that_fails_changes_nothing(tmp_path: Path, database_url: str | None) -> None:
    def half(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE deepseek_half (x INTEGER)"))
        raise RuntimeError("scripted failure")

    database = Database(database_url or sqlite_url(tmp_path / "x.db"))
    await database.open()
    with pytest.raises(RuntimeError):
        await database.write(lambda c: migrate(c, target=migrations.VERSION + 1, steps={migrations.VERSION + 1: half}))
    tables = await database.read(lambda c: inspect(c).get_table_names())
    assert "deepseek_half" not in tables
    found = await database.read(lambda c: c.execute(select(schema.version.c.version)).scalar())
    assert found == migrations.VERSION
    await database.close()


async def test_responses_of_the_first_schema_get_owners(tmp_path: Path, database_url: str | None) -> None:
    database = Database(database_url or sqlite_url(tmp_path / "x.db"))
    name = await database.open()

    def as_it_was(connection: Connection) -> None:
        connection.execute(text("DROP INDEX deepseek_responses_by_owner"))
        connection.execute(text("ALTER TABLE deepseek_responses DROP COLUMN owner"))
        connection.execute(schema.version.update().values(version=1))

    await database.write(as_it_was)
    assert await database.open() == name
    columns = await database.read(lambda c: [column["name"] for column in inspect(c).get_columns("deepseek_responses")])
    indexes = await database.read(lambda c: [index["name"] for index in inspect(c).get_indexes("deepseek_responses")])
    assert "owner" in columns and "deepseek_responses_by_owner" in indexes
    await database.close()


def test_every_version_has_its_step() -> None:
    assert sorted(migrations.STEPS) == list(range(2, migrations.VERSION + 1))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "cannot be read"),
        ("nonsense", "cannot be read"),
        ("mysql://localhost/x", "'mysql' are not supported"),
        ("sqlite://", "not supported"),
        ("sqlite:///:memory:", "not supported"),
        ("postgresql+asyncpg://localhost/x", "not supported"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Database(url)


async def test_any_path_can_hold_the_database(tmp_path: Path) -> None:
    folder = tmp_path / "50% #1? [ü] \u202e"
    store = Store(folder)
    await store.open()
    assert (folder / DATABASE_FILE).exists()
    assert folder.stat().st_mode & 0o077 == 0
    await store.stop()


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "data")
    with pytest.raises(StoreUnavailableError) as told:
        await store.open()
    assert "Not a directory" in str(told.value) and "Not a directory" not in told.value.body.message
    assert told.value.status == 503 and told.value.headers["retry-after"] == "5"
    await store.stop()


async def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"this is no database" * 1000)
    store = Store(tmp_path)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        await store.open()
    await store.stop()


async def test_full_database_says_507_and_takes_up_again(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "x.db"))
    await database.open()
    value = {"tenant": "t", "created_at": 1, "model": "m", "status": "completed", "input_items": "[]"}

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 40")
        for i in range(100):
            connection.execute(schema.responses.insert().values(id=f"r{i}", body="x" * 10_000, **value))

    with pytest.raises(StoreFullError) as told:
        await database.write(fill)
    assert told.value.status == 507 and told.value.headers["x-should-retry"] == "false"
    count = select(sqlalchemy.func.count()).select_from(schema.responses)
    assert await database.read(lambda c: c.execute(count).scalar()) == 0
    assert not (await database.read(lambda c: 0)) and database.up
    await database.close()


async def test_locked_by_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_serve.store.database.BUSY_TIMEOUT", 0.2)
    store = Store(tmp_path)
    await store.open()
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store._database.write(lambda c: 1)
    other.execute("ROLLBACK")
    other.close()
    assert await store._database.write(lambda c: 1) == 1
    await store.stop()


async def test_too_many_calls_are_refused_rather_than_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_serve.store.database.MAX_WAITING", 3)
    database = Database(sqlite_url(tmp_path / "x.db"))
    await database.open()
    results = await asyncio.gather(*(database.read(lambda c: 1) for _ in range(5)), return_exceptions=True)
    assert results[:3] == [1, 1, 1] and all(isinstance(r, StoreUnavailableError) for r in results[3:])
    await database.close()
    with pytest.raises(StoreUnavailableError, match="shutting down"):
        await database.read(lambda c: 1)


async def test_postgresql_goes_and_comes_back(tmp_path: Path) -> None:
    with running_postgres() as server:
        store = Store(tmp_path, server.new_database())
        await store.open()
        assert (await store.usage.spent("a", 0)).requests == 0
        server.stop()
        with pytest.raises(StoreUnavailableError):
            await store.usage.spent("a", 0)
        assert not store.up and store.failures == 1
        server.start()
        assert (await store.usage.spent("a", 0)).requests == 0
        assert store.up
        await store.stop()


async def test_postgresql_that_is_not_there_is_tried_again(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_serve.store.store.OPEN_RETRY", 0.1)
    store = Store(tmp_path, postgres.url("late"))
    await store.start()  # not an error: a server without its store still answers
    assert not store.opened.is_set()
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.files.room("t")
    postgres.execute("CREATE DATABASE late")
    await asyncio.wait_for(store.opened.wait(), 20)
    assert await store.files.room("t") > 0
    await store.stop()
