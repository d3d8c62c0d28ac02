"""Raw and streamed responses: status and headers beside the parsed answer."""

from __future__ import annotations

import re

import openai

from tests.contract.node import FEW_TOKENS, MANY_A_MINUTE
from tests.contract.python.conftest import Connect
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import chat_body


def test_headers_of_an_answer(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(**chat_body(), extra_headers={"x-request-id": "mine-1"})
    assert raw.http_response.status_code == 200 and raw.retries_taken == 0
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"] == "mine-1"
    assert float(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().choices[0].message.content == ANSWER


def test_headers_of_limits(connect: Connect) -> None:
    tokens = connect(FEW_TOKENS).chat.completions.with_raw_response.create(**chat_body(max_tokens=5))
    assert tokens.headers["x-ratelimit-limit-tokens"] == "100"
    assert 0 <= int(tokens.headers["x-ratelimit-remaining-tokens"]) < 100
    requests = connect(MANY_A_MINUTE).chat.completions.with_raw_response.create(**chat_body(max_tokens=5))
    assert requests.headers["x-ratelimit-limit-requests"] == "1000"
    assert requests.headers["x-ratelimit-remaining-requests"] == "999"
    assert re.fullmatch(r"(\d+m)?[\d.]+s|\d+ms", requests.headers["x-ratelimit-reset-requests"])


def test_a_streamed_response(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.with_streaming_response.create(**chat_body(stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[0].startswith("data: {") and lines[-1] == "data: [DONE]"
