"""Two engines behind one model, and a second model that is loaded and unloaded, with real weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import RealServer

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
STORY = "Once upon a time there was a small robot who lived in a big library. " * 12


@pytest.fixture(scope="module")
def server(test_model: Path) -> Iterator[RealServer]:
    options = ("--replicas", "2", "--threads", "2", "--kv-cache-bytes", "256MiB")
    running = RealServer(str(test_model), *options, "--allow-model-loading", "--model-dir", str(test_model.parent))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(server: RealServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
        yield client


def engines(server: RealServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "deepseek.runtime.worker" in child.cmdline()]


def ask(http: httpx.Client, messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
    body = {"model": "deepseek-v2.1", "messages": messages, "temperature": 0, "max_tokens": 24} | fields
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_two_replicas_answer_alike_and_keep_prefixes_apart(server: RealServer, http: httpx.Client) -> None:
    processes = engines(server)
    assert len(processes) == 2
    if psutil.cpu_count() > 1 and len(psutil.Process().cpu_affinity()) > 1:
        assert not set(processes[0].cpu_affinity()) & set(processes[1].cpu_affinity())
    conversations = [[{"role": "user", "content": f"{i}. {STORY} Sum it up."}] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first = list(pool.map(lambda messages: ask(http, messages), conversations))
    again = [ask(http, messages) for messages in conversations]
    for one, two in zip(first, again, strict=True):
        assert one["choices"][0]["message"] == two["choices"][0]["message"]
        assert two["usage"]["prompt_cache_hit_tokens"] >= 128
    text = http.get("/metrics").text
    for replica in "01":
        finished = f'deepseek_engine_finished_total{{model="deepseek-v2.1",replica="{replica}"}} '
        assert float(text.partition(finished)[2].split()[0]) >= 2, "both have answered"


def value(http: httpx.Client, name: str) -> float:
    """The sum of a metric's samples."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def ready_engines(http: httpx.Client) -> int:
    lines = http.get("/metrics").text.splitlines()
    return sum(line.startswith("deepseek_engine_state{") and line.endswith('state="ready"} 1.0') for line in lines)


def test_killing_one_replica_leaves_the_other(server: RealServer, http: httpx.Client) -> None:
    engines(server)[0].kill()
    deadline = time.monotonic() + 120
    while not value(http, "deepseek_engine_restarts_total"):
        assert time.monotonic() < deadline
    while ready_engines(http) < 2:
        assert http.get("/health/ready").status_code == 200
        assert "Paris" in ask(http, PARIS)["choices"][0]["message"]["content"]
        assert time.monotonic() < deadline
    assert len(engines(server)) == 2


def test_a_second_model_is_loaded_used_and_unloaded(server: RealServer, http: httpx.Client, test_model: Path) -> None:
    before = len(engines(server))
    asked = {"model": test_model.name, "name": "second", "kv_cache_bytes": 64 << 20, "threads": 1, "dtype": "fp32"}
    with http.stream("POST", "/v1/models/load", json=asked | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]" and '"status":"ready"' in lines[-2], lines[-3:]
    assert any('"phase":"loading"' in line for line in lines)
    assert len(engines(server)) == before + 1
    answer = ask(http, PARIS, model="second")
    assert answer["model"] == "second" and "Paris" in answer["choices"][0]["message"]["content"]
    newest = max(engines(server), key=lambda process: process.create_time())
    assert http.post("/v1/models/unload", json={"model": "second"}).status_code == 200
    assert not newest.is_running() and len(engines(server)) == before
    assert "Paris" in ask(http, PARIS)["choices"][0]["message"]["content"]
