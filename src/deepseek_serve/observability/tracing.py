"""OpenTelemetry traces: a span per request, made when it has ended, with what it waited for as children.

Spans go to a collector by OTLP over HTTP, in batches from a thread of their own. What cannot be delivered is dropped:
requests neither wait for a collector nor fail with it. Settings beside the endpoint are OpenTelemetry's environment
variables (``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_SERVICE_NAME`` ...).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deepseek import __version__
from deepseek.errors import ConfigurationError
from deepseek_serve.observability.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger("deepseek.serve")

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROPAGATED = ("traceparent", "tracestate")
MAX_PROPAGATED = 1024  # characters of a header that is believed
TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT = 5.0  # seconds per batch
STOP_TIMEOUT = 3.0  # seconds for the last batches
OPERATIONS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings"}


class Tracing:
    """Spans of requests, and the thread that sends them."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {SERVICE_VERSION: __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes[SERVICE_NAME] = "deepseek"
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("deepseek_serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def export(self, record: RequestRecord) -> str | None:
        """Make the spans of a request that has ended. Returns the trace's id; None if it is not sampled."""
        try:
            return self._export(record)
        except Exception:
            logger.exception("a request could not be traced")
            return None

    def _export(self, record: RequestRecord) -> str | None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        name = f"{record.method} {record.route}" if record.route != "other" else record.method
        span = self._tracer.start_span(
            name,
            context=self._parent(record.headers),
            kind=SpanKind.SERVER,
            attributes=attributes_of(record),
            start_time=record.wall,
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error_code))
        context = set_span_in_context(span)
        for child, start, end in phases(record):
            self._tracer.start_span(child, context=context, start_time=_wall(record, start)).end(_wall(record, end))
        span.end(_wall(record, record.ended))
        found = span.get_span_context()
        return f"{found.trace_id:032x}" if found.trace_flags.sampled else None

    def _parent(self, headers: Mapping[str, str]) -> Context:
        """The caller's context (W3C Trace Context); an empty one if there is none that is well-formed."""
        from opentelemetry.context import Context

        sane = {name: value for name, value in headers.items() if len(value) <= MAX_PROPAGATED and name in PROPAGATED}
        return self._propagator.extract(sane, context=Context())

    async def stop(self) -> None:
        """Send what is left, for :data:`STOP_TIMEOUT` at most."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="tracing-stop", daemon=True).start()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await done.wait()
        except TimeoutError:
            logger.warning("the last traces could not be sent")


def start_tracing(endpoint: str | None) -> Tracing | None:
    """Tracing to ``endpoint``, a collector's address such as ``http://127.0.0.1:4318``, or to that of the environment;
    None without either. Raises :class:`ConfigurationError`."""
    given = endpoint or next((name for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    if given is None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        problem = "traces need OpenTelemetry: pip install 'deepseek-platform[tracing]'"
        if endpoint is not None:
            raise ConfigurationError(f"{problem}.")
        logger.warning("%s is set, but %s", given, problem)
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    address = None if endpoint is None else _traces_address(endpoint)
    timeout = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_TIMEOUT
    return Tracing(OTLPSpanExporter(address, timeout=timeout))


def _traces_address(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(f"otlp_endpoint must be an address as http://127.0.0.1:4318, not {endpoint!r}.")
    return endpoint if parts.path.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH


def attributes_of(record: RequestRecord) -> dict[str, Any]:
    """Of a request's span: OpenTelemetry's conventions for HTTP servers and for generative AI (1.38)."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "deepseek.request_id": record.request_id,
        "deepseek.cancelled": record.cancelled,
    }
    if record.route != "other":
        attributes["http.route"] = record.route
    if record.error_code:
        attributes["error.type"] = record.error_code
    if record.model:
        attributes |= {
            "gen_ai.operation.name": next(
                (name for end, name in OPERATIONS.items() if record.route.endswith(end)), "chat"
            ),
            "gen_ai.provider.name": "deepseek",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.response.id": record.response_id,
            "gen_ai.response.finish_reasons": list(record.finish_reasons),
            "gen_ai.request.choice.count": record.choices,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            **{f"gen_ai.request.{name}": value for name, value in record.sampling.items()},
        }
    return attributes


def phases(record: RequestRecord) -> list[tuple[str, float, float]]:
    """What the engine did for a request: (name, from, to) of those phases that it has come to."""
    if not record.submitted:
        return []
    marks = [record.submitted, record.scheduled or record.first_token, record.first_token, record.last_token]
    found = []
    for i, name in enumerate(("queue", "prefill", "decode")):
        start, end = marks[i], marks[i + 1] or record.ended
        found.append((name, start, max(start, end)))
        if not marks[i + 1]:
            break
    return found


def _wall(record: RequestRecord, moment: float) -> int:
    """A monotonic time as nanoseconds since 1970."""
    return record.wall + int((moment - record.started) * 1e9)
