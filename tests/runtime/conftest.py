"""An engine client over a real engine process that runs the scripted engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepseek.config import EngineConfig
from deepseek.runtime.client import EngineClient
from deepseek.runtime.supervisor import RuntimeOptions

TESTS = Path(__file__).resolve().parents[1]
FACTORY = "runtime.fake_engine:load"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def fake_options(load: str = "", **options: Any) -> RuntimeOptions:
    environment = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "DEEPSEEK_FAKE_LOAD": load}
    defaults: dict[str, Any] = {"ping_interval": 0.1, "first_backoff": 0.05, "stop_timeout": 2.0}
    return RuntimeOptions(environment=environment, **(defaults | {"engine_factory": FACTORY} | options))


@contextlib.asynccontextmanager
async def fake_client(load: str = "", **options: Any) -> AsyncIterator[EngineClient]:
    client = EngineClient(EngineConfig(model="fake"), fake_options(load, **options))
    try:
        yield client
    finally:
        await client.stop()
