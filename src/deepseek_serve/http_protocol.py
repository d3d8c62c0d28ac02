"""HTTP/1.1 as uvicorn speaks it, with a bound on what a client may send, and how long it may take, before a request."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepseek_serve.errors import ApiError

MAX_HEAD = 64 << 10  # bytes of a request's head after what came with its beginning
HEAD_TIMEOUT = 60.0  # seconds for a head to come


class BoundedProtocol(HttpToolsProtocol):
    """One connection. The parser would gather a head without end, in time that grows with the square of its length,
    and wait for one forever; nobody has shown a key yet."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_size: int | None = None  # None: no head has begun, or it is complete
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        begun = self._head_size
        super().data_received(data)
        if begun is None or self._head_size is None:
            return
        self._head_size = begun + len(data)
        if self._head_size > MAX_HEAD and not self.transport.is_closing():
            self._refuse(ApiError(431, f"The request's head is longer than {MAX_HEAD} bytes.", code="head_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_size = None
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._deadline = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(ApiError(408, f"No request came within {HEAD_TIMEOUT:g} seconds.", code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Close the connection; say why, unless that would stand in the middle of an answer."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
            return
        body = error.encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
