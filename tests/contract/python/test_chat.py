"""``chat.completions``."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pydantic
import pytest

from tests.contract.python.conftest import Connect
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import chat_body


class City(pydantic.BaseModel):
    name: str


def test_an_answer(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**chat_body(temperature=0.7, max_tokens=500))
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (ANSWER, "stop")
    assert answer.usage is not None and answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id is not None and answer._request_id.startswith("req_")


def test_a_stream_with_extensions(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            **chat_body(stream=True, stream_options={"include_usage": True}),
            extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0


def test_attention(sdk: openai.OpenAI) -> None:
    extra = {"attention": "sparse", "attention_error": 0.05}
    answer = sdk.chat.completions.create(**chat_body("[reading]"), extra_body=extra)
    assert answer.choices[0].message.content == "sparse 0.05"


def test_several_answers_with_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**chat_body(n=2, logprobs=True, top_logprobs=2, max_tokens=5))
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2 and logprobs.content[0].token == "H"


def test_the_stream_helper(sdk: openai.OpenAI) -> None:
    body: dict[str, Any] = chat_body()
    with sdk.chat.completions.stream(**body) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == ANSWER == final.choices[0].message.content


def test_parsing_into_a_model(sdk: openai.OpenAI) -> None:
    """``parse`` sends the model's schema as ``response_format``; the scripted engine obeys the prompt."""
    answer = sdk.chat.completions.parse(**chat_body('[echo]{"name": "Paris"}'), response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris")


def test_leaving_a_stream_early(connect: Connect) -> None:
    sdk = connect()
    with sdk.chat.completions.create(**chat_body("[long] [slow]", stream=True)) as stream:
        next(iter(stream))
    assert stream.response.is_closed


@pytest.mark.anyio
async def test_async(async_sdk: openai.AsyncOpenAI) -> None:
    async with async_sdk as sdk:
        answers = await asyncio.gather(*(sdk.chat.completions.create(**chat_body(f"[echo]{i}")) for i in range(8)))
        assert [answer.choices[0].message.content for answer in answers] == [str(i) for i in range(8)]
        text = ""
        async with sdk.chat.completions.stream(**chat_body()) as stream:
            async for event in stream:
                if event.type == "content.delta":
                    text += event.delta
        assert text == ANSWER
