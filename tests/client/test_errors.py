"""What the server refuses is raised as our error and the SDK's at once; what is tried again, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from deepseek.client import Client
from deepseek.errors import (
    ContextTooLongError,
    DeepSeekError,
    OverloadedError,
    QuotaExceededError,
    RateLimitedError,
    RejectedError,
    RemoteError,
    UnauthorizedError,
    UnreachableError,
)
from deepseek_serve.auth import ApiKey
from tests.client.conftest import Connect
from tests.serve.conftest import Server, chat_body, running_server

BODY_BYTES = 20_000
REFUSED = "deepseek_refused_requests_total"


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """A key for each limit."""
    keys = (
        ApiKey.of("sk-free"),
        ApiKey.of("sk-one-a-minute", requests_per_minute=1),
        ApiKey.of("sk-one-at-a-time", concurrency=1),
        ApiKey.of("sk-poor", monthly_tokens=1),
    )
    with running_server(api_keys=keys, max_body_bytes=BODY_BYTES, max_sequences=8) as server:
        yield server


def refused(client: Any, **fields: Any) -> Any:
    with pytest.raises(RemoteError) as caught:
        client.run(client.chat.completions.create(**chat_body(**fields)))
    assert isinstance(caught.value, DeepSeekError) and isinstance(caught.value, openai.OpenAIError)
    return caught.value


CASES: list[tuple[dict[str, Any], type[RemoteError], type[openai.APIError], int, str | None]] = [
    ({"temperature": 9}, RejectedError, openai.BadRequestError, 400, None),
    ({"extra_body": {"surprise": 1}}, RejectedError, openai.BadRequestError, 400, "unknown_parameter"),
    ({"max_tokens": 5000}, ContextTooLongError, openai.BadRequestError, 400, "context_length_exceeded"),
    ({"model": "gpt-9"}, RejectedError, openai.NotFoundError, 404, "model_not_found"),
    ({"text": "x" * BODY_BYTES}, RejectedError, openai.APIStatusError, 413, "request_too_large"),
]


@pytest.mark.parametrize(("fields", "ours", "theirs", "status", "code"), CASES, ids=range(len(CASES)))
def test_refused_requests(
    connect: Connect, strict: Server, fields: Any, ours: Any, theirs: Any, status: int, code: str | None
) -> None:
    error = refused(connect(strict.url, api_key="sk-free"), **fields)
    assert isinstance(error, ours) and isinstance(error, theirs)
    assert error.status_code == status and str(status) in str(error)
    assert error.code == code or code is None
    assert error.request_id is not None and error.request_id.startswith("req_")
    assert error.retry_after is None


def test_keys_and_quota(connect: Connect, strict: Server) -> None:
    assert isinstance(refused(connect(strict.url)), UnauthorizedError)
    poor = connect(strict.url, api_key="sk-poor")
    with pytest.raises(QuotaExceededError) as caught:
        for _ in range(2):  # the first one that passes the quota is served
            poor.run(poor.chat.completions.create(**chat_body()))
    assert isinstance(caught.value, openai.APIStatusError) and caught.value.status_code == 402


def test_a_rate_limit_says_when(connect: Connect, strict: Server) -> None:
    client = connect(strict.url, api_key="sk-one-a-minute", max_retries=0)
    with pytest.raises(RateLimitedError) as caught:
        for _ in range(3):
            client.run(client.chat.completions.create(**chat_body()))
    error = caught.value
    assert isinstance(error, openai.RateLimitError)
    assert error.code == "rate_limit_exceeded" and error.retry_after is not None and 0 < error.retry_after <= 60


def occupy(server: Server, key: str, answers: int) -> Any:
    """So many endless answers; closing what is returned ends them."""
    client = Client(base_url=server.url, api_key=key, max_retries=0)
    stream = client.chat.completions.create(**chat_body("[long][slow]"), n=answers, stream=True)
    next(iter(stream))
    return stream


def close_after_refusal(server: Server, so_far: float, stream: Any) -> None:
    while server.metric(REFUSED) == so_far:
        time.sleep(0.02)
    stream.close()


@pytest.mark.parametrize(
    ("key", "answers", "kind"), [("sk-one-at-a-time", 1, RateLimitedError), ("sk-free", 7, OverloadedError)]
)
def test_retries_wait_as_long_as_the_server_says(
    connect: Connect, strict: Server, key: str, answers: int, kind: Any
) -> None:
    fields: dict[str, Any] = {"n": min(answers, 2)}
    stream = occupy(strict, key, answers)
    try:
        error = refused(connect(strict.url, api_key=key, max_retries=0), **fields)
        assert isinstance(error, kind) and error.retry_after is not None and error.retry_after >= 0.5
        so_far = strict.metric(REFUSED)
        making_room = threading.Thread(target=close_after_refusal, args=(strict, so_far, stream))
        making_room.start()
        client, started = connect(strict.url, api_key=key), time.monotonic()
        answer = client.run(client.chat.completions.create(**chat_body(**fields)))
        making_room.join()
    finally:
        stream.close()
    assert len(answer.choices) == fields["n"]
    assert time.monotonic() - started >= 0.5


def test_timeouts(connect: Connect, strict: Server) -> None:
    client = connect(strict.url, api_key="sk-free", max_retries=0)
    with pytest.raises(UnreachableError) as caught:
        client.run(client.chat.completions.create(**chat_body("[long][slow]"), timeout=0.3))
    assert isinstance(caught.value, openai.APITimeoutError)
