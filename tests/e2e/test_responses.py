"""Responses on a real model: continued, streamed, in JSON, in the background."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.e2e.conftest import KEY, RealServer

OPTIONS: dict[str, Any] = {"model": "deepseek-v2.1", "temperature": 0}


@pytest.fixture
def sdk(server: RealServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=httpx.Client(trust_env=False))


def test_a_conversation(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(**OPTIONS, input="What is the capital of France?", max_output_tokens=30)
    assert "Paris" in first.output_text
    with sdk.responses.stream(
        **OPTIONS, input="Say its name again.", previous_response_id=first.id, max_output_tokens=30
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    whole = sdk.responses.create(
        **OPTIONS,
        input=[
            {"role": "user", "content": "What is the capital of France?"},
            *first.output,  # type: ignore[list-item]
            {"role": "user", "content": "Say its name again."},
        ],
        max_output_tokens=30,
        store=False,
    )
    assert text == whole.output_text and "Paris" in text
    chat = sdk.chat.completions.create(
        **OPTIONS, messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=30
    )
    assert chat.choices[0].message.content == first.output_text
    sdk.responses.delete(first.id)


def test_structured(sdk: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        city: str
        country: str

    made = sdk.responses.parse(**OPTIONS, input="Where is the Louvre?", text_format=Place, max_output_tokens=100)
    assert made.output_parsed is not None and made.output_parsed.city


def test_background(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(**OPTIONS, input="Count to five.", max_output_tokens=40, background=True)
    long = sdk.responses.create(**OPTIONS, input="Tell a very long story.", max_output_tokens=2000, background=True)
    deadline = time.monotonic() + 60
    while (found := sdk.responses.retrieve(made.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found.output_text and sdk.responses.cancel(long.id).status == "cancelled"
