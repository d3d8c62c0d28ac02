"""The SDK's errors as ours. What is raised is both: a RateLimitedError is an ``openai.RateLimitError`` too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import openai

from deepseek.errors import (
    AnswerFailedError,
    ContextTooLongError,
    OverloadedError,
    QuotaExceededError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    UnauthorizedError,
    UnreachableError,
)

_BY_CODE: Mapping[str | None, type[RemoteError]] = {
    "context_length_exceeded": ContextTooLongError,
    "server_is_overloaded": OverloadedError,
    "engine_unavailable": OverloadedError,
}
_BY_STATUS: Mapping[int | None, type[RemoteError]] = {
    401: UnauthorizedError,
    402: QuotaExceededError,
    403: UnauthorizedError,
    429: RateLimitedError,
    503: OverloadedError,
}

_TRANSPORT_ERRORS: tuple[type[Exception], ...] = ()
with suppress(ImportError):  # openai 3 comes without it, and openai 2 lets its errors through when a stream breaks
    from httpx import TransportError

    _TRANSPORT_ERRORS = (TransportError,)

_made: dict[tuple[type, type], type] = {}


def kind_of(status: int | None, code: str | None) -> type[RemoteError]:
    """Our class for an answer's status (None inside a stream) and the ``code`` of its error."""
    if kind := _BY_CODE.get(code) or _BY_STATUS.get(status):
        return kind
    return RejectedError if status is not None and status < 500 else AnswerFailedError


def status_error(error: openai.APIStatusError) -> openai.APIStatusError:
    """The same error, of our class too."""
    kind = _both(type(error), kind_of(error.status_code, error.code))
    made: Any = kind(error.message, response=error.response, body=error.body)
    made.retry_after = _retry_after(error.response.headers)
    return cast(openai.APIStatusError, made)


def connection_error(error: openai.APIConnectionError, problem: str = "No server answers") -> openai.APIConnectionError:
    """The same error, which says the address too."""
    request = error.request
    if isinstance(error, openai.APITimeoutError):
        return cast(openai.APIConnectionError, _both(openai.APITimeoutError, UnreachableError)(request))
    message = f"{problem} at {request.url.scheme}://{request.url.netloc.decode()}. Is it running?"
    kind = _both(openai.APIConnectionError, UnreachableError)
    return cast(openai.APIConnectionError, kind(message=message, request=request))


def line_error(status: int | None, body: Mapping[str, Any], request_id: str | None) -> RemoteError:
    """The error of a batch's line, which is no HTTP answer and so no error of the SDK."""
    code = body.get("code")
    return kind_of(status, code)(
        str(body.get("message")),
        status_code=status,
        code=code,
        param=body.get("param"),
        type=body.get("type"),
        request_id=request_id,
    )


@contextmanager
def errors_in_stream() -> Iterator[None]:
    """Raise errors that come within a stream as ours."""
    try:
        yield
    except RemoteError:
        raise
    except _TRANSPORT_ERRORS as error:
        raise UnreachableError(f"The connection broke within the answer: {error}.") from error
    except openai.APIConnectionError as error:
        raise connection_error(error, "The connection broke") from error
    except openai.APIError as error:
        kind = _both(openai.APIError, kind_of(None, error.code))
        raise kind(error.message, error.request, body=error.body) from error.__cause__


def _both(theirs: type[openai.APIError], ours: type[RemoteError]) -> Any:
    """A class that is both; the SDK's makes the instance, and hands its message on to ours."""
    if (theirs, ours) not in _made:
        names = {"__doc__": ours.__doc__, "__module__": ours.__module__}
        _made[theirs, ours] = type(ours.__name__, (theirs, ours), names)
    return _made[theirs, ours]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
    return None
