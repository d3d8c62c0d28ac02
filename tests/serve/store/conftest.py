"""A store over each of the databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepseek_serve.store.clock import Clock
from deepseek_serve.store.store import Store
from tests.serve.postgres import Postgres, running_postgres


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None is SQLite in the data directory."""
    if request.param == "sqlite":
        return None
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


class Times:
    """A wall clock and a monotonic one that move when they are told to."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.monotonic = 5_000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
async def store(tmp_path: Path, database_url: str | None, times: Times) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "data", database_url, quota=10_000, clock=times.clock())
    await opened.open()
    yield opened
    await opened.stop()
