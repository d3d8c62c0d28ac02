"""Works on the batches of this server's model, a few lines at a time, beside live requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable

import msgspec

from deepseek_serve.batches.work import ActiveBatch
from deepseek_serve.errors import ApiError
from deepseek_serve.state import ServerState
from deepseek_serve.store.batches import BatchRecord
from deepseek_serve.store.contents import hold_lock
from deepseek_serve.store.errors import StoreError

logger = logging.getLogger("deepseek.serve")

POLL = 1.0  # seconds between looks at the database for batches and cancellations of other processes
LOCK_RETRY = 2.0
MAX_ACTIVE = 32  # batches at work; they take turns at the slots
READY_POLL = 0.1
ADOPTION_INTERVAL = 30.0
MAX_BACKOFF = 60.0
LAST_SAVES = 5.0


class _Work(msgspec.Struct):
    batch: ActiveBatch
    task: asyncio.Task[None]


class BatchRunner:
    """One per server process. Of the processes that serve one model from one data directory, one runs the batches:
    the one that holds the lock, which the kernel takes from it when it dies.

    Attributes:
        in_flight: lines in work.
        slots: bounds them.
        alone: held by a line that may have ended the engine.
        validating: held by the batch whose input is being validated, which takes a processor.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.slots = asyncio.Semaphore(state.config.batch_concurrency)
        self.alone = asyncio.Lock()
        self.validating = asyncio.Lock()
        self.in_flight = 0
        self._draining = False
        self._locks: dict[str, int] = {}  # of batches of which servers
        self._next_adoption = 0.0
        self._active: dict[str, _Work] = {}
        self._waits: dict[str, tuple[float, float]] = {}  # batch -> (monotonic time of the next attempt, delay)

    @property
    def active(self) -> int:
        """Batches in work."""
        return len(self._active)

    async def run(self) -> None:
        """Work until cancelled."""
        await self.state.store.opened.wait()
        self._locks[server_name(self.state)] = await self._lock()
        try:
            while True:
                try:
                    await self._adopt()
                    await self._look()
                except (StoreError, OSError) as error:
                    logger.debug("batches wait for the store: %s", error)
                except Exception:
                    logger.exception("looking for batches failed")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self.state.batches_changed.wait()
                self.state.batches_changed.clear()
        finally:
            await self._stop()
            for lock in self._locks.values():
                os.close(lock)

    def drain(self) -> None:
        """Begin no further line."""
        self._draining = True

    async def ready(self, model: str) -> None:
        """Return when a line for ``model`` may be run: its engine is there, and the server is not about to end."""
        while self._draining or not self._serves(model):
            await asyncio.sleep(READY_POLL)

    def _serves(self, model: str) -> bool:
        try:
            return self.state.model(model).ready
        except ApiError:  # it may be loaded again before the window closes
            return False

    async def _lock(self) -> int:
        """The lock of this model's batches; waits while another process has it."""
        while True:
            with contextlib.suppress(OSError):
                descriptor = self._try_lock(server_name(self.state))
                if descriptor is not None:
                    return descriptor
            await asyncio.sleep(LOCK_RETRY)

    def _try_lock(self, server: str) -> int | None:
        return hold_lock(self.state.store.data_dir / f"batches-{server[:16]}.lock")

    async def _adopt(self) -> None:
        """Take responsibility for the end of batches that are over or cancelled, and whose model is served no more."""
        if time.monotonic() < self._next_adoption:
            return
        self._next_adoption = time.monotonic() + ADOPTION_INTERVAL
        for server in await self.state.store.batches.waiting_for(exclude=list(self._locks)):
            lock = self._try_lock(server)
            if lock is not None:
                self._locks[server] = lock

    async def _look(self) -> None:
        """Take up batches, and pass cancellations on."""
        for batch_id in [name for name, work in self._active.items() if work.task.done()]:
            self._ended(batch_id, self._active.pop(batch_id).task)
        own = server_name(self.state)
        records = await self.state.store.batches.unfinished(own, adopted=[name for name in self._locks if name != own])
        for record in records:
            if record.status == "cancelling" and record.id in self._active:
                self._active[record.id].batch.cancel()
        for server in set(self._locks) - {own} - {record.server for record in records}:
            os.close(self._locks.pop(server))  # nothing more to do for it
        now = time.monotonic()
        for record in in_turns(records):
            if len(self._active) >= MAX_ACTIVE or self._draining:
                break
            if record.id not in self._active and self._waits.get(record.id, (0.0, 0.0))[0] <= now:
                batch = ActiveBatch(self, record)
                task = asyncio.create_task(batch.run(), name=record.id)
                task.add_done_callback(lambda _: self.state.batches_changed.set())
                self._active[record.id] = _Work(batch, task)

    def _ended(self, batch_id: str, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._waits.pop(batch_id, None)
            return
        delay = min(2 * self._waits.get(batch_id, (0.0, POLL / 2))[1], MAX_BACKOFF)
        self._waits[batch_id] = (time.monotonic() + delay, delay)
        unexpected = None if isinstance(error, StoreError) else error
        logger.error("%s is taken up again in %.0f s: %s", batch_id, delay, error, exc_info=unexpected)

    async def _stop(self) -> None:
        """Leave the batches as they are, with the results that are there."""
        works = list(self._active.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SAVES):
                for work in works:
                    work.task.cancel()
                await asyncio.gather(*(work.task for work in works), return_exceptions=True)


def server_name(state: ServerState) -> str:
    """What a batch's row says of the servers that may run it: they were started with the same model."""
    return hashlib.sha256(state.home.encode()).hexdigest()


def in_turns(records: Iterable[BatchRecord]) -> list[BatchRecord]:
    """Every key's first batch, then every key's second one, and so on; each by age."""
    rank: Counter[str] = Counter()
    ranked: list[tuple[int, int, BatchRecord]] = []
    for record in records:
        ranked.append((rank[record.tenant], len(ranked), record))
        rank[record.tenant] += 1
    return [record for _, _, record in sorted(ranked, key=lambda item: item[:2])]
