"""One line per record and per request, whatever clients send, and never a prompt or an answer."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deepseek.errors import ConfigurationError
from deepseek_serve.config import ServeConfig
from deepseek_serve.observability.logs import JsonFormatter, TextFormatter, set_up
from deepseek_serve.observability.record import request_id_of
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server, chat_body, running_server

CHAT = "/v1/chat/completions"
SECRET = "xyzzy-never-log-this"
HOSTILE = [
    "a\nb",
    "a\r\nb",
    "a\x1b[2Jb",
    "a\u2028b",
    "a\x00b",
    "a\x85b",
    'a" level=error b',
    "\ud800",
    "\u202eabc",
    "é 世界",
]


def record_of(message: str, *arguments: Any, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("deepseek.test", logging.INFO, "", 0, message, arguments, None)
    record.fields = fields
    return record


@pytest.mark.parametrize("text", HOSTILE)
def test_json_lines_cannot_be_broken(text: str) -> None:
    line = JsonFormatter().format(record_of("got %s", text, path=text, number=3, missing=None))
    assert "\n" not in line and "\r" not in line
    parsed = json.loads(line.encode())
    assert (parsed["level"], parsed["logger"], parsed["number"], parsed["missing"]) == (
        "info",
        "deepseek.test",
        3,
        None,
    )
    if "\ud800" not in text:
        assert parsed["path"] == text and parsed["message"] == f"got {text}"


@pytest.mark.parametrize("text", HOSTILE)
def test_text_lines_cannot_be_broken(text: str) -> None:
    line = TextFormatter().format(record_of("got %s", text, path=text, number=3))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", line)
    line.encode()
    assert line.endswith(" number=3") and " INFO deepseek.test: got " in line
    shown = line.partition(" path=")[2].removesuffix(" number=3")
    assert re.fullmatch(r"[\w./:-]+", shown) or isinstance(json.loads(shown), str), "a value looks like another field"


def test_lines_of_exceptions_cannot_be_taken_for_records() -> None:
    forged = "2026-01-01T00:00:00.000Z CRITICAL root: forged"
    try:
        raise ValueError(f"bad\n{forged}")
    except ValueError:
        record = logging.LogRecord("deepseek.test", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    head, *rest = TextFormatter().format(record).split("\n")
    assert head.endswith("deepseek.test: failed") and len(rest) > 2
    assert all(line.startswith("    ") for line in rest) and any(forged in line for line in rest)
    assert forged in json.loads(JsonFormatter().format(record))["exception"]


@pytest.mark.parametrize(("wanted", "terminal", "as_json"), [("auto", True, False), ("auto", False, True)])
def test_format_is_chosen_by_who_reads(wanted: Any, terminal: bool, as_json: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    root, stream = logging.getLogger(), Stream()
    before, level = root.handlers[:], root.level
    try:
        assert set_up("info", wanted, stream) is as_json
        logging.getLogger("deepseek.test").info("here")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
    assert stream.getvalue().startswith("{") is as_json


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="auto, json, text"):
        ServeConfig(log_format="xml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1", True),
        ("req_" + "f" * 32, True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736:1/2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("x" * 10_000, False),
        ("", False),
        ("a b", False),
        ("a\nb", False),
        ("a\n", False),
        ("a\x1b[0m", False),
        ('a"b', False),
        ("ä", False),
        (None, False),
    ],
)
def test_request_ids_of_clients(given: str | None, kept: bool) -> None:
    found = request_id_of(given)
    assert (found == given) is kept
    assert kept or re.fullmatch("req_[0-9a-f]{32}", found)


# -- the real server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(api_keys=("sk-one", "sk-two")) as running:
        yield running


AUTH = {"authorization": "Bearer sk-one"}


def lines_of(server: Server) -> list[dict[str, Any]]:
    """All lines so far; each must be a JSON object."""
    return [json.loads(line) for line in server.output.splitlines()]


def access_of(server: Server, request_id: str, seconds: float = 5.0) -> dict[str, Any]:
    """The one access line of a request."""
    deadline = time.monotonic() + seconds
    while True:
        found = [x for x in lines_of(server) if x["logger"] == "deepseek.access" and x["request_id"] == request_id]
        if found:
            (line,) = found
            return line
        assert time.monotonic() < deadline, server.output
        time.sleep(0.02)


def test_a_line_per_request_tells_what_it_cost(server: Server) -> None:
    with server.client(headers=AUTH) as http:
        body = chat_body("[long] " + "x" * 100, max_tokens=5, n=2, stream=True)
        response = http.post(CHAT, json=body, headers={"x-request-id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        again = http.post(CHAT, json=body | {"stream": False})
    line = access_of(server, "mine-1")
    assert line["level"] == "info" and line["method"] == "POST" and line["status"] == 200
    assert line["route"] == line["path"] == CHAT and line["model"] == "deepseek-v2.1"
    assert line["stream"] is True and line["choices"] == 2 and line["finish_reason"] == "length,length"
    assert line["completion_tokens"] == 10 and line["prompt_tokens"] > 100 and line["cancelled"] is False
    assert 0 <= line["queue_s"] <= line["time_to_first_token_s"] <= line["duration_s"] < 5
    assert "error" not in line and "trace_id" not in line
    usage = again.json()["usage"]
    line = access_of(server, again.headers["x-request-id"])
    assert line["stream"] is False and line["response_id"] == again.json()["id"]
    assert [line[f"{k}_tokens"] for k in ("prompt", "cached", "completion")] == [
        usage["prompt_tokens"], usage["prompt_cache_hit_tokens"], usage["completion_tokens"]
    ]  # fmt: skip
    assert usage["prompt_cache_hit_tokens"] > 0


def test_keys_are_named_and_never_shown(server: Server) -> None:
    with server.client() as http:
        names = set()
        for key in ("sk-one", "sk-two"):
            response = http.post(CHAT, json=chat_body(), headers={"authorization": f"Bearer {key}"})
            names.add(access_of(server, response.headers["x-request-id"])["key"])
        refused = http.post(CHAT, json=chat_body(), headers={"authorization": "Bearer sk-wrong"})
    line = access_of(server, refused.headers["x-request-id"])
    assert (line["status"], line["error"]) == (401, "invalid_api_key") and "key" not in line
    assert len(names) == 2 and "sk-" not in server.output


def test_a_client_that_goes_is_cancelled(server: Server) -> None:
    with server.client(headers=AUTH) as http:
        body = chat_body("[long][slow]", stream=True)
        with http.stream("POST", CHAT, json=body, headers={"x-request-id": "gone-1"}) as response:
            next(response.iter_lines())
    line = access_of(server, "gone-1")
    assert line["cancelled"] is True and line["finish_reason"] == "cancelled" and line["status"] == 200
    assert line["completion_tokens"] >= 1


def test_failures_have_their_code(server: Server) -> None:
    with server.client(headers=AUTH) as http:
        for i, (body, status, code) in enumerate(
            [
                (chat_body("[nan]"), 500, "engine_error"),
                (chat_body() | {"model": "gpt-nope\nlevel=error"}, 404, "model_not_found"),
                (chat_body() | {"nonsense": 1}, 400, "unknown_parameter"),
            ]
        ):
            http.post(CHAT, json=body, headers={"x-request-id": f"bad-{i}"})
            line = access_of(server, f"bad-{i}")
            assert (line["status"], line["error"]) == (status, code)
        with http.stream("POST", CHAT, json=chat_body("[nan]", stream=True), headers={"x-request-id": "bad-s"}) as r:
            r.read()
    line = access_of(server, "bad-s")
    assert (line["status"], line["error"], line["finish_reason"]) == (200, "engine_error", "error")
    assert "gpt-nope" not in server.output


def test_hostile_bytes_of_clients(server: Server) -> None:
    """Headers and paths that no HTTP client would send; every line stays one JSON object."""
    for head in (
        b"GET /%0a%7b%22level%22:%22error%22%7d%1b[2J HTTP/1.1\r\nx-request-id: a\tb",
        b"GET /v1/models?key=" + SECRET.encode() + b" HTTP/1.1\r\nx-request-id: " + b"y" * 10_000,
        b"GET /\xe2\x80\xa8 HTTP/1.1\r\nx-request-id: \xff\xfe\r\nx-request-id: twice",
        b"BREW /" + b"z" * 5000 + b" HTTP/1.1\r\nx-request-id: one\r\nx-request-id: two",
        b"GET /%ff%fe HTTP/1.1\r\ntraceparent: \x01\x02",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(head + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = b""
            while data := raw.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 4")
        match = re.search(rb"x-request-id: (\S+)\r\n", answer)
        if match:  # the parser refuses some by itself
            request_id = match.group(1).decode()
            assert re.fullmatch("req_[0-9a-f]{32}", request_id)
            assert len(access_of(server, request_id)["path"]) <= 200
    assert "yyyy" not in server.output and "z" * 300 not in server.output


def test_no_prompt_and_no_answer_is_logged() -> None:
    with running_server(log_level="debug") as server:
        with server.client() as http:
            for steer in ("", "[nan]", "[template]", "[raise]", "[die]"):
                for stream in (False, True):
                    server.wait_status("/health/ready", 200)
                    http.post(CHAT, json=chat_body(f"{steer}{SECRET}", stream=stream, stop=[f"stop {SECRET}"]))
            server.wait_status("/health/ready", 200)
            http.post(CHAT, content=f'{{"messages": "{SECRET}'.encode())
            http.post(CHAT, json=chat_body() | {SECRET: SECRET})
            http.post("/v1/completions", json={"model": SECRET, "prompt": SECRET})
            http.post("/tokenize", json={"prompt": SECRET, "model": "deepseek-v2.1"})
            http.get(f"/v1/models?q={SECRET}")
            last = http.get("/v1/models").headers["x-request-id"]
        access_of(server, last)
        assert SECRET not in server.output and ANSWER[:5] not in server.output
        probes = [line for line in lines_of(server) if line.get("route") == "/health/ready" and line["status"] == 200]
        assert probes and {line["level"] for line in probes} == {"debug"}


def test_lines_of_the_engine_name_model_and_process(server: Server) -> None:
    pid = server.engine_pid()
    with server.client(headers=AUTH) as http:
        http.post(CHAT, json=chat_body("[raise]"))
    server.wait_status("/health/ready", 200)
    (line,) = [line for line in lines_of(server) if line["message"] == "the engine failed" and line["pid"] == pid]
    assert line["model"] and line["level"] == "error" and "RuntimeError: scripted failure" in line["exception"]


def test_text_on_demand_and_the_end_of_a_drain() -> None:
    with running_server(log_format="text", drain_timeout=20) as server, server.client() as http:
        with http.stream("POST", CHAT, json=chat_body("[long][slow]", max_tokens=20, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.process.pid, signal.SIGTERM)
            list(lines)
        assert server.wait_exit() == 0
        assert re.search(r"Z INFO deepseek.access: POST 200 request_id=req_\w+ method=POST ", server.output)
        assert "WARNING deepseek.serve: shutting down: 1 answers" in server.output
        assert f"DeepSeek V2.1 at http://127.0.0.1:{server.port}/v1" in server.output
