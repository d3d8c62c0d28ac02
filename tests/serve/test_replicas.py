"""Several engines behind one model."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek.runtime.supervisor import RuntimeOptions
from deepseek_serve import replicas
from deepseek_serve.config import ServeConfig
from tests.serve.conftest import Server, chat_body, events_of, running_server

CHAT = "/v1/chat/completions"
LONG = "the same long beginning of a conversation " * 4


@pytest.fixture
def two() -> Iterator[Server]:
    with running_server(replicas=2) as server:
        wait_replicas(server, 2)
        yield server


def wait_replicas(server: Server, ready: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := server.metric('deepseek_engine_state{model="deepseek-v2.1",replica="0",state="ready"}')) + (
        server.metric('deepseek_engine_state{model="deepseek-v2.1",replica="1",state="ready"}')
    ) != ready:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


class Streams:
    """Streams that are read in threads of their own."""

    def __init__(self, server: Server, count: int, text: str, **fields: Any) -> None:
        self.texts: list[str] = [""] * count
        self._threads = [
            threading.Thread(target=self._read, args=(server, i, chat_body(f"{i} {text}", stream=True, **fields)))
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, server: Server, index: int, body: dict[str, Any]) -> None:
        with server.client() as http, http.stream("POST", CHAT, json=body) as response:
            for line in response.iter_lines():
                self.texts[index] += line + "\n"

    def wait(self) -> list[str]:
        for thread in self._threads:
            thread.join(30)
        return self.texts


def test_killing_one_of_two_under_load(two: Server) -> None:
    streams = Streams(two, 8, "[long][slow]", max_tokens=100)
    two.wait_metric("deepseek_engine_running", 8)
    victim = two.engine_pids()[0]
    os.kill(victim, signal.SIGKILL)
    two.wait_metric("deepseek_engine_restarts_total", 1)
    with two.client() as http:
        assert http.get("/health/ready").status_code == 200
        assert http.post(CHAT, json=chat_body()).status_code == 200
    texts = streams.wait()
    ends = Counter("engine_unavailable" if '"code":"engine_unavailable"' in text else "whole" for text in texts)
    assert ends == {"engine_unavailable": 4, "whole": 4}
    for text in texts:
        assert text.rstrip().endswith("data: [DONE]") == ("engine_unavailable" not in text)
    wait_replicas(two, 2)
    assert victim not in two.engine_pids() and len(two.engine_pids()) == 2
    with two.client() as http:
        for i in range(4):
            assert http.post(CHAT, json=chat_body(str(i))).status_code == 200
    two.wait_metric("deepseek_admitted_answers", 0)


def test_ready_until_the_last_one_is_gone_and_again_with_the_first() -> None:
    with running_server(replicas=2, options={"max_failures": 1}) as server:
        wait_replicas(server, 2)
        first, second = server.engine_pids()
        with server.client() as http:
            os.kill(first, signal.SIGKILL)
            wait_replicas(server, 1)
            assert http.get("/health/ready").status_code == 200
            for _ in range(4):
                assert http.post(CHAT, json=chat_body(LONG)).status_code == 200
            os.kill(second, signal.SIGKILL)
            answer = server.wait_status("/health/ready", 503)
            assert answer.json()["status"] == "failed" and "SIGKILL" in answer.json()["reason"]
            refused = http.post(CHAT, json=chat_body())
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_unavailable"


def test_a_stopped_replica_gets_no_more_requests(two: Server) -> None:
    victim = two.engine_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    time.sleep(0.5)  # signs of life are asked for every 0.1 s
    with two.client() as http:
        for i in range(6):
            assert http.post(CHAT, json=chat_body(str(i)), timeout=3).status_code == 200
        assert http.get("/health/ready").status_code == 200
        assert two.metric('deepseek_engine_finished_total{model="deepseek-v2.1",replica="1"}') == 6
        os.kill(victim, signal.SIGCONT)
        time.sleep(0.5)
        streams = Streams(two, 4, "[slow]")
        assert all("[DONE]" in text for text in streams.wait())
        assert two.metric('deepseek_engine_finished_total{model="deepseek-v2.1",replica="0"}') == 2
    two.wait_metric("deepseek_engine_restarts_total", 0)


def test_a_conversation_stays_where_its_beginning_is(two: Server) -> None:
    def cached(text: str) -> int:
        with two.client() as http:
            usage = http.post(CHAT, json=chat_body(text)).json()["usage"]
        return int(usage["prompt_cache_hit_tokens"])

    assert [cached(f"{name} {LONG}") for name in ("ann", "bob", "eve")] == [0, 0, 0]
    assert all(cached(f"{name} {LONG}") >= 64 for name in ("ann", "bob", "eve", "ann"))
    assert two.metric('deepseek_routed_requests_total{model="deepseek-v2.1",reason="prefix"}') == 4
    assert two.metric('deepseek_routed_requests_total{model="deepseek-v2.1",reason="load"}') == 3


def test_cancelled_answers_end_in_each_replica(two: Server) -> None:
    with two.client() as http:
        for i in range(4):
            body = chat_body(f"{i} [long][slow]", n=2, stream=True)
            with pytest.raises(httpx.ReadTimeout), http.stream("POST", CHAT, json=body, timeout=0.4) as response:
                for _ in response.iter_lines():
                    time.sleep(0.2)
                    raise httpx.ReadTimeout("enough")
    two.wait_metric("deepseek_engine_running", 0)
    two.wait_metric("deepseek_engine_cancelled_total", 8)
    two.wait_metric("deepseek_admitted_answers", 0)


def test_draining_waits_for_all_replicas() -> None:
    with running_server(replicas=2, drain_timeout=20) as server:
        wait_replicas(server, 2)
        streams = Streams(server, 4, "[long][slow]", max_tokens=40)
        server.wait_metric("deepseek_engine_running", 4)
        pids = server.engine_pids()
        server.process.send_signal(signal.SIGTERM)
        assert all(text.rstrip().endswith("data: [DONE]") for text in streams.wait())
        assert server.wait_exit() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_answers_of_one_request_are_whole(two: Server) -> None:
    with two.client() as http:
        response = http.post(CHAT, json=chat_body(LONG, n=8, stream=True))
        chunks = [json.loads(data) for data in events_of(response)[:-1]]
        finished = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"] == "stop"]
        assert sorted(finished) == list(range(8))


def test_threads_memory_and_processors_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 1, 2, 3, 5})
    assert replicas.divide_cpus(2) == [(1, 2), (3, 5, 8)]
    assert replicas.divide_cpus(5) == [(1,), (2,), (3,), (5,), (8,)]
    assert replicas.divide_cpus(6) == []
    made = replicas.engine_clients(EngineConfig(threads=5, kv_cache_bytes=1001), RuntimeOptions(), 2)
    configs = [client.config for client in made]
    assert [(c.threads, c.kv_cache_bytes) for c in configs] == [(2, 500), (2, 500)]
    crowded = replicas.engine_clients(EngineConfig(), RuntimeOptions(), 6)
    assert {client.config.threads for client in crowded} == {1}
    with pytest.raises(ConfigurationError, match="threads"):
        replicas.divide(EngineConfig(threads=1), 2)
    assert replicas.divide(EngineConfig(), 1) == EngineConfig()


@pytest.mark.parametrize("count", [0, 65])
def test_impossible_numbers_of_replicas(count: int) -> None:
    with pytest.raises(ConfigurationError, match="replicas"):
        ServeConfig(replicas=count)
