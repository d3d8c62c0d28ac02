"""Addresses, keys, the SDK's own methods, text streams and the server's extras."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import openai
import pytest

from deepseek.client import AsyncClient, Client
from deepseek.errors import AnswerFailedError, OverloadedError, RejectedError, UnreachableError
from tests.client.conftest import Connect
from tests.runtime.fake_engine import ANSWER, MAX_CONTEXT
from tests.serve.conftest import MODEL, Server, chat_body, free_port, running_server
from tests.serve.conftest import server as server  # the fixture


@pytest.fixture
def client(connect: Connect, server: Server) -> Any:
    return connect(server.url)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, "http://127.0.0.1:8000/v1/"),
        (None, "http://gpu:9000/v1", "http://gpu:9000/v1/"),
        (None, "http://gpu:9000", "http://gpu:9000/v1/"),
        ("http://gpu/", "http://other", "http://gpu/v1/"),
        ("https://gpu/llm/v1", None, "https://gpu/llm/v1/"),
    ],
)
def test_addresses(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, given: str | None, environment: str | None, expected: str
) -> None:
    monkeypatch.delenv("DEEPSEEK_BASE_URL", raising=False)
    if environment is not None:
        monkeypatch.setenv("DEEPSEEK_BASE_URL", environment)
    client = connect(given)
    assert str(client.base_url) == expected
    assert str(client.with_options(timeout=1).base_url) == expected


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    assert Client().api_key == "none"
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-mine")
    assert (Client().api_key, AsyncClient().api_key) == ("sk-mine", "sk-mine")
    assert Client(api_key="sk-given").with_options(max_retries=1).api_key == "sk-given"


def test_the_proxy_is_not_asked_for_this_machine(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert connect(server.url).health().ready
    assert connect(server.url.replace("127.0.0.1", "localhost")).health().ready


def test_everything_of_the_sdk_is_there(client: Any) -> None:
    answer = client.run(client.chat.completions.create(**chat_body()))
    assert answer.choices[0].message.content == ANSWER
    assert isinstance(client.run(client.models.retrieve(MODEL)), openai.types.Model)
    assert isinstance(Client(), openai.OpenAI) and isinstance(AsyncClient(), openai.AsyncOpenAI)


def test_text_streams(client: Any) -> None:
    pieces = list(client.stream_text("hi"))
    assert len(pieces) > 1 and "".join(pieces) == ANSWER
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "[echo]你好"}]
    assert "".join(client.stream_text(messages, model=MODEL, temperature=0.5)) == "你好"
    assert "".join(client.stream_text("hi", n=2, stream_options={"include_usage": True})) == ANSWER


def test_errors_inside_a_stream(client: Any) -> None:
    with pytest.raises(AnswerFailedError, match="not finite") as caught:
        list(client.stream_text("[nan]"))
    assert isinstance(caught.value, openai.APIError) and caught.value.code == "engine_error"
    with pytest.raises(RejectedError):
        list(client.stream_text("hi", temperature=9))


def test_a_dead_engine_ends_the_stream_and_the_next_request_waits_for_the_new_one(connect: Connect) -> None:
    with running_server(options={"ping_interval": 0.1, "stale_after": 0.5}) as server:
        client = connect(server.url)
        with pytest.raises(OverloadedError, match="SIGKILL"):
            list(client.stream_text("[die]"))
        assert "".join(client.stream_text("hi")) == ANSWER


def test_a_server_that_goes_away_within_a_stream(connect: Connect) -> None:
    with running_server() as server:
        client = connect(server.url)
        threading.Timer(1.0, server.process.kill).start()
        started = time.monotonic()
        with pytest.raises(UnreachableError):
            list(client.stream_text("[slow][long]"))
        assert time.monotonic() - started >= 0.9


def test_tokens(client: Any) -> None:
    tokens = client.tokenize("hé", return_token_strs=True)
    assert (tokens.count, tokens.tokens, tokens.max_model_len) == (4, [257, 104, 195, 169], MAX_CONTEXT)
    assert tokens.token_strs[1] == "h"
    assert client.detokenize(tokens.tokens) == "hé"
    conversation = client.tokenize([{"role": "user", "content": "hi"}], model=MODEL, add_generation_prompt=False)
    assert client.detokenize(conversation.tokens, model=MODEL) == "<user>hi</>"


def test_usage_and_metrics(client: Any) -> None:
    before = client.metrics()
    client.run(client.chat.completions.create(**chat_body()))
    name = "deepseek_generation_tokens_total"
    (sample,) = [key for key in before if key.startswith(name)]
    assert client.metrics()[sample] > before[sample]
    deadline = time.monotonic() + 10
    while not (used := [result for bucket in client.usage() for result in bucket.results]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert used[0].requests >= 1 and used[0].model is None
    now = int(time.time())
    hours = client.usage(bucket_width="1h", start_time=now - 3600, end_time=now + 1, by_model=True)
    assert hours[-1].end_time - hours[-1].start_time == 3600
    assert "tiny-fake-1b" in {result.model for bucket in hours for result in bucket.results}


def test_waiting_until_ready(connect: Connect) -> None:
    with running_server(environment={"DEEPSEEK_FAKE_LOAD": "sleep2"}, wait=False) as server:
        client = connect(server.url)
        with pytest.raises(UnreachableError, match=r"not ready after 0 s"):
            client.wait_ready(timeout=0)
        server.wait_status("/health/live", 200)
        assert not client.health().ready
        assert client.health().status == "starting"
        client.wait_ready(timeout=30)
        assert client.health().ready
        assert "".join(client.stream_text("hi")) == ANSWER


def test_no_server(connect: Connect) -> None:
    client = connect(f"http://127.0.0.1:{free_port()}", max_retries=0)
    with pytest.raises(UnreachableError, match=r"No server answers at http://127\.0\.0\.1:\d+\.") as caught:
        client.run(client.chat.completions.create(**chat_body()))
    assert isinstance(caught.value, openai.APIConnectionError)
    with pytest.raises(UnreachableError):
        client.health()


def test_without_the_sdk_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['openai'] = None\nimport deepseek\ndeepseek.Client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ConfigurationError" in done.stderr and "pip install 'deepseek-platform[client]'" in done.stderr
