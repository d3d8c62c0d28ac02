"""Each error has its class, and all four keys; inside a stream too."""

from __future__ import annotations

import contextlib
from typing import Any

import openai
import pytest

from tests.contract.node import BODY_BYTES, FEW_TOKENS, KEY, OF_ONE_KEY, ONE_A_MINUTE, POOR
from tests.contract.python.conftest import Connect
from tests.serve.conftest import chat_body


def refused(sdk: openai.OpenAI, text: str = "hi", **fields: Any) -> Any:
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(**chat_body(text, **fields))
    error = caught.value
    assert isinstance(error.body, dict) and set(error.body) == {"message", "type", "param", "code"}
    assert error.body["message"] in str(error) and error.request_id and error.request_id.startswith("req_")
    return error


def spend(sdk: openai.OpenAI) -> None:
    """Use up what the key has, if no other test has done so."""
    with contextlib.suppress(openai.APIStatusError):
        sdk.chat.completions.create(**chat_body())


# key, fields of a chat, class, status, type, param, code
Case = tuple[str, dict[str, Any], type[openai.APIStatusError], int, str, str | None, str | None]
INVALID = "invalid_request_error"
CASES: list[Case] = [
    (KEY, {"temperature": 9}, openai.BadRequestError, 400, INVALID, "temperature", None),
    (KEY, {"extra_body": {"x": 1}}, openai.BadRequestError, 400, INVALID, "x", "unknown_parameter"),
    (KEY, {"max_tokens": "many"}, openai.BadRequestError, 400, INVALID, "max_tokens", "invalid_value"),
    (KEY, {"max_tokens": 9999}, openai.BadRequestError, 400, INVALID, "messages", "context_length_exceeded"),
    (KEY, {"extra_body": {"attention": "quick"}}, openai.BadRequestError, 400, INVALID, "attention", "invalid_value"),
    (
        KEY,
        {"extra_body": {"attention_error": 1}},
        openai.BadRequestError,
        400,
        INVALID,
        "attention_error",
        "invalid_value",
    ),
    ("sk-wrong", {}, openai.AuthenticationError, 401, INVALID, None, "invalid_api_key"),
    (KEY, {"model": "gpt-9"}, openai.NotFoundError, 404, INVALID, "model", "model_not_found"),
    (KEY, {"text": "x" * BODY_BYTES}, openai.APIStatusError, 413, INVALID, None, "request_too_large"),
    (FEW_TOKENS, {"max_tokens": 500}, openai.RateLimitError, 429, "tokens", None, "rate_limit_exceeded"),
    (KEY, {"text": "[nan]"}, openai.InternalServerError, 500, "server_error", None, "engine_error"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[3]}-{case[5]}-{case[6]}" for case in CASES])
def test_classes(connect: Connect, case: Case) -> None:
    key, fields, kind, *expected = case
    error = refused(connect(key), **fields)
    assert type(error) is kind
    assert [error.status_code, error.type, error.param, error.code] == expected


def test_requests_per_minute(connect: Connect) -> None:
    sdk = connect(ONE_A_MINUTE)
    spend(sdk)
    error = refused(sdk)
    assert isinstance(error, openai.RateLimitError) and error.type == "requests"
    assert 0 < float(error.response.headers["retry-after"]) <= 60


def test_quota(connect: Connect) -> None:
    sdk = connect(POOR)
    spend(sdk)
    error = refused(sdk)
    assert (error.status_code, error.code) == (402, "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"


def test_overload(connect: Connect) -> None:
    sdk = connect()
    with sdk.chat.completions.create(**chat_body("[long][slow]", n=OF_ONE_KEY, stream=True)) as stream:
        next(iter(stream))
        error = refused(sdk, n=4)
    assert type(error) is openai.InternalServerError
    assert (error.status_code, error.type) == (503, "service_unavailable_error")
    assert error.code == "server_is_overloaded"
    assert float(error.response.headers["retry-after"]) >= 1
    assert 500 <= float(error.response.headers["retry-after-ms"]) <= 60_000


def test_no_such_address_and_no_such_method(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.images.generate(prompt="a river")
    assert caught.value.code == "unknown_url"
    with pytest.raises(openai.APIStatusError) as method:
        sdk.get("/chat/completions", cast_to=object)
    assert method.value.status_code == 405


def test_timeouts_and_no_server(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        sdk.chat.completions.create(**chat_body("[long][slow]"), timeout=0.3)
    with pytest.raises(openai.APIConnectionError):
        sdk.with_options(base_url="http://127.0.0.1:9/v1").models.list()


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_an_error_inside_a_stream_raises(sdk: openai.OpenAI, endpoint: str) -> None:
    received = 0
    with pytest.raises(openai.APIError, match="not finite") as caught:
        if endpoint == "chat":
            stream: Any = sdk.chat.completions.create(**chat_body("[nan]", stream=True))
        else:
            stream = sdk.completions.create(model="deepseek-v2.1", prompt="[nan]", stream=True)
        for _ in stream:
            received += 1
    assert received > 0
    assert type(caught.value) is openai.APIError and caught.value.code == "engine_error"


@pytest.mark.anyio
async def test_async(async_sdk: openai.AsyncOpenAI) -> None:
    async with async_sdk as sdk:
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("gpt-9")
        with pytest.raises(openai.APIError, match="not finite"):
            async for _ in await sdk.chat.completions.create(**chat_body("[nan]", stream=True)):
                pass
