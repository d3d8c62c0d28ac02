"""Traces at a real OTLP/HTTP collector: a small server that decodes what ours sends."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from deepseek.errors import ConfigurationError
from deepseek_serve.observability.tracing import start_tracing
from tests.serve.conftest import Server, chat_body, free_port, running_server

CHAT = "/v1/chat/completions"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # milliseconds between batches
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "xyzzy-never-trace-this"


class Collector:
    """An OTLP/HTTP endpoint on loopback."""

    def __init__(self, delay: float = 0.0) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.raw = b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                time.sleep(delay)
                if self.path == "/v1/traces":
                    outer.raw += data
                    outer.requests.append(ExportTraceServiceRequest.FromString(data))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def spans(self) -> list[Span]:
        resources = [resource for request in list(self.requests) for resource in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def of_request(self, request_id: str, seconds: float = 10.0) -> tuple[Span, dict[str, Span]]:
        """A request's span, and its children by name."""
        deadline = time.monotonic() + seconds
        while True:
            for span in self.spans:
                if attributes(span).get("deepseek.request_id") == request_id:
                    return span, {child.name: child for child in self.spans if child.parent_span_id == span.span_id}
            assert time.monotonic() < deadline, f"no span of {request_id}"
            time.sleep(0.02)


def attributes(span: Span) -> dict[str, Any]:
    def plain(value: AnyValue) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {item.key: plain(item.value) for item in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[Server]:
    with running_server(otlp_endpoint=collector.url, environment=QUICK) as running:
        yield running


def send(server: Server, text: str = "hi", *, headers: dict[str, str] | None = None, **fields: Any) -> str:
    """Post a chat; returns the request's id."""
    with server.client() as http:
        return http.post(CHAT, json=chat_body(text, **fields), headers=headers or {}).headers["x-request-id"]


def test_a_request_is_a_span_with_phases(server: Server, collector: Collector) -> None:
    before = time.time_ns()
    body = {"max_tokens": 9, "temperature": 0.5, "n": 2, "stream": True}
    span, children = collector.of_request(send(server, f"[long][slow] {SECRET}", **body))
    found = attributes(span)
    assert span.name == f"POST {CHAT}" and span.kind == Span.SPAN_KIND_SERVER and not span.parent_span_id
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert set(children) == {"queue", "prefill", "decode"}
    queue, prefill, decode = children["queue"], children["prefill"], children["decode"]
    assert {child.trace_id for child in children.values()} == {span.trace_id}
    moments = [span.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano]
    moments += [prefill.end_time_unix_nano, decode.end_time_unix_nano, span.end_time_unix_nano]
    assert moments == sorted(moments)
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano - decode.start_time_unix_nano > 8 * 15_000_000  # nine steps of 20 ms
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "deepseek-v2.1",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.output_tokens": 18,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "deepseek.cancelled": False,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["gen_ai.usage.input_tokens"] > 20 and found["gen_ai.response.id"].startswith("chatcmpl-")
    assert SECRET.encode() not in collector.raw
    (resource,) = collector.requests[-1].resource_spans
    about = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert about["service.name"] == "deepseek" and about["service.version"]


def test_the_callers_trace_is_continued(server: Server, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}
    request_id = send(server, headers=headers)
    span, children = collector.of_request(request_id)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=abc" and children["decode"].trace_id.hex() == TRACE
    line = next(line for line in server.lines if request_id in line)
    assert f'"trace_id":"{TRACE}"' in line


def test_what_the_caller_does_not_sample_is_not_sent(server: Server, collector: Collector) -> None:
    quiet = send(server, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    collector.of_request(send(server))
    ids = {attributes(span).get("deepseek.request_id") for span in collector.spans}
    assert quiet not in ids
    assert "trace_id" not in next(line for line in server.lines if quiet in line)


@pytest.mark.parametrize(
    "value",
    ["", "garbage", "00-" + "0" * 32 + f"-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01",
     f"00-{TRACE}-{PARENT}-01" + "x" * 10_000, f"00-{TRACE}-{PARENT}", "\x01\x02", "00-" + "g" * 32 + f"-{PARENT}-01"],
)  # fmt: skip
def test_a_malformed_traceparent_begins_a_trace(server: Server, collector: Collector, value: str) -> None:
    name = f"malformed-{abs(hash(value))}"
    lines = (
        "GET /v1/models HTTP/1.1",
        "host: x",
        "connection: close",
        f"x-request-id: {name}",
        f"traceparent: {value}",
    )
    raw = "\r\n".join((*lines, "", ""))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(raw.encode("latin-1"))
        answer = connection.recv(65536)
    if answer.startswith(b"HTTP/1.1 400"):
        return  # the parser refuses control characters by itself
    assert answer.startswith(b"HTTP/1.1 200")
    span, children = collector.of_request(name)
    assert span.trace_id.hex() != TRACE and not span.parent_span_id and not children


def test_two_traceparents_are_none(server: Server, collector: Collector) -> None:
    given = f"00-{TRACE}-{PARENT}-01"
    with server.client() as http:
        headers = [("traceparent", given), ("traceparent", given), ("x-request-id", "two-parents")]
        http.get("/v1/models", headers=headers)
    span, _ = collector.of_request("two-parents")
    assert span.trace_id.hex() != TRACE


def test_failures_and_cancellations(server: Server, collector: Collector) -> None:
    span, children = collector.of_request(send(server, "[nan]"))
    assert span.status.code == Status.STATUS_CODE_ERROR and attributes(span)["error.type"] == "engine_error"
    assert attributes(span)["gen_ai.response.finish_reasons"] == ["error"] and "decode" in children
    span, children = collector.of_request(send(server, nonsense=1))
    assert span.status.code == Status.STATUS_CODE_UNSET and not children
    assert attributes(span)["error.type"] == "unknown_parameter" and "gen_ai.request.model" not in attributes(span)
    with server.client() as http:
        body = chat_body("[long][slow]", stream=True)
        with http.stream("POST", CHAT, json=body, headers={"x-request-id": "gone"}) as response:
            next(response.iter_lines())
    span, _ = collector.of_request("gone")
    assert attributes(span)["deepseek.cancelled"] is True


def test_a_flood_of_unknown_paths_names_no_spans(server: Server, collector: Collector) -> None:
    with server.client() as http:
        for i in range(5):
            last = http.get(f"/nope/{i}").headers["x-request-id"]
    collector.of_request(last)
    assert not any("nope" in span.name for span in collector.spans)


def test_a_collector_that_is_away_disturbs_nobody() -> None:
    environment = QUICK | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with running_server(environment=environment) as server, server.client() as http:
        durations = []
        for _ in range(60):
            began = time.monotonic()
            assert http.post(CHAT, json=chat_body()).status_code == 200
            durations.append(time.monotonic() - began)
        assert sorted(durations)[30] < 1.0
        assert len([line for line in server.lines if "opentelemetry" in line]) < 30, "the log is flooded"
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.wait_exit(15) == 0


def test_a_collector_that_is_slow_disturbs_nobody() -> None:
    slow = Collector(delay=20.0)
    try:
        with running_server(otlp_endpoint=slow.url, environment=QUICK | {"OTEL_BSP_MAX_QUEUE_SIZE": "600"}) as server:
            with server.client() as http:
                for _ in range(300):
                    assert http.post(CHAT, json=chat_body(max_tokens=1)).status_code == 200
            dropped = [line for line in server.lines if "ropping" in line]
            assert len(dropped) < 30, "the log is flooded"
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.wait_exit(15) == 0
    finally:
        slow.close()


def test_last_spans_are_sent_at_the_end(collector: Collector) -> None:
    with running_server(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as server:
        request_id = send(server)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.wait_exit(15) == 0
    collector.of_request(request_id, seconds=0.5)


def test_nothing_is_imported_when_traces_are_off() -> None:
    code = (
        "import sys; from deepseek_serve.app import create_app; from deepseek_serve.observability import tracing;"
        "assert tracing.start_tracing(None) is None;"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto', 'google.protobuf', 'requests');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://", "grpc://x:4317"])
def test_addresses_that_are_none_are_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="otlp_endpoint"):
        start_tracing(endpoint)


def test_traces_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing("http://127.0.0.1:1") is None
