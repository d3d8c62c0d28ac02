"""Both clients over a running server with the scripted engine, each test with one after the other."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deepseek.client import AsyncClient, Client

Connect = Callable[..., Any]


class Awaiting:
    """An AsyncClient that a test calls as if it were the other one."""

    def __init__(self, client: Any, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return self._called(value) if inspect.ismethod(value) else value

    def _called(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            if inspect.isasyncgen(result):
                return self._runner.run(_all(result))
            return self._runner.run(_awaited(result)) if inspect.isawaitable(result) else result

        return call

    def run(self, awaitable: Any) -> Any:
        """The value of a call of the SDK's own."""
        return self._runner.run(_awaited(awaitable))


class Calling(Client):
    def run(self, value: Any) -> Any:
        return value


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """(base_url, **options) -> a client; all are closed at the end."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def new(base_url: str | None = None, **options: Any) -> Any:
            if request.param == "sync":
                client: Any = Calling(base_url=base_url, **options)
            else:
                client = Awaiting(AsyncClient(base_url=base_url, **options), runner)
            made.append(client)
            return client

        yield new
        for client in made:
            client.close()
