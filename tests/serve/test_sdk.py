"""The official SDK sees the API it expects."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, running_server

QUESTION = [{"role": "user", "content": "解释量子计算原理"}]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Server]:
    with running_server(api_keys=("sk-right",)) as server:
        yield server


@pytest.fixture
def sdk(keyed: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{keyed.url}/v1", api_key="sk-right", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0.7, max_tokens=500)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None and answer.usage.prompt_tokens > 0
    assert answer._request_id is not None and answer._request_id.startswith("req_")


def test_stream_with_extensions(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None and chunks[-1].choices == []


@pytest.mark.anyio
async def test_async(keyed: Server) -> None:
    http_client = httpx.AsyncClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key="sk-right", http_client=http_client) as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=QUESTION)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == ANSWER
        text = ""
        async with sdk.chat.completions.stream(model=MODEL, messages=QUESTION) as stream:  # type: ignore[arg-type]
            async for event in stream:
                if event.type == "content.delta":
                    text += event.delta
        assert text == ANSWER


def test_completions_and_models(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=100, logprobs=1)
    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    assert [model.id for model in sdk.models.list()] == [MODEL]
    assert sdk.models.retrieve(MODEL).id == MODEL


def test_errors_have_their_classes(sdk: openai.OpenAI, keyed: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        sdk.with_options(api_key="sk-wrong").chat.completions.create(model=MODEL, messages=QUESTION)  # type: ignore[arg-type]
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as wrong_model:
        sdk.chat.completions.create(model="gpt-9", messages=QUESTION)  # type: ignore[arg-type]
    assert wrong_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad_value:
        sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)  # type: ignore[arg-type]
    assert bad_value.value.param == "temperature"
    with pytest.raises(openai.APIError, match="not finite"):
        list(sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "[nan]"}], stream=True))
