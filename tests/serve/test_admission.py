"""The node's bounds, and what the queue behind them does: counted, with the real engine where order matters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deepseek.config import EngineConfig
from deepseek.errors import EngineOverloadedError, InvalidRequestError
from deepseek_serve.admission import MAX_RETRY, MIN_RETRY, Admission, Stock
from deepseek_serve.auth import ApiKey
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, chat_body, running_server

CHAT = "/v1/chat/completions"
IN_USE = "deepseek_admitted_answers"
KEYS = tuple(ApiKey.of(f"sk-{name}", name=name) for name in ("flood", "quiet"))
SMALL = {"engine_factory": "runtime.small_engine:load"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_wait_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stock = Stock(10)
    assert stock.wait_for(1) == MIN_RETRY
    entered = []
    for _ in range(10):  # one per second, each stays for ten
        entered.append(stock.enter(1))
        clock.now += 1
    for _ in range(200):
        stock.leave(1, entered.pop(0))
        entered.append(stock.enter(1))
        clock.now += 1
    assert 1.0 <= stock.wait_for(1) <= 1.7, "one is free each second"
    assert 4.5 <= stock.wait_for(5) <= 8.5
    clock.now += 100  # nothing has gone for long
    assert stock.wait_for(1) >= 10
    clock.now += 10_000
    assert stock.wait_for(10) == MAX_RETRY
    for item in entered:
        stock.leave(1, item)
    assert stock.in_use == 0 and stock.wait_for(1) == MIN_RETRY


def held_alone(capacity: int, *, several: bool, weight: float = 1.0) -> int:
    stock = Stock(capacity, several=several)
    while not stock.missing(1, "a", weight):
        stock.enter(1, "a")
    return stock.in_use


def test_several_keys_leave_room_for_each_other() -> None:
    assert held_alone(90, several=False) == 90
    assert held_alone(90, several=True) == 80
    assert held_alone(90, several=True, weight=0.125) == 45
    assert [held_alone(n, several=True) for n in (1, 2, 3, 8, 9)] == [1, 1, 2, 7, 8]
    stock = Stock(90, several=True)
    for _ in range(200):
        for key in "ab":
            if not stock.missing(1, key):
                stock.enter(1, key)
    assert sorted(stock._held.values()) == [42, 42]
    assert not stock.missing(5, "c"), "a newcomer finds room"
    missing = stock.missing(1, "a")
    for _ in range(missing):
        stock.leave(1, time.monotonic(), "b")
    assert missing >= 1 and not stock.missing(1, "a"), "so many must go, and no more are asked for"


def test_admission_refuses_and_gives_back() -> None:
    admission = Admission(4, 100)
    with admission.enter(3):
        with pytest.raises(EngineOverloadedError, match="3 of 4") as caught, admission.enter(2):
            pass
        assert MIN_RETRY <= caught.value.retry_after <= MAX_RETRY
        with pytest.raises(InvalidRequestError), admission.enter(5):
            pass
    assert admission.in_use == 0
    first = admission.wait([50, 30])
    with pytest.raises(EngineOverloadedError, match="80 prompt tokens wait"):
        admission.wait([30])
    first[0].close()
    first[0].close()
    assert admission.prompt_tokens == 30
    (small,) = admission.wait([30])
    first[1].close()
    small.close()
    (huge,) = admission.wait([1000])  # alone it may be longer than the bound
    with pytest.raises(EngineOverloadedError):
        admission.wait([1])
    huge.close()
    assert admission.prompt_tokens == 0
    admission.draining = True
    with pytest.raises(EngineOverloadedError, match="shutting down"), admission.enter(1):
        pass
    assert admission.refusals == {"answers": 1, "prompt_tokens": 2, "draining": 1}


# -- over HTTP ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_server(places: int = 4, rows: int = 32, **config: Any) -> Iterator[Server]:
    """A server with the real scheduler, which has answered a request of its own, so that all metrics are there."""
    engine = EngineConfig(max_running=places, max_batch_tokens=rows)
    with running_server(engine=engine, options=SMALL, **{"api_keys": KEYS, "max_sequences": 200} | config) as server:
        with server.client(headers={"authorization": "Bearer sk-quiet"}) as http:
            assert http.post("/v1/completions", json=text_body(20, 1)).status_code == 200
        yield server


@pytest.fixture
def narrow() -> Iterator[Server]:
    """Two places in the batch, and 300 prompt tokens that may wait."""
    with small_server(places=2, rows=16, api_keys=(), max_sequences=100, max_waiting_tokens=300) as server:
        yield server


def text_body(prompt: int, answer: int, **fields: Any) -> dict[str, Any]:
    """A completion of ``prompt`` tokens of prompt that never ends before ``answer`` tokens."""
    return {"model": MODEL, "prompt": [7] * prompt, "max_tokens": answer, "ignore_eos": True, **fields}


@pytest.mark.anyio
async def test_waiting_prompt_tokens_are_bounded(narrow: Server) -> None:
    async with httpx.AsyncClient(base_url=narrow.url, trust_env=False, timeout=60) as http:

        async def post(**fields: Any) -> httpx.Response:
            return await http.post("/v1/completions", json=text_body(**fields))

        running = [asyncio.create_task(post(prompt=1, answer=1900)) for _ in range(2)]
        await asyncio.to_thread(narrow.wait_metric, "deepseek_engine_running", 2)
        await asyncio.to_thread(narrow.wait_metric, "deepseek_waiting_prompt_tokens", 0)
        waiting = [asyncio.create_task(post(prompt=n, answer=1)) for n in (200, 90)]
        await asyncio.to_thread(narrow.wait_metric, "deepseek_waiting_prompt_tokens", 290)
        refused = await post(prompt=11, answer=1)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 500
        assert refused.json()["error"]["code"] == "server_is_overloaded"
        assert "prompt tokens" in refused.json()["error"]["message"]
        many = await http.post("/v1/completions", json=text_body(1, 1) | {"prompt": [[7] * 6] * 2})
        assert many.status_code == 503, "a list counts as all of its prompts"
        small = asyncio.create_task(post(prompt=10, answer=1))
        responses = await asyncio.gather(*running, *waiting, small)
    assert [r.status_code for r in responses] == [200] * 5
    narrow.wait_metric("deepseek_waiting_prompt_tokens", 0)
    with narrow.client() as client:
        assert client.post("/v1/completions", json=text_body(1500, 1)).status_code == 200, "alone it may be longer"


async def until_sent(server: Server, count: int) -> None:
    """Wait until so many requests of 20 tokens have reached the engine's queue, or gone through it."""

    def sent() -> float:
        return server.metric("deepseek_engine_waiting") + server.metric("deepseek_engine_prompt_tokens_total") / 20

    async with asyncio.timeout(20):
        while await asyncio.to_thread(sent) < count - 4:  # those in their first steps are in neither
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_flood_of_one_key_does_not_delay_another_key() -> None:
    """The quiet key's requests are done while most of the flood still waits, though all of it came before."""
    with small_server() as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as http:

            async def post(key: str) -> int:
                headers = {"authorization": f"Bearer sk-{key}"}
                return (await http.post("/v1/completions", json=text_body(20, 150), headers=headers)).status_code

            flood = [asyncio.create_task(post("flood")) for _ in range(60)]
            await until_sent(server, 60)
            assert [await post("quiet") for _ in range(5)] == [200] * 5
            done = sum(task.done() for task in flood)
            assert done <= 30, "first come, first served had finished all 60"
            assert set(await asyncio.gather(*flood)) == {200}


@pytest.mark.anyio
async def test_a_flood_of_users_of_one_key_gains_nothing() -> None:
    with small_server() as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as http:

            async def post(key: str, user: str) -> int:
                headers = {"authorization": f"Bearer sk-{key}"}
                body = text_body(20, 150, user_id=user)
                return (await http.post("/v1/completions", json=body, headers=headers)).status_code

            flood = [asyncio.create_task(post("flood", f"user/{i}")) for i in range(60)]
            await until_sent(server, 60)
            assert [await post("quiet", "only") for _ in range(5)] == [200] * 5
            assert sum(task.done() for task in flood) <= 30
            await asyncio.gather(*flood)


@pytest.mark.anyio
async def test_flex_waits_for_the_default_tier() -> None:
    with small_server(api_keys=()) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as http:

            async def post(tier: str) -> int:
                body = text_body(20, 150, service_tier=tier)
                return (await http.post("/v1/completions", json=body)).status_code

            flex = [asyncio.create_task(post("flex")) for _ in range(40)]
            await until_sent(server, 40)
            live = [asyncio.create_task(post("default")) for _ in range(12)]
            assert set(await asyncio.gather(*live)) == {200}
            assert sum(task.done() for task in flex) <= 20
            assert set(await asyncio.gather(*flex)) == {200}, "and nobody is forgotten"


@pytest.mark.anyio
async def test_a_flood_of_one_key_leaves_room_for_another() -> None:
    with running_server(max_sequences=90, api_keys=KEYS) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:

            async def post(key: str, text: str) -> int:
                headers = {"authorization": f"Bearer sk-{key}"}
                return (await http.post(CHAT, json=chat_body(text), headers=headers)).status_code

            flood = [asyncio.create_task(post("flood", "[slow]")) for _ in range(200)]
            await asyncio.to_thread(server.wait_metric, IN_USE, 80)
            assert await asyncio.gather(*(post("quiet", "hi") for _ in range(5))) == [200] * 5
            statuses = Counter(await asyncio.gather(*flood))
            assert statuses[200] >= 80 and statuses[200] + statuses[503] == 200


@pytest.mark.anyio
async def test_overload_answers_every_socket_once() -> None:
    """600 connections on a server that takes 60 answers: each gets its own answer or is told when to come again."""
    async with asyncio.timeout(100):
        with running_server(max_sequences=60) as server:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=90, limits=limits) as http:

                async def post(i: int) -> tuple[int, str, str]:
                    if i % 3 == 0:
                        body = chat_body("[slow]", stream=True)
                    elif i % 3 == 1:
                        body = chat_body(f"[seed]{i}", seed=i)
                    else:
                        body = chat_body("[slow]", n=3)
                    response = await http.post(CHAT, json=body)
                    if response.status_code != 200:
                        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
                        assert response.json()["error"]["code"] == "server_is_overloaded"
                        return 503, response.headers["x-request-id"], ""
                    if i % 3 == 0:
                        *events, last = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
                        assert last == "[DONE]" and response.text.count("[DONE]") == 1
                        chunks = [json.loads(event) for event in events]
                        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
                        assert text == ANSWER and [c["choices"][0]["finish_reason"] for c in chunks].count("stop") == 1
                        return 200, response.headers["x-request-id"], chunks[0]["id"]
                    choices = response.json()["choices"]
                    expected = [str(i)] if i % 3 == 1 else [ANSWER] * 3
                    assert [choice["message"]["content"] for choice in choices] == expected
                    return 200, response.headers["x-request-id"], response.json()["id"]

                results = await asyncio.gather(*(post(i) for i in range(600)))
            statuses = Counter(status for status, _, _ in results)
            assert statuses[200] + statuses[503] == 600 and statuses[200] >= 30 and statuses[503] >= 100
            assert len({request for _, request, _ in results}) == 600
            answers = [answer for _, _, answer in results if answer]
            assert len(set(answers)) == len(answers) == statuses[200]
            server.wait_metric(IN_USE, 0)
            server.wait_metric("deepseek_waiting_prompt_tokens", 0)
            server.wait_metric("deepseek_engine_running", 0)
