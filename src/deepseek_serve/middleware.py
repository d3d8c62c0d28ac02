"""The outermost layer: a request id, a time and an account for every response, and an answer to every failure."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_serve.errors import CLIENT_CLOSED_REQUEST, api_error, error_response, speaks_anthropic
from deepseek_serve.metrics import Metrics
from deepseek_serve.observability.logs import log_access
from deepseek_serve.observability.record import RequestRecord, request_id_of
from deepseek_serve.observability.tracing import PROPAGATED, Tracing

logger = logging.getLogger("deepseek.serve")

WANTED = frozenset({b"x-request-id", *(name.encode() for name in PROPAGATED)})


class Envelope:
    """Pure ASGI, because it is on the path of every streamed chunk.

    Leaves a :class:`RequestRecord` in ``request.state.record``. It is complete when the response is, and what log,
    metrics and traces say of the request is made of it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _record_of(scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["record"] = record.request_id, record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = record.request_id
                for name, value in state.get("headers", {}).items():
                    headers[name] = value
                headers["openai-processing-ms"] = str(int((time.monotonic() - record.started) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            fields = {"request_id": record.request_id, "method": record.method, "path": record.path}
            logger.exception("a request failed", extra={"fields": fields})
            answer = api_error(error)
            record.error_code = answer.body.code
            if not record.status:
                await error_response(answer, scope)(scope, receive, send_with_headers)
        finally:
            self._account(scope, record)

    def _account(self, scope: Scope, record: RequestRecord) -> None:
        record.ended = time.monotonic()
        record.route = getattr(scope.get("route"), "path", "other")
        record.key = getattr(scope["state"].get("key"), "tenant", "")
        record.status = record.status or CLIENT_CLOSED_REQUEST
        record.cancelled = record.cancelled or record.status == CLIENT_CLOSED_REQUEST
        self._metrics.answered(record)
        trace_id = None if self._tracing is None else self._tracing.export(record)
        log_access(record, trace_id)


def _record_of(scope: Scope) -> RequestRecord:
    """The beginning of a request's record. A header that comes twice counts as one with both values, which is no
    request id and no trace context."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in WANTED:
            key, text = name.decode(), value.decode("latin-1")
            headers[key] = f"{headers[key]},{text}" if key in headers else text
    request_id = request_id_of(headers.pop("x-request-id", None))
    return RequestRecord(request_id, scope["method"], scope["path"], headers)
