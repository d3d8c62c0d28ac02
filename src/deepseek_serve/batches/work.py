"""One batch at work, from wherever it was left to its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from itertools import islice
from typing import Any, Protocol

import msgspec
import pydantic

from deepseek.errors import DeepSeekError, EngineDeadError, EngineOverloadedError
from deepseek_serve.batches.endpoints import ENDPOINTS
from deepseek_serve.batches.lines import LineTooLongError, parse, read_lines, scan
from deepseek_serve.batches.results import answered, not_run, refused, tokens_of
from deepseek_serve.errors import api_error
from deepseek_serve.state import ServerState
from deepseek_serve.store.batches import WINDOW, BatchProblem, BatchRecord, BatchStatus, LineResult
from deepseek_serve.store.contents import PartialContent
from deepseek_serve.store.errors import StoreError
from deepseek_serve.store.files import FileRecord
from deepseek_serve.store.usage import Tokens

logger = logging.getLogger("deepseek.serve")

READ_AHEAD = 32  # lines taken from the input at a time
PAGE = 50  # results taken from the database at a time
MAX_DEATHS = 3  # of the engine under one line, the later ones under it alone
RETRY = 0.5  # seconds
MAX_RETRY = 10.0


class Shared(Protocol):
    """What batches at work share."""

    state: ServerState
    slots: asyncio.Semaphore
    alone: asyncio.Lock
    validating: asyncio.Lock
    in_flight: int

    async def ready(self, model: str) -> None:
        """Return when a line for this model may be run."""


class ActiveBatch:
    """A batch that this server works on.

    A line during which the engine died is run again, alone: whoever is in work with a line that kills the engine is not
    to blame. One that ends the engine :data:`MAX_DEATHS` times gets the error.
    """

    def __init__(self, shared: Shared, record: BatchRecord) -> None:
        self._shared = shared
        self._state = shared.state
        self._store = shared.state.store
        self._batch = record
        self._model = record.model or ""
        self._endpoint = ENDPOINTS[record.endpoint]
        self._path = self._store.files.path(record.input_file_id)
        self._saves: set[asyncio.Task[None]] = set()
        self._suspects: list[tuple[int, bytes]] = []
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Its client wants no more of it."""
        self._cancelled.set()

    async def run(self) -> None:
        """Work until it has ended. Raises :class:`StoreError`, and can be called again then."""
        if self._batch.status == "cancelling":
            self.cancel()
        started = self._batch.in_progress_at is not None
        try:
            if self._batch.status == "validating":
                started = await self._unless_cancelled(self._validate()) or False
                if not started and not self._cancelled.is_set():
                    return
            end: BatchStatus = "completed"
            if self._cancelled.is_set():
                end = "cancelled"
            elif self._batch.status != "finalizing":
                end = await self._process()
            await self._finish(end, started)
        except (LineTooLongError, FileNotFoundError) as error:  # it was well when it was validated
            problem = BatchProblem("invalid_input_file", f"The input file cannot be read any more: {error}")
            await self._store.batches.fail(self._batch.id, [problem])

    # -- validating ---------------------------------------------------------------------------------------------

    async def _validate(self) -> bool:
        """True if it is in progress now; False if it failed or was cancelled."""
        batch, limit = self._batch, self._state.config.max_body_bytes
        async with self._shared.validating:
            found = await asyncio.to_thread(
                scan,
                self._path,
                batch.endpoint,
                self._endpoint,
                self._state.model,
                max_line_bytes=limit,
                stopped=self._cancelled.is_set,
            )
        if found.problems:
            await self._store.batches.fail(batch.id, found.problems)
            return False
        self._model = found.model
        if self._cancelled.is_set() or not await self._store.batches.start(
            batch.id, total=found.total, model=found.model
        ):
            self.cancel()
            return False
        return True

    # -- in progress --------------------------------------------------------------------------------------------

    async def _process(self) -> BatchStatus:
        """Run lines until all are done, or the client or the clock ends it.

        The clock is read once: a clock that is set meanwhile neither ends a batch nor keeps it alive.
        """
        left = min(max(self._batch.expires_at - self._store.clock.now(), 0), WINDOW)
        try:
            if await self._unless_cancelled(self._run_lines(), left):
                return "completed"
            return "cancelled" if self._cancelled.is_set() else "expired"
        finally:
            while self._saves:  # what there is must be there before the output is written
                await asyncio.wait(self._saves)

    async def _unless_cancelled(self, work: Coroutine[Any, Any, bool], seconds: float | None = None) -> bool | None:
        """Its result; None if the client or, after ``seconds``, the time ended it first."""
        working = asyncio.create_task(work)
        cancelled = asyncio.create_task(self._cancelled.wait())
        try:
            await asyncio.wait({working, cancelled}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, cancelled):
                task.cancel()
            await asyncio.gather(working, cancelled, return_exceptions=True)

    async def _run_lines(self) -> bool:
        done = await self._store.batches.finished_lines(self._batch.id)
        try:
            async with asyncio.TaskGroup() as group:
                async for number, raw in self._lines():
                    if number in done:
                        continue
                    await self._shared.ready(self._model)
                    await self._shared.slots.acquire()
                    task = group.create_task(self._first_attempt(number, raw))
                    task.add_done_callback(lambda _: self._shared.slots.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        for number, raw in self._suspects:
            async with self._shared.alone:
                await self._again(number, raw)
        return True

    async def _first_attempt(self, number: int, raw: bytes) -> None:
        if await self._attempt(number, raw) is not None:
            self._suspects.append((number, raw))

    async def _again(self, number: int, raw: bytes) -> None:
        """Run a line that was in work when the engine died."""
        for _ in range(MAX_DEATHS - 1):
            await self._shared.ready(self._model)
            async with self._shared.slots:
                death = await self._attempt(number, raw)
            if death is None:
                return
        assert death is not None
        logger.error("line %d of %s ended the engine %d times; it is not run again", number, self._batch.id, MAX_DEATHS)
        line = refused(self._batch.id, number, _custom_id(raw), _request_id(), api_error(death))
        await self._save(line, Tokens())

    async def _attempt(self, number: int, raw: bytes) -> EngineDeadError | None:
        """Run a line and keep its result; returns the engine's death, in which case there is none."""
        batch, custom_id, request_id = self._batch.id, _custom_id(raw), _request_id()
        while True:
            await self._shared.ready(self._model)
            self._shared.in_flight += 1
            try:
                body = self._endpoint.body.model_validate_json(bytes(parse(raw).body or b""))
                answer = await self._endpoint.complete(self._state, self._batch.tenant, body)
            except EngineDeadError as error:
                return error
            except EngineOverloadedError:  # it is starting or ending: the line was not run
                await asyncio.sleep(RETRY)
            except Exception as error:
                if not isinstance(error, (DeepSeekError, pydantic.ValidationError, ValueError)):
                    logger.exception("%s: line %d of %s failed", request_id, number, batch)
                await self._save(refused(batch, number, custom_id, request_id, api_error(error)), Tokens())
                return None
            else:
                await self._save(answered(batch, number, custom_id, request_id, answer), tokens_of(answer))
                return None
            finally:
                self._shared.in_flight -= 1

    async def _save(self, result: LineResult, tokens: Tokens) -> None:
        """Write a result, however long that takes; being cancelled does not stop it."""
        task = asyncio.create_task(self._write(result, tokens))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        await asyncio.shield(task)

    async def _write(self, result: LineResult, tokens: Tokens) -> None:
        delay = RETRY
        while True:
            try:
                await self._store.batches.add_result(self._batch.id, result, tokens)
            except StoreError as error:
                logger.warning("a result of %s waits for the store: %s", self._batch.id, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_RETRY)
            else:
                self._state.metrics.batch_lines.labels("completed" if result.ok else "failed").inc()
                return

    async def _lines(self) -> AsyncIterator[tuple[int, bytes]]:
        on_disk = self._store.files.on_disk
        stream = await on_disk(lambda: self._path.open("rb"))
        try:
            lines = read_lines(stream, self._state.config.max_body_bytes)
            while some := await on_disk(lambda: list(islice(lines, READ_AHEAD))):
                for line in some:
                    yield line
        finally:
            stream.close()

    # -- the end ------------------------------------------------------------------------------------------------

    async def _finish(self, end: BatchStatus, started: bool) -> None:
        batch = self._batch
        if end == "completed" and batch.status != "finalizing" and not await self._store.batches.finalizing(batch.id):
            end = "cancelled"  # just now
        output = errors = None
        if started:
            output, errors = await self._write_files(end)
        await self._store.batches.finish(batch.id, end, output, errors)
        logger.info("%s is %s", batch.id, end)

    async def _write_files(self, end: BatchStatus) -> tuple[FileRecord | None, FileRecord | None]:
        """Output and error file, None where there would be nothing in it. Doing it again gives the same files."""
        files, batches = self._store.files, self._store.batches
        done: set[int] = set()
        with await files.new_content() as output, await files.new_content() as errors:
            last = 0
            while results := await batches.results(self._batch.id, after=last, limit=PAGE):
                await files.on_disk(lambda some=results: _append(some, output, errors))  # type: ignore[misc]
                done.update(result.line for result in results)
                last = results[-1].line
            if end != "completed":
                with contextlib.suppress(LineTooLongError, FileNotFoundError):  # then they cannot be told
                    async for number, raw in self._lines():
                        if number not in done:
                            text = not_run(self._batch.id, number, _custom_id(raw), end)
                            await files.on_disk(lambda text=text: errors.write(text + b"\n"))  # type: ignore[misc]
            return await self._keep(output, "output"), await self._keep(errors, "error")

    async def _keep(self, content: PartialContent, kind: str) -> FileRecord | None:
        if not content.size:
            return None
        digest = hashlib.sha256(f"{self._batch.id}/{kind}".encode()).hexdigest()[:32]
        record = self._store.files.record(
            self._batch.tenant,
            content.size,
            filename=f"{self._batch.id}_{kind}.jsonl",
            purpose="batch_output",
            lifetime=self._batch.output_expires_after,
            file_id=f"file-{digest}",
        )
        await self._store.files.on_disk(lambda: content.publish(record.id))
        return record


def _append(results: list[LineResult], output: PartialContent, errors: PartialContent) -> None:
    for result in results:
        (output if result.ok else errors).write(result.result.encode() + b"\n")


def _custom_id(raw: bytes) -> str:
    """Of a line that may have been damaged since it was validated."""
    try:
        return parse(raw).custom_id or ""
    except (ValueError, msgspec.DecodeError):
        return ""


def _request_id() -> str:
    return f"req_{uuid.uuid4().hex}"
