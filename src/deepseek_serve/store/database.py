"""One database, SQLite or PostgreSQL, used from a few threads so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy
from sqlalchemy import URL, Connection, Engine, Row, event
from sqlalchemy.engine import make_url

from deepseek.errors import ConfigurationError
from deepseek_serve.store.errors import StoreError, StoreUnavailableError, store_error
from deepseek_serve.store.migrations import migrate

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
THREADS = 4
MAX_WAITING = 200  # calls; more than that means that the database has stopped answering
BUSY_TIMEOUT = 5.0  # seconds that a SQLite transaction waits for another process's
POSTGRES_OPTIONS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=15000 -c lock_timeout=10000 -c timezone=UTC",
}


class Database:
    """Short transactions in threads.

    Attributes:
        failure: why the last attempt to open it failed; None once it is open.
        up: the last transaction did not fail for the database's reasons.
        failures: transactions that did.
    """

    def __init__(self, url: str | URL) -> None:
        """Raises :class:`ConfigurationError` for a URL that cannot be used. Nothing is connected yet."""
        self._engine = _engine(url)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._waiting = 0
        self._open = False
        self.failure: str | None = "it has not been opened yet"
        self.up = False
        self.failures = 0

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    async def open(self) -> str:
        """Connect and bring the schema up to date; returns the database's random name.

        Raises :class:`StoreError` when that may work later, :class:`ConfigurationError` when it will not.
        """
        try:
            name = await self._run(migrate, write=True)
        except Exception as error:
            self.failure = str(error)
            raise
        self._open, self.failure = True, None
        return name

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The result of ``work`` in a transaction that changes nothing. Raises :class:`StoreError`."""
        self._check_open()
        return await self._run(work, write=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """The result of ``work`` in a transaction, committed. Raises :class:`StoreError`; then nothing was changed.

        Cancelling the caller does not undo a transaction that has begun.
        """
        self._check_open()
        return await self._run(work, write=True)

    async def close(self) -> None:
        """Let begun transactions end, and disconnect."""
        self._open, self.failure = False, "the server is shutting down"
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        self._engine.dispose()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailableError(f"the database is not open ({self.failure})")

    async def _run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        if self._waiting >= MAX_WAITING:
            raise StoreUnavailableError("too many calls wait for the database")
        self._waiting += 1
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, self._transaction, work, write)
            self.up = True
            return result
        except StoreError:
            self.up = False
            self.failures += 1
            raise
        finally:
            self._waiting -= 1

    def _transaction(self, work: Callable[[Connection], T], write: bool) -> T:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(deepseek_write=write)
                with connection.begin():
                    return work(connection)
        except Exception as error:
            if (known := store_error(error)) is not None:
                raise known from error
            raise


def as_struct(row: Row[Any], kind: type[S]) -> S:
    """The row's columns that ``kind`` has fields for; ``metadata`` and ``errors`` are decoded."""
    values = {name: row._mapping[name] for name in kind.__struct_fields__}
    for name in ("metadata", "errors"):
        if values.get(name) is not None:
            values[name] = msgspec.json.decode(values[name])
    return msgspec.convert(values, kind)


def sqlite_url(path: Path) -> URL:
    """The URL of a database file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigurationError(
            "the database URL cannot be read; write postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:///PATH."
        ) from error
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        engine = sqlalchemy.create_engine(
            parsed, connect_args={"timeout": BUSY_TIMEOUT}, pool_size=THREADS, max_overflow=0, pool_timeout=BUSY_TIMEOUT
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        try:
            return sqlalchemy.create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                connect_args=POSTGRES_OPTIONS,
                pool_size=THREADS,
                max_overflow=0,
                pool_pre_ping=True,
            )
        except ImportError as error:
            raise ConfigurationError("PostgreSQL needs psycopg: pip install 'deepseek-platform[postgres]'.") from error
    raise ConfigurationError(
        f"databases of the kind {parsed.drivername!r} are not supported; use postgresql+psycopg://... or sqlite:///PATH."
    )


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    """WAL: readers and the writer do not wait for each other. NORMAL: a crash of the machine, not of the process, may
    take the last transactions along, and never the file's consistency."""
    connection.isolation_level = None  # we begin transactions ourselves, below
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that will write takes the lock at its beginning: one that reads first could not get it later."""
    write = connection.get_execution_options().get("deepseek_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
