"""Responses that notice a client who has gone: server-sent events, and plain answers that take long."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepseek.errors import DeepSeekError
from deepseek_serve.errors import ApiError, api_error, error_body

logger = logging.getLogger("deepseek.serve")

T = TypeVar("T")
STALL_LIMIT = 120.0  # seconds that one write may wait for a client who does not read
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def data_event(document: bytes) -> bytes:
    """An event without a name, as OpenAI's chats have them."""
    return b"data: " + document + b"\n\n"


def named_event(name: str, document: bytes) -> bytes:
    """An event with a name, as OpenAI's responses and Anthropic's messages have them."""
    return b"event: " + name.encode() + b"\ndata: " + document + b"\n\n"


@dataclass(frozen=True)
class Wire:
    """How a stream's events are written.

    Attributes:
        event: what the stream yields -> what is sent.
        failure: an error behind the first event -> what is sent.
        end: sent behind the last event, if all went well.
        silence: sent when nothing else has been for a while.
    """

    event: Callable[[bytes], bytes] = data_event
    failure: Callable[[ApiError], bytes] = lambda error: data_event(error.encode())
    end: bytes = data_event(b"[DONE]")
    silence: bytes = b": keep-alive\n\n"


OPENAI_CHAT = Wire()


class EventStream(Response):
    """Server-sent events of an answer.

    The status is committed with the first event (or the first keep-alive), so an error that comes before it is a
    proper error response, which clients retry; a later one is an error event, without the stream's end.

    Args:
        events: what ``wire`` writes: encoded JSON documents for chats.
        resources: closed when the response is over, whatever its end.
        keep_alive: seconds of silence after which the wire's filler is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        resources: ExitStack,
        keep_alive: float,
        wire: Wire = OPENAI_CHAT,
    ) -> None:
        super().__init__(None, headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._wire = wire
        self._resources = resources
        self._keep_alive = keep_alive
        self._started = False
        self._last_write = time.monotonic()
        self._writing_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            work = asyncio.create_task(self._write(send))
            comments = asyncio.create_task(self._comment(send))
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait({work, gone, comments}, return_when=FIRST_COMPLETED)
                if not work.done() and not self._started:
                    raise ClientDisconnect
                if work.done():
                    work.result()
            finally:
                for task in (work, comments, gone):
                    task.cancel()
                await asyncio.gather(work, comments, gone, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await self._send(send, self._wire.event(event))
            if self._wire.end:
                await self._send(send, self._wire.end)
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, DeepSeekError):
                logger.exception("a stream failed")
            await self._send(send, self._wire.failure(api_error(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self._last_write = self._writing_since = time.monotonic()
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing_since = None

    async def _comment(self, send: Send) -> None:
        """Fill silences; return when the client has not read for :data:`STALL_LIMIT`."""
        while True:
            await asyncio.sleep(max(self._last_write + self._keep_alive - time.monotonic(), 0.01))
            now = time.monotonic()
            if self._writing_since is not None:
                if now - self._writing_since >= STALL_LIMIT:
                    return
                await asyncio.sleep(1.0)
            elif now - self._last_write >= self._keep_alive:
                await self._send(send, self._wire.silence)


class PaddedAnswer(Response):
    """A whole answer that takes long: empty lines before it keep the connection alive, as DeepSeek sends them.

    The first of them commits the status 200, so an error that comes later is an error body under that status.

    Args:
        work: computes the encoded body.
        resources: closed when the response is over, whatever its end.
        interval: seconds between lines.
    """

    media_type = "application/json"

    def __init__(self, work: Coroutine[Any, Any, bytes], resources: ExitStack, interval: float) -> None:
        super().__init__(None)
        del self.headers["content-length"]
        self._work = work
        self._resources = resources
        self._interval = interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            work = asyncio.create_task(self._work)
            gone = asyncio.create_task(_disconnected(receive))
            started = False
            try:
                while not (await asyncio.wait({work, gone}, timeout=self._interval, return_when=FIRST_COMPLETED))[0]:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": b"\n", "more_body": True})
                if not work.done():
                    raise ClientDisconnect
                if started:
                    await send({"type": "http.response.body", "body": _body_of(work, scope)})
                else:
                    await Response(work.result(), media_type=self.media_type)(scope, receive, send)
            except ClientDisconnect:
                if not started:
                    raise
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)


def _body_of(work: asyncio.Task[bytes], scope: Scope) -> bytes:
    """The answer, or the error that it ended with."""
    error = work.exception()
    if error is None:
        return work.result()
    if not isinstance(error, DeepSeekError):
        logger.error("a padded answer failed", exc_info=error)
    return error_body(api_error(error), scope)


async def whole_answer(
    request: Request, work: Coroutine[Any, Any, msgspec.Struct], resources: ExitStack, padding: float | None
) -> Response:
    """The response of an answer that is not streamed; ``padding`` is :class:`PaddedAnswer`'s interval, None without."""

    async def encoded() -> bytes:
        return msgspec.json.encode(await work)

    if padding is not None:
        return PaddedAnswer(encoded(), resources.pop_all(), padding)
    return Response(await unless_disconnected(request, encoded()), media_type="application/json")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; cancels it and raises ``ClientDisconnect`` when the client goes away first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has closed the connection; the body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
