"""Disconnects, dying and hanging engines, overload, and the server's own end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from deepseek.errors import ConfigurationError
from deepseek_serve.server import bind
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server, chat_body, events_of, free_port, running_server

CHAT = "/v1/chat/completions"
FAST = {"ping_interval": 0.1, "stale_after": 0.5}
IN_USE = "deepseek_admitted_answers"
CANCELLED = "deepseek_engine_cancelled_total"


@pytest.fixture
def fresh() -> Iterator[Server]:
    with running_server(options=FAST) as server:
        yield server


def lines_of(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line.startswith("data: "))


def test_disconnect_cancels_streams_and_whole_answers(fresh: Server) -> None:
    with fresh.client() as http, http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True)) as response:
        lines = lines_of(response)
        next(lines)
        assert fresh.metric(IN_USE) == 1
    fresh.wait_metric(CANCELLED, 1)
    with fresh.client() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=chat_body("[long][slow]", n=3), timeout=0.3)
    fresh.wait_metric(CANCELLED, 4)
    fresh.wait_metric(IN_USE, 0)
    assert fresh.metric("deepseek_engine_running") == 0


@pytest.mark.anyio
async def test_many_random_disconnects_leave_nothing(fresh: Server) -> None:
    async with httpx.AsyncClient(base_url=fresh.url, trust_env=False, timeout=20) as http:

        async def leave(i: int) -> None:
            body = chat_body("[long][slow]", stream=bool(i % 2), n=1 + i % 3)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01 * (i % 20) + 0.005):
                    await http.post(CHAT, json=body)

        await asyncio.gather(*(leave(i) for i in range(100)))
    fresh.wait_metric(IN_USE, 0)
    fresh.wait_metric("deepseek_engine_running", 0)


def test_killed_engine_ends_the_stream_with_an_error_and_comes_back(fresh: Server) -> None:
    with fresh.client() as http, http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True)) as response:
        lines = lines_of(response)
        next(lines)
        os.kill(fresh.engine_pid(), signal.SIGKILL)
        killed = time.monotonic()
        last = list(lines)[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "service_unavailable_error" and error["code"] == "engine_unavailable"
    assert "SIGKILL" in error["message"] and "again" in error["message"]
    with fresh.client() as http:
        while (answer := http.post(CHAT, json=chat_body())).status_code != 200:
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() - killed < 8
            time.sleep(0.05)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    assert fresh.metric("deepseek_engine_restarts_total") == 1


def test_engine_that_dies_under_a_whole_answer_says_503(fresh: Server) -> None:
    with fresh.client() as http:
        response = http.post(CHAT, json=chat_body("[die]"))
        assert response.status_code == 503 and response.headers["retry-after"]
        assert response.json()["error"]["code"] == "engine_unavailable"


def test_frozen_engine_falls_out_of_readiness_but_not_of_life(fresh: Server) -> None:
    pid = fresh.engine_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        response = fresh.wait_status("/health/ready", 503, 5)
        assert response.json()["status"] == "unresponsive" and response.headers["retry-after"]
        fresh.wait_status("/health/live", 200, 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    fresh.wait_status("/health/ready", 200, 5)


def test_while_loading_the_port_answers() -> None:
    with running_server(environment={"DEEPSEEK_FAKE_LOAD": "sleep3"}, wait=False) as server:
        response = server.wait_status("/health/ready", 503)
        assert response.json()["status"] == "starting" and response.headers["retry-after"]
        with server.client() as http:
            assert http.get("/health/live").status_code == 200
            answer = http.post(CHAT, json=chat_body())
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["error"]["type"] == "service_unavailable_error"
        server.wait_status("/health/ready", 200)


def test_full_server_refuses_before_the_first_byte() -> None:
    with running_server(max_sequences=3) as server, server.client() as http:
        with http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True, n=2)) as response:
            lines = lines_of(response)
            next(lines)
            refused = http.post(CHAT, json=chat_body(n=2))
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "server_is_overloaded"
            assert http.post(CHAT, json=chat_body()).status_code == 200
            assert http.post(CHAT, json=chat_body(n=4)).status_code == 400
        server.wait_metric(IN_USE, 0)


@pytest.mark.anyio
async def test_overload_answers_every_socket() -> None:
    with running_server(max_sequences=8) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http:
            posts = [http.post(CHAT, json=chat_body("[slow]", stream=bool(i % 2))) for i in range(80)]
            responses = await asyncio.gather(*posts)
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 8
        server.wait_metric(IN_USE, 0)


def test_silence_is_filled_with_comments() -> None:
    with running_server(keep_alive_interval=0.2, options={"hang_timeout": 1.0, "ping_interval": 0.1}) as server:
        with server.client() as http:
            response = http.post(CHAT, json=chat_body("[hang]", stream=True))
        assert response.status_code == 200
        assert response.text.count(": keep-alive") >= 3
        (event,) = events_of(response)
        assert "no progress" in json.loads(event)["error"]["message"]


def test_whole_answers_are_kept_alive_on_demand() -> None:
    options = {"hang_timeout": 1.0, "ping_interval": 0.1}
    with (
        running_server(keep_alive_interval=0.2, keep_alive_lines=True, options=options) as server,
        server.client() as http,
    ):
        body = chat_body("[long][slow]", max_tokens=60)
        slow = http.post(CHAT, json=body, timeout=0.9)
        assert slow.status_code == 200 and slow.content.startswith(b"\n\n")
        assert slow.json()["usage"]["completion_tokens"] == 60, "JSON readers skip the lines"
        quick = http.post(CHAT, json=chat_body())
        assert quick.content.startswith(b"{") and "content-length" in quick.headers
        assert http.post(CHAT, json=chat_body("[template]")).status_code == 400
        assert http.post(CHAT, json=chat_body("[nan]")).status_code == 500, "nothing was committed yet"
        failed = http.post(CHAT, json=chat_body("[hang]"))
        assert failed.status_code == 200 and "no progress" in failed.json()["error"]["message"]
        server.wait_metric(IN_USE, 0)
        server.wait_status("/health/ready", 200)
        with pytest.raises(httpx.ReadTimeout), http.stream("POST", CHAT, json=chat_body("[long][slow]")) as gone:
            for _ in gone.iter_bytes():
                raise httpx.ReadTimeout("enough")
        server.wait_metric(IN_USE, 0)
        server.wait_metric("deepseek_engine_running", 0)


def test_sigterm_finishes_running_requests_and_refuses_new_ones(fresh: Server) -> None:
    with fresh.client() as http, http.stream("POST", CHAT, json=chat_body("[slow]", stream=True)) as response:
        lines = lines_of(response)
        next(lines)
        fresh.process.send_signal(signal.SIGTERM)
        ready = fresh.wait_status("/health/ready", 503, 5)
        assert ready.json()["status"] == "draining"
        with fresh.client() as other:
            refused = other.post(CHAT, json=chat_body())
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert list(lines)[-1] == "data: [DONE]"
    engine = fresh.engine_pid()
    assert fresh.wait_exit() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def test_drain_timeout_ends_requests_with_an_error() -> None:
    with running_server(drain_timeout=0.3) as server:
        with (
            server.client() as http,
            http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True)) as response,
        ):
            lines = lines_of(response)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            error = json.loads(list(lines)[-1].removeprefix("data: "))["error"]
        assert "shutting down" in error["message"]
        assert server.wait_exit() == 0


def test_second_sigterm_ends_at_once(fresh: Server) -> None:
    def read() -> None:
        with fresh.client() as http:
            responses.append(http.post(CHAT, json=chat_body("[long][slow]", stream=True)).text)

    responses: list[str] = []
    reader = threading.Thread(target=read)
    reader.start()
    fresh.wait_metric(IN_USE, 1)
    fresh.process.send_signal(signal.SIGTERM)
    fresh.wait_status("/health/ready", 503, 5)
    fresh.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert fresh.wait_exit() == 0
    assert time.monotonic() - started < 5
    reader.join(10)
    assert "shutting down" in responses[0]


def test_port_in_use_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_server(port=port, environment={"DEEPSEEK_FAKE_LOAD": "sleep60"}, wait=False) as server:
            assert server.wait_exit(15) == 1
            assert f"port {port} on 127.0.0.1 is in use" in server.output and "--port" in server.output
            assert "Traceback" not in server.output


def test_model_that_cannot_be_loaded_ends_the_server_with_the_reason() -> None:
    with running_server(environment={"DEEPSEEK_FAKE_LOAD": "broken"}, wait=False) as server:
        assert server.wait_exit(15) == 1
        assert "truncated: delete it and pull it again" in server.output
        assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("host", "message"), [("203.0.113.7", "not an address of this machine"), ("no.such.host.invalid", "not an address")]
)
def test_hosts_that_cannot_be_bound(host: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        bind(host, free_port())


def test_engine_dies_with_a_killed_server(fresh: Server) -> None:
    engine = fresh.engine_pid()
    fresh.process.send_signal(signal.SIGKILL)
    fresh.process.wait(5)
    deadline = time.monotonic() + 5
    while _alive(engine):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
