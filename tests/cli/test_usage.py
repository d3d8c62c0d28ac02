"""`deepseek usage` over a store that servers have written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deepseek_serve.store.store import Store
from deepseek_serve.store.usage import Tokens
from tests.cli.test_commands import deepseek


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    async def fill() -> None:
        store = Store(tmp_path / "data")
        await store.open()
        for _ in range(2):
            store.usage.add("team-a", "qwen", Tokens(1000, 10, 234, 5))
        store.usage.add("", "smol", Tokens(7), "failed")
        assert await store.usage.flush()
        await store.stop()

    asyncio.run(fill())
    return tmp_path / "data"


def test_sums_per_key_and_model(data_dir: Path) -> None:
    result = deepseek("usage", "--data-dir", str(data_dir))
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["key", "model", "requests", "errors", "cancelled", "prompt", "cached", "answers", "reasoning"]
    assert rows[1] == ["(no", "keys)", "smol", "1", "1", "0", "7", "0", "0", "0"]
    assert rows[2] == ["team-a", "qwen", "2", "0", "0", "2,000", "20", "468", "10"]
    by_day = deepseek("usage", "--per-day", DEEPSEEK_DATA=str(data_dir))
    assert by_day.stdout.splitlines()[0].split()[0] == "day" and "team-a" in by_day.stdout


def test_where_nothing_is(tmp_path: Path) -> None:
    result = deepseek("usage", "--data-dir", str(tmp_path / "none"))
    assert result.returncode == 1 and "--data-dir" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "none").exists()
    wrong = deepseek("usage", "--database-url", "mysql://x")
    assert wrong.returncode == 1 and "not supported" in wrong.stderr
    away = deepseek("usage", "--database-url", "postgresql+psycopg://u@127.0.0.1:1/x")
    assert away.returncode == 1 and "not available" in away.stderr and "Traceback" not in away.stderr
