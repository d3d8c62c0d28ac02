"""``/v1/usage``: finished, cancelled and failed requests, each counted as what it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, chat_body, running_server

CHAT = "/v1/chat/completions"
COUNTERS = (
    "requests",
    "errors",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
)


@pytest.fixture
def keyed() -> Iterator[Server]:
    with running_server(api_keys=("sk-one", "sk-two")) as server:
        yield server


def client_of(server: Server, key: str = "sk-one") -> httpx.Client:
    return server.client(headers={"authorization": f"Bearer {key}"})


def used(http: httpx.Client, query: str = "") -> dict[str, int]:
    """Sums over all buckets."""
    response = http.get(f"/v1/usage?{query}")
    assert response.status_code == 200, response.text
    results = [result for bucket in response.json()["data"] for result in bucket["results"]]
    return {name: sum(result[name] for result in results) for name in COUNTERS}


def wait_used(http: httpx.Client, **expected: int) -> dict[str, int]:
    deadline = time.monotonic() + 5
    while not expected.items() <= (found := used(http)).items():
        assert time.monotonic() < deadline, (found, expected)
        time.sleep(0.05)
    return found


def test_finished_requests(keyed: Server) -> None:
    with client_of(keyed) as http, client_of(keyed, "sk-two") as other:
        assert used(http) == dict.fromkeys(COUNTERS, 0)
        expected = dict.fromkeys(COUNTERS, 0)
        for body in (chat_body("x" * 100), chat_body("x" * 100), chat_body("n", n=3, max_tokens=4)):
            usage = http.post(CHAT, json=body).json()["usage"]
            expected["requests"] += 1
            expected["prompt_tokens"] += usage["prompt_tokens"]
            expected["cached_tokens"] += usage["prompt_tokens_details"]["cached_tokens"]
            expected["completion_tokens"] += usage["completion_tokens"]
        assert expected["cached_tokens"] > 0
        assert used(http) == expected
        http.post(CHAT, json=chat_body(stream=True)).read()
        assert used(http)["requests"] == 4
        assert used(other) == dict.fromkeys(COUNTERS, 0)
        time.sleep(1.5)  # written by now
        assert used(http)["requests"] == 4


def test_refused_requests_are_no_use(keyed: Server) -> None:
    with client_of(keyed) as http:
        assert http.post(CHAT, json=chat_body(temperature=9)).status_code == 400
        assert http.post(CHAT, json=chat_body("x" * 5000)).status_code == 400
        assert used(http) == dict.fromkeys(COUNTERS, 0)


def test_cancelled_requests_count_what_was_computed(keyed: Server) -> None:
    with client_of(keyed) as http:
        with http.stream("POST", CHAT, json=chat_body("[long][slow]", stream=True)) as response:
            lines = response.iter_lines()
            for _ in range(20):
                next(lines)
        found = wait_used(http, requests=1, cancelled=1)
        assert found["errors"] == 0 and found["prompt_tokens"] > 0 and 5 < found["completion_tokens"] < 2000
        with pytest.raises(httpx.ReadTimeout):
            http.post(CHAT, json=chat_body("[long][slow]"), timeout=0.3)
        wait_used(http, requests=2, cancelled=2)


def test_failed_requests(keyed: Server) -> None:
    with client_of(keyed) as http:
        assert http.post(CHAT, json=chat_body("[nan]")).status_code == 500
        found = used(http)
        assert (found["requests"], found["errors"], found["cancelled"]) == (1, 1, 0)
        assert found["completion_tokens"] == 3 and found["prompt_tokens"] > 0
        assert http.post(CHAT, json=chat_body("[die]")).status_code == 503
        assert used(http)["errors"] == 2


def test_buckets(keyed: Server) -> None:
    with client_of(keyed) as http:
        http.post(CHAT, json=chat_body())
        http.post("/v1/completions", json={"model": "tiny-fake-1b", "prompt": "x"})
        now = int(time.time())
        hours = http.get("/v1/usage?bucket_width=1h&group_by=model").json()
        assert hours["object"] == "list" and len(hours["data"]) == 24
        last = hours["data"][-1]
        assert last["object"] == "bucket" and last["start_time"] % 3600 == 0
        assert last["end_time"] == last["start_time"] + 3600
        results = [result for bucket in hours["data"] for result in bucket["results"]]
        assert {result["model"] for result in results} == {"tiny-fake-1b"}  # whichever name was asked for
        assert sum(result["requests"] for result in results) == 2
        days = http.get("/v1/usage").json()["data"]
        assert len(days) == 30 and [r["model"] for r in days[-1]["results"]] == [None]
        one = http.get(f"/v1/usage?start_time={now}&end_time={now + 1}&bucket_width=1h").json()["data"]
        assert len(one) == 1 and one[0]["start_time"] <= now < one[0]["end_time"]
        assert used(http, f"start_time=0&end_time={86_400}") == dict.fromkeys(COUNTERS, 0)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("bucket_width=1m", "bucket_width"),
        ("group_by=key", "group_by"),
        ("start_time=yesterday", "start_time"),
        ("start_time=-1", "start_time"),
        (f"end_time={2**62}", "end_time"),
        ("start_time=1000000&end_time=1000", "end_time"),
        ("start_time=0", "start_time"),
        ("tenant=other", "tenant"),
    ],
)
def test_bad_queries(server: Server, query: str, param: str) -> None:
    with server.client() as http:
        response = http.get(f"/v1/usage?{query}")
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_survives_sigkill_but_for_a_second(tmp_path: Any) -> None:
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        answer = http.post(CHAT, json=chat_body())
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER and answer.json()["model"] == MODEL
        server.wait_metric("deepseek_usage_rows_waiting", 0)
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        assert used(http)["requests"] == 1
