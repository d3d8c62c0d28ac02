"""What the node takes on: a bound on admitted answers and on body sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from starlette.requests import Request

from deepseek.errors import EngineOverloadedError, InvalidRequestError
from deepseek_serve.errors import ApiError

RETRY_WHEN_FULL = 1.0  # seconds
RETRY_WHEN_DRAINING = 5.0


class Admission:
    """Counts admitted answers; whoever does not fit is told so at once and never queued unanswered."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_use = 0
        self.draining = False

    @contextlib.contextmanager
    def enter(self, sequences: int) -> Iterator[None]:
        """Hold room for ``sequences`` answers.

        Raises :class:`EngineOverloadedError` if there is none now, :class:`InvalidRequestError` if there never is.
        """
        if self.draining:
            raise EngineOverloadedError(
                "The server is shutting down. Send the request again to its successor.",
                retry_after=RETRY_WHEN_DRAINING,
            )
        if sequences > self.capacity:
            raise InvalidRequestError(
                f"The request asks for {sequences} answers; this server takes {self.capacity} at a time.", param="n"
            )
        if self.in_use + sequences > self.capacity:
            raise EngineOverloadedError(
                f"The server is full: {self.in_use} of {self.capacity} answers are in work. Try again shortly.",
                retry_after=RETRY_WHEN_FULL,
            )
        self.in_use += sequences
        try:
            yield
        finally:
            self.in_use -= sequences


async def read_body(request: Request, limit: int) -> bytes:
    """The body. Raises :class:`ApiError` 413 as soon as it is known to be longer than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"The request body is too large: at most {limit} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})
