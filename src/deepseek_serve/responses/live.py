"""The responses that this process is at work on, and the ends of those that another one left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path

import msgspec

from deepseek_serve.protocol.responses_api.objects import ResponseFailure, ResponseObject
from deepseek_serve.store.contents import hold_lock
from deepseek_serve.store.errors import StoreError
from deepseek_serve.store.files import plain_id
from deepseek_serve.store.store import Store

logger = logging.getLogger("deepseek.serve")

LIFETIME = 30 * 86_400  # seconds that a response is kept
POLL = 1.0  # seconds between looks at the database for cancellations that came to other processes
ADOPTION_INTERVAL = 30.0
LOG_LIFETIME = 60.0  # seconds that the events of a response in the background stay after its end
PATIENCE = 1.0  # seconds that an answer waits for its own storing
RETRY, MAX_RETRY = 0.5, 10.0
LAST_SAVES = 5.0


class Running:
    """A response in the background: it goes on whoever listens.

    Args:
        events: its events, as they are sent.
        resources: closed at its end.
        streamed: its events are kept for those who listen, now or later.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], resources: ExitStack, *, streamed: bool) -> None:
        self.streamed = streamed
        self._log: list[bytes] = []
        self._more = asyncio.Event()
        self._ended = False
        self.task = asyncio.create_task(self._run(events))
        self.task.add_done_callback(lambda _: self._end(resources))  # a task may be cancelled before it begins

    async def _run(self, source: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(source) as events:
            async for event in events:
                if self.streamed:
                    self._log.append(event)
                    self._wake()

    def _end(self, resources: ExitStack) -> None:
        resources.close()
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """The events behind the one of this number, until the last."""
        position = after + 1
        while True:
            more = self._more
            while position < len(self._log):
                yield self._log[position]
                position += 1
            if self._ended:
                return
            await more.wait()

    async def cancel(self) -> None:
        """End it early."""
        self.task.cancel()
        await asyncio.wait({self.task})


class LiveResponses:
    """One per server process.

    A response without an end has an owner: the process that is at work on it, which holds a lock on a file of its name.
    The kernel takes the lock from it when it dies, and whichever process of the same data directory notices ends the
    responses that it leaves, as failed. They are not run again: a client may have read a part of the answer.

    Attributes:
        owner: this process's name.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.owner = secrets.token_hex(16)
        self._lock: int | None = None
        self._running: dict[str, Running] = {}
        self._saves: dict[str, set[asyncio.Task[None]]] = {}

    def find(self, response_id: str) -> Running | None:
        """The response if it is in the background here, or was until a moment ago."""
        return self._running.get(response_id)

    def begin(
        self, response_id: str, events: AsyncGenerator[bytes, None], resources: ExitStack, *, streamed: bool
    ) -> Running:
        """Put a response into the background."""
        running = self._running[response_id] = Running(events, resources, streamed=streamed)
        running.task.add_done_callback(lambda task: self._ended(response_id, task))
        return running

    def _ended(self, response_id: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s failed", response_id, exc_info=task.exception())
        loop = asyncio.get_running_loop()
        loop.call_later(LOG_LIFETIME, self._running.pop, response_id, None)

    # -- storing ------------------------------------------------------------------------------------------------

    async def save(self, tenant: str, response: ResponseObject) -> None:
        """Store how far it is. A store that is not there holds nobody up: what it lacks is written when it is back."""
        await asyncio.wait({self.save_soon(tenant, response)}, timeout=PATIENCE)

    def save_soon(self, tenant: str, response: ResponseObject) -> asyncio.Task[None]:
        """As :meth:`save`, and returns at once."""
        task = asyncio.create_task(self._write(tenant, response))
        self._saves.setdefault(response.id, set()).add(task)
        task.add_done_callback(lambda done: self._saved(response.id, done))
        return task

    async def saved(self, response_id: str) -> None:
        """Return when what is known of the response's end is stored, or after a while."""
        if tasks := self._saves.get(response_id):
            await asyncio.wait(tasks, timeout=PATIENCE)

    def _saved(self, response_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._saves[response_id]
        tasks.discard(task)
        if not tasks:
            del self._saves[response_id]

    async def _write(self, tenant: str, response: ResponseObject) -> None:
        body, delay = msgspec.json.encode(response).decode(), RETRY
        while True:
            try:
                await self._store.responses.update(tenant, response.id, status=response.status, body=body)
                return
            except StoreError as error:
                logger.warning("%s waits for the store: %s", response.id, error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY)

    # -- what other processes do --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._store.opened.wait()
        adoption = 0.0
        while True:
            try:
                if self._lock is None:
                    self._lock = hold_lock(self._lock_of(self.owner))
                if time.monotonic() >= adoption:
                    adoption = time.monotonic() + ADOPTION_INTERVAL
                    await self._adopt()
                await self._look()
            except (StoreError, OSError) as error:
                logger.debug("responses wait for the store: %s", error)
            except Exception:
                logger.exception("looking after responses failed")
            await asyncio.sleep(POLL)

    async def stop(self) -> None:
        """Let what has ended be stored, if that is possible within seconds."""
        tasks = {running.task for running in self._running.values()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SAVES):
                await asyncio.gather(*tasks, return_exceptions=True)
                while self._saves:
                    await asyncio.wait({task for saves in self._saves.values() for task in saves})
        for task in (*tasks, *(task for saves in self._saves.values() for task in saves)):
            task.cancel()
        if self._lock is not None:
            if not self._saves:
                self._lock_of(self.owner).unlink(missing_ok=True)
            os.close(self._lock)

    def _lock_of(self, owner: str) -> Path:
        return self._store.data_dir / f"responses-{owner}.lock"

    async def _adopt(self) -> None:
        """End the responses of processes that have died."""
        for owner in await self._store.responses.owners():
            if owner == self.owner or not plain_id(owner):
                continue
            lock = hold_lock(self._lock_of(owner), create=False)
            if lock is None:  # it lives, or has a data directory of its own
                continue
            try:
                for record in await self._store.responses.unfinished(owner):
                    error = ResponseFailure("server_error", "The server ended before the response did. Ask again.")
                    body = msgspec.json.decode(record.body) | {"status": "failed", "error": error}
                    text = msgspec.json.encode(body).decode()
                    await self._store.responses.update(record.tenant, record.id, status="failed", body=text)
                    logger.warning("%s is failed: the process that was at work on it has died", record.id)
                self._lock_of(owner).unlink(missing_ok=True)
            finally:
                os.close(lock)

    async def _look(self) -> None:
        """End what was cancelled or deleted through another process."""
        here = {name for name, running in self._running.items() if not running.task.done()}
        if here:
            for name in here - await self._store.responses.unfinished_ids(self.owner):
                self._running[name].task.cancel()
