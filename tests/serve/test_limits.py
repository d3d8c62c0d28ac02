"""Limits of keys: in memory, in Redis, and over HTTP. Counted, not timed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from deepseek.errors import ConfigurationError
from deepseek_serve.auth import ApiKey
from deepseek_serve.errors import ApiError
from deepseek_serve.limits import PERIOD, Limits, Window, Windows, duration
from tests.serve.conftest import Server, chat_body, events_of, free_port, running_server

CHAT = "/v1/chat/completions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def redis_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        _wait_for(port)
        yield process
    finally:
        process.kill()
        process.wait(10)


def _wait_for(port: int) -> None:
    import redis

    client = redis.Redis(port=port)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            client.close()
            return


@pytest.fixture(params=["memory", "redis"])
async def windows(request: pytest.FixtureRequest) -> AsyncIterator[Windows]:
    if request.param == "memory":
        yield Windows()
        return
    port = free_port()
    with redis_server(port):
        windows = Windows(f"redis://127.0.0.1:{port}/0")
        yield windows
        assert windows.failures == 0


@pytest.mark.anyio
async def test_window_fills_refuses_and_is_corrected(windows: Windows) -> None:
    assert await windows.take("k", 10, 0) == (True, Window(10, 0, PERIOD))
    fits, window = await windows.take("k", 10, 6)
    assert fits and window.used == 6 and PERIOD - 2 <= window.reset <= PERIOD
    fits, window = await windows.take("k", 10, 5)
    assert not fits and window.used == 6, "what is refused takes nothing"
    fits, window = await windows.take("k", 10, 4)
    assert fits and window.used == 10 and PERIOD - 2 <= window.reset <= PERIOD
    await windows.correct("k", 10, -7)
    assert (await windows.take("k", 10, 0))[1].used == 3
    await windows.correct("k", 10, 20)
    fits, window = await windows.take("k", 10, 1)
    assert not fits and window.used >= 10
    assert (await windows.take("other", 10, 10))[0], "counters have names"


@pytest.mark.anyio
async def test_window_never_lets_in_more_than_its_limit_at_once(windows: Windows) -> None:
    results = await asyncio.gather(*(windows.take("k", 50, 3) for _ in range(60)))
    assert sum(fits for fits, _ in results) * 3 <= 50
    fits, window = await windows.take("k", 50, 50 - (await windows.take("k", 50, 0))[1].used)
    assert fits and window.used == 50


@pytest.mark.anyio
async def test_a_clock_set_back_does_not_lock_a_key_out(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Windows()
    assert (await windows.take("k", 1, 1))[0]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert (await windows.take("k", 1, 1))[0]
    assert not (await windows.take("k", 1, 1))[0]
    monkeypatch.setattr(time, "time", lambda: now - 3600 + PERIOD + 1)
    assert (await windows.take("k", 1, 1))[0]


@pytest.mark.anyio
async def test_two_nodes_share_redis_and_each_goes_on_without_it() -> None:
    port = free_port()
    with redis_server(port) as process:
        one, two = (Windows(f"redis://127.0.0.1:{port}/0") for _ in range(2))
        assert (await one.take("k", 3, 2))[0]
        assert not (await two.take("k", 3, 2))[0]
        assert (await two.take("k", 3, 1))[0]
        assert not (await one.take("k", 3, 1))[0]
        process.kill()
        process.wait(10)
    assert (await one.take("k", 3, 3))[0], "its own memory knows nothing yet"
    assert not (await one.take("k", 3, 1))[0], "but it counts"
    assert one.failures == 1, "Redis is left alone for a while"


@pytest.mark.anyio
async def test_redis_that_was_never_there() -> None:
    windows = Windows(f"redis://127.0.0.1:{free_port()}/0")
    assert (await windows.take("k", 1, 1))[0] and windows.failures == 1


def test_stores_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="redis://host"):
        Windows("memcached://x")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0115, "12ms"),
        (0.9999, "1000ms"),
        (1, "1s"),
        (1.2, "2s"),
        (59.0, "59s"),
        (59.5, "1m0s"),
        (360, "6m0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds).replace("1000ms", "1s") == text.replace("1000ms", "1s")


class Book:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()

    async def tokens_this_month(self, tenant: str) -> int:
        return self.tokens[tenant]

    def add(self, tenant: str, tokens: int) -> None:
        self.tokens[tenant] += tokens


def asking(method: str = "POST") -> Any:
    return SimpleNamespace(method=method, state=SimpleNamespace(headers={}))


@pytest.mark.anyio
async def test_tokens_are_given_back_in_their_own_minute_only(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits("memory", Book())
    key = ApiKey(name="k", tokens_per_minute=100)

    async def left() -> int:
        request = asking("GET")
        await limits.begin(request, key)
        return int(request.state.headers["x-ratelimit-remaining-tokens"])

    reservation = await limits.reserve(asking(), key, 80)
    assert await left() == 20
    limits.settle(key, reservation, 30)
    await asyncio.sleep(0)
    await asyncio.gather(*limits._tasks)
    assert await left() == 70
    reservation = await limits.reserve(asking(), key, 50)
    now, clock = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now + PERIOD + 1)
    monkeypatch.setattr(time, "monotonic", lambda: clock + PERIOD + 1)
    assert await left() == 100
    limits.settle(key, reservation, 10)
    assert not limits._tasks and await left() == 100
    limits.settle(key, await limits.reserve(asking(), key, 10), 25)  # longer than expected: on the account all the same
    await asyncio.gather(*limits._tasks)
    assert await left() == 75


@pytest.mark.anyio
async def test_quota_by_the_month() -> None:
    book = Book()
    limits = Limits("memory", book)
    key = ApiKey(name="k", monthly_tokens=100)
    await limits.begin(asking(), key)
    limits.settle(key, None, 99)
    await limits.begin(asking(), key)
    limits.settle(key, None, 1)
    with pytest.raises(ApiError) as caught:
        await limits.begin(asking(), key)
    assert caught.value.status == 402 and caught.value.body.code == "insufficient_quota"
    assert caught.value.headers["x-should-retry"] == "false"
    await limits.begin(asking("GET"), key)
    book.tokens.clear()  # another month
    await limits.begin(asking(), key)


# -- over HTTP ------------------------------------------------------------------------------------------------------


def key(name: str, **settings: Any) -> ApiKey:
    return ApiKey.of(f"sk-{name}", name=name, **settings)


KEYS = (
    key("free"),
    key("requests", requests_per_minute=5),
    key("tokens", tokens_per_minute=600),
    key("wide", requests_per_minute=1000, tokens_per_minute=100_000),
    key("narrow", concurrency=2),
    key("quota", monthly_tokens=60),
    key("vip", max_priority=10),
)


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    with running_server(api_keys=KEYS) as server:
        yield server


def client_of(server: Server, name: str) -> httpx.Client:
    return server.client(headers={"authorization": f"Bearer sk-{name}"})


def refused(response: httpx.Response, kind: str) -> dict[str, Any]:
    assert response.status_code == 429, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == "rate_limit_exceeded" and error["type"] == kind and error["param"] is None
    assert response.headers["openai-processing-ms"] and response.headers["x-request-id"]
    return error


def test_requests_per_minute(limited: Server) -> None:
    with client_of(limited, "requests") as http:
        left = [
            http.post(CHAT, json=chat_body()).headers["x-ratelimit-remaining-requests"],
            http.post(CHAT, json=chat_body(stream=True)).headers["x-ratelimit-remaining-requests"],
            http.post(CHAT, content=b"{").headers["x-ratelimit-remaining-requests"],
            http.get("/v1/models").headers["x-ratelimit-remaining-requests"],
            http.post(CHAT, json=chat_body() | {"model": "none"}).headers["x-ratelimit-remaining-requests"],
            http.post("/tokenize", json={"prompt": "x"}).headers["x-ratelimit-remaining-requests"],
        ]
        assert left == ["4", "3", "2", "2", "1", "0"]
        for body in (chat_body(), chat_body(stream=True)):
            response = http.post(CHAT, json=body)
            error = refused(response, "requests")
            assert "on requests per min (RPM): Limit 5, Used 5, Requested 1" in error["message"]
            assert "'requests'" in error["message"] and "try again in" in error["message"]
            assert 1 <= int(response.headers["retry-after"]) <= PERIOD
            assert int(response.headers["retry-after-ms"]) <= int(response.headers["retry-after"]) * 1000
            assert response.headers["x-ratelimit-limit-requests"] == "5"
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        assert http.get("/v1/models").status_code == 200
    with client_of(limited, "free") as http:
        response = http.post(CHAT, json=chat_body())
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_tokens_per_minute_are_reserved_and_corrected(limited: Server) -> None:
    def left(response: httpx.Response) -> int:
        assert response.headers["x-ratelimit-limit-tokens"] == "600"
        return int(response.headers["x-ratelimit-remaining-tokens"])

    with client_of(limited, "tokens") as http:
        body = chat_body("a", max_tokens=100)
        response = http.post(CHAT, json=body)
        usage = response.json()["usage"]
        prompt = usage["prompt_tokens"]
        assert left(response) == 600 - prompt - 100
        used = usage["total_tokens"]
        assert left(http.get("/v1/models")) == 600 - used
        http.post(CHAT, content=b"{")
        assert left(http.get("/v1/models")) == 600 - used, "what never ran costs nothing"
        too_large = http.post(CHAT, json=chat_body("a", max_tokens=601))
        error = refused(too_large, "tokens")
        assert f"Limit 600, Requested {601 + prompt}" in error["message"] and "too large" in error["message"]
        assert too_large.headers["x-should-retry"] == "false" and "retry-after" not in too_large.headers
        error = refused(http.post(CHAT, json=chat_body("a", max_tokens=600 - prompt)), "tokens")
        assert f"Limit 600, Used {used}, Requested 600" in error["message"]
        assert left(http.get("/v1/models")) == 600 - used, "what is refused costs nothing"
        assert http.post(CHAT, json=chat_body("a", max_tokens=10)).status_code == 200
        refused(http.post(CHAT, json=chat_body("a", max_tokens=100, n=6)), "tokens")
        refused(http.post("/v1/completions", json={"model": body["model"], "prompt": ["ab"] * 40}), "tokens")


def test_a_gone_client_gets_back_what_it_did_not_use(limited: Server) -> None:
    with client_of(limited, "wide") as http:
        body = chat_body("[long][slow]", max_tokens=1500, stream=True)
        with http.stream("POST", CHAT, json=body) as response:
            next(response.iter_lines())
            assert int(response.headers["x-ratelimit-remaining-tokens"]) <= 98_500
        limited.wait_metric("deepseek_admitted_answers", 0)
        assert int(http.get("/v1/models").headers["x-ratelimit-remaining-tokens"]) >= 99_000


def test_concurrency(limited: Server) -> None:
    with (
        client_of(limited, "narrow") as http,
        http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True)) as r,
    ):
        lines = r.iter_lines()
        next(lines)
        response = http.post(CHAT, json=chat_body(n=2))
        error = refused(response, "concurrency")
        assert "answers at a time: Limit 2, Used 1, Requested 2" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        too_many = http.post(CHAT, json=chat_body(n=3))
        assert "too large" in refused(too_many, "concurrency")["message"]
        assert too_many.headers["x-should-retry"] == "false"
        assert http.post(CHAT, json=chat_body()).status_code == 200
    limited.wait_metric("deepseek_admitted_answers", 0)
    with client_of(limited, "narrow") as http:
        assert http.post(CHAT, json=chat_body(n=2)).status_code == 200


def test_used_up_quota(limited: Server) -> None:
    with client_of(limited, "quota") as http:
        while (response := http.post(CHAT, json=chat_body())).status_code == 200:
            pass
        assert response.status_code == 402
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert "of its 60 tokens" in error["message"] and response.headers["x-should-retry"] == "false"
        assert http.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("name", "asked", "served"),
    [
        ("free", "auto", "default"),
        ("free", "default", "default"),
        ("free", "flex", "flex"),
        ("free", "priority", "default"),
        ("vip", "priority", "priority"),
        ("vip", "flex", "flex"),
        ("free", None, None),
    ],
)
def test_service_tier(limited: Server, name: str, asked: str | None, served: str | None) -> None:
    with client_of(limited, name) as http:
        whole = http.post(CHAT, json=chat_body(service_tier=asked)).json()
        chunks = [
            json.loads(event)
            for event in events_of(http.post(CHAT, json=chat_body(service_tier=asked, stream=True)))
            if event != "[DONE]"
        ]
        text = http.post("/v1/completions", json={"model": whole["model"], "prompt": "x", "service_tier": asked}).json()
    for body in (whole, *chunks, text):
        assert body.get("service_tier") == served


def test_service_tiers_that_are_none(limited: Server) -> None:
    with client_of(limited, "free") as http:
        for value in ("gold", 5, ["flex"]):
            response = http.post(CHAT, json=chat_body(service_tier=value))
            assert response.status_code == 400 and response.json()["error"]["param"].startswith("service_tier")
        response = http.post(CHAT, json=chat_body(priority=100))
        assert response.status_code == 400, "nobody raises itself"
        assert http.post(CHAT, json=chat_body(user_id="x" * 513)).json()["error"]["param"] == "user_id"


def test_refusals_are_counted(limited: Server) -> None:
    with limited.client() as http:
        text = http.get("/metrics").text
    for reason in ("requests", "tokens", "concurrency", "quota"):
        assert f'deepseek_refused_requests_total{{reason="{reason}"}}' in text


def test_limits_in_redis_over_http_and_without_it() -> None:
    port = free_port()
    with redis_server(port) as process:
        settings = {"api_keys": (key("k", requests_per_minute=3),), "limits_store": f"redis://127.0.0.1:{port}/1"}
        with running_server(**settings) as one, running_server(**settings) as two:
            with client_of(one, "k") as http, client_of(two, "k") as other:
                assert http.post(CHAT, json=chat_body()).headers["x-ratelimit-remaining-requests"] == "2"
                assert other.post(CHAT, json=chat_body()).headers["x-ratelimit-remaining-requests"] == "1"
                assert http.post(CHAT, json=chat_body()).headers["x-ratelimit-remaining-requests"] == "0"
                refused(other.post(CHAT, json=chat_body()), "requests")
                process.kill()
                process.wait(10)
                assert other.post(CHAT, json=chat_body()).status_code == 200
                assert two.metric("deepseek_limits_store_failures_total") == 1
            two.stop()
            assert "Redis failed" in two.output
