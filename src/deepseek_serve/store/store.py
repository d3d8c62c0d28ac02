"""The store of one server: opened in the background, kept tidy, and closed with what was still in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deepseek.errors import ConfigurationError
from deepseek_serve.store.batches import BatchStore
from deepseek_serve.store.clock import Clock
from deepseek_serve.store.contents import Contents
from deepseek_serve.store.database import Database, sqlite_url
from deepseek_serve.store.errors import StoreError, store_error
from deepseek_serve.store.files import FileStore
from deepseek_serve.store.responses import ResponseStore
from deepseek_serve.store.usage import UsageStore

logger = logging.getLogger("deepseek.serve")

DISK_THREADS = 4
FLUSH_INTERVAL = 1.0  # seconds
SWEEP_INTERVAL = 300.0
OPEN_RETRY = 2.0
LAST_FLUSH = 5.0
DATABASE_FILE = "deepseek.sqlite3"


class Store:
    """Files, batches, responses and usage.

    Args:
        data_dir: folder of the contents of files and, without ``database_url``, of the database.
        database_url: as SQLAlchemy writes it; None for SQLite in ``data_dir``.
        quota: bytes of files that one tenant may store.

    Raises :class:`ConfigurationError` for a URL that cannot be used. Nothing is touched before :meth:`start`.
    """

    def __init__(
        self, data_dir: Path, database_url: str | None = None, *, quota: int = 10 << 30, clock: Clock | None = None
    ) -> None:
        self.clock = clock = clock or Clock()
        self.data_dir = data_dir
        self._own_database = database_url is None
        self._database = Database(database_url or sqlite_url(data_dir / DATABASE_FILE))
        self._contents = Contents(data_dir)
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self._tasks: list[asyncio.Task[None]] = []
        self.files = FileStore(self._database, self._contents, self._disk, clock, quota=quota)
        self.batches = BatchStore(self._database, self._contents, self.files, clock)
        self.responses = ResponseStore(self._database, clock)
        self.usage = UsageStore(self._database, clock)
        self.opened = asyncio.Event()

    @property
    def failure(self) -> str | None:
        """Why it is not open; None if it is."""
        return self._database.failure

    @property
    def up(self) -> bool:
        """The database's last transaction did not fail for the database's reasons."""
        return self._database.up

    @property
    def failures(self) -> int:
        """Transactions that failed for the database's reasons."""
        return self._database.failures

    async def open(self) -> None:
        """Make the folders, connect and bring the schema up to date.

        Raises :class:`StoreError` when that may work later, :class:`ConfigurationError` when it will not.
        """
        try:
            await self.files.on_disk(lambda: self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True))
            name = await self._database.open()
            await self.files.on_disk(lambda: self._contents.open(name))
        except OSError as error:
            raise store_error(error) or error from error
        self.opened.set()

    async def start(self) -> None:
        """Open it, or go on trying in the background: a server without its store still answers.

        Raises :class:`ConfigurationError` if trying again is useless.
        """
        try:
            await self.open()
        except StoreError as error:
            logger.error("the store cannot be opened; trying on: %s", error)
        self._tasks = [asyncio.create_task(self._keep_flushing()), asyncio.create_task(self._keep_tidy())]

    async def stop(self) -> None:
        """Write what is in memory, if that is possible within seconds, and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_FLUSH):
                if self.opened.is_set() and not await self.usage.flush():
                    logger.error("the usage of the last requests could not be written")
                await self._database.close()
        self._disk.shutdown(wait=False, cancel_futures=True)
        self._contents.close()

    async def _keep_flushing(self) -> None:
        while not self.opened.is_set():
            await asyncio.sleep(OPEN_RETRY)
            try:
                await self.open()
                logger.info("the store is open")
            except StoreError:
                continue
            except ConfigurationError as error:
                logger.error("the store cannot be used: %s", error)
                return
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            try:
                await self.usage.flush()
            except Exception:
                logger.exception("usage could not be written")

    async def _keep_tidy(self) -> None:
        await self.opened.wait()
        while True:
            try:
                removed = await self.files.sweep() + await self.responses.sweep()
                if removed:
                    logger.info("removed %d expired files and responses", removed)
            except (StoreError, OSError) as error:
                logger.warning("the store could not be tidied: %s", error)
            except Exception:
                logger.exception("the store could not be tidied")
            await asyncio.sleep(SWEEP_INTERVAL)


def default_data_dir() -> Path:
    """``$DEEPSEEK_DATA``, else ``$XDG_DATA_HOME/deepseek``, else ``~/.local/share/deepseek``. Not created."""
    own = os.environ.get("DEEPSEEK_DATA")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "deepseek"
