"""A load generator: many HTTP requests at once over loopback, each on a connection of its own.

It shares the machine with the server it measures, so it must cost little: one small protocol per connection, with
llhttp's parser, and the stream's events are only split, not decoded, until the answer is over.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

DONE = b"[DONE]"


@dataclass
class Answer:
    """What one request got. Times are readings of ``time.perf_counter``.

    Attributes:
        sent: when the request was written.
        status: of the response; 0 when none came.
        headers: of the response, names in lower case.
        stamps: when each event of the stream that bears text came.
        ended: when the response was complete, 0.0 if it never was.
        events: the stream's JSON documents, in order; for a plain response its only one.
        done: the stream ended with ``[DONE]``.
        failure: why the connection failed, if it did.
    """

    sent: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    stamps: list[float] = field(default_factory=list)
    ended: float = 0.0
    events: list[bytes] = field(default_factory=list)
    done: bool = False
    failure: str | None = None

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events]

    @property
    def text(self) -> str:
        """The text of a completion's stream, or of a chat's."""
        parts = []
        for document in self.documents:
            for choice in document.get("choices", ()):
                parts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
        return "".join(parts)

    @property
    def completion_tokens(self) -> int:
        """From the usage, 0 without."""
        return sum((document.get("usage") or {}).get("completion_tokens", 0) for document in self.documents)

    @property
    def first_token(self) -> float:
        """Seconds to the first text. Raises IndexError when none came."""
        return self.stamps[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between events that bear text."""
        return [b - a for a, b in zip(self.stamps, self.stamps[1:], strict=False)]


class _Exchange(asyncio.Protocol):
    """One request and its response."""

    def __init__(self, request: bytes, over: asyncio.Future[None]) -> None:
        self.answer = Answer()
        self._request = request
        self._over = over
        self._parser = httptools.HttpResponseParser(self)
        self._held = b""
        self._stream = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.answer.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(str(exc) if exc else "the server closed the connection before the response was complete")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()
        self._stream = self.answer.headers.get("content-type", "").startswith("text/event-stream")

    def on_body(self, body: bytes) -> None:
        self._held += body
        if not self._stream:
            return
        *events, self._held = self._held.split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: "):  # a comment
                continue
            event = event[6:]
            if event == DONE:
                self.answer.done = True
                continue
            self.answer.events.append(event)
            if b'"text":""' not in event and b'"delta":{}' not in event and b'"choices":[]' not in event:
                self.answer.stamps.append(time.perf_counter())

    def on_message_complete(self) -> None:
        if not self._stream and self._held:
            self.answer.events.append(self._held)
        self.answer.ended = time.perf_counter()
        self._finish(None)

    def _finish(self, failure: str | None) -> None:
        if not self._over.done():
            self.answer.failure = failure
            self._over.set_result(None)
            self._transport.close()


def request_bytes(host: str, path: str, body: Mapping[str, Any] | None, *, key: str | None = None) -> bytes:
    """An HTTP/1.1 request: POST of a JSON body, GET without one."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"host: {host}", "connection: close"]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    data = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def exchange(host: str, port: int, request: bytes, timeout: float) -> Answer:
    """Send one request and read its response. Never raises: what went wrong is in ``failure``."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    protocol = _Exchange(request, over)
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: protocol, host, port)
            await over
    except TimeoutError:
        protocol.answer.failure = f"no complete response within {timeout:.0f} s"
        transport = getattr(protocol, "_transport", None)
        if transport is not None:
            transport.abort()
    except OSError as error:
        protocol.answer.failure = str(error)
    return protocol.answer


async def together(host: str, port: int, requests: Sequence[bytes], timeout: float) -> list[Answer]:
    """All requests at the same time; their answers in order."""
    return list(await asyncio.gather(*(exchange(host, port, request, timeout) for request in requests)))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of ``values`` do not exceed. Raises ValueError if empty."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
