from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.contract.node import KEY, node
from tests.serve.conftest import Server

Connect = Callable[..., openai.OpenAI]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with node() as running:
        yield running


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """(api_key, **options) -> a client that tries once if not told otherwise; all are closed at the end."""
    made: list[openai.OpenAI] = []

    def new(api_key: str = KEY, *, max_retries: int = 0, **http: Any) -> openai.OpenAI:
        http_client = openai.DefaultHttpxClient(trust_env=False, **http)
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=api_key, max_retries=max_retries, http_client=http_client
        )
        made.append(client)
        return client

    yield new
    for client in made:
        client.close()


@pytest.fixture
def sdk(connect: Connect) -> openai.OpenAI:
    return connect()


@pytest.fixture
def async_sdk(server: Server) -> openai.AsyncOpenAI:
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, http_client=http_client)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
