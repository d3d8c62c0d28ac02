"""What one more model may take."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek_serve import memory
from deepseek_serve.memory import budget, free_memory, stored_bytes

GIB = 2**30


def test_size_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x" * 10)
    assert stored_bytes(tmp_path / "a.gguf") == 10
    assert stored_bytes(tmp_path) == 0
    for name in ("model-1.safetensors", "model-2.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"x" * 7)
    assert stored_bytes(tmp_path) == 14


@pytest.mark.parametrize(("replicas", "kv"), [(1, 3 * GIB), (2, 2 * GIB), (3, GIB)])
def test_half_of_what_the_weights_leave(replicas: int, kv: int) -> None:
    assert budget(EngineConfig(), 2 * GIB, replicas, 8 * GIB).kv_cache_bytes == kv


@pytest.mark.parametrize("free", [4 * GIB - 1, 4 * GIB, 4 * GIB + 1])
def test_what_is_asked_for_fits_or_is_refused(free: int) -> None:
    config = EngineConfig(kv_cache_bytes=GIB)
    if free > 4 * GIB:
        assert budget(config, 3 * GIB, 1, free) == config
        return
    with pytest.raises(ConfigurationError, match=r"3\.00 GiB for its weights and 1\.00 GiB for keys"):
        budget(config, 3 * GIB, 1, free)


def test_weights_alone_do_not_fit() -> None:
    with pytest.raises(ConfigurationError, match=r"4 times 2\.00 GiB"):
        budget(EngineConfig(), 2 * GIB, 4, 8 * GIB)


def test_what_engines_have_not_touched_yet_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100 * GIB)
    touched = psutil.Process().memory_info().rss
    info = SimpleNamespace(weights_bytes=touched, kv_cache_bytes=10 * GIB)

    def model(*replicas: SimpleNamespace) -> Any:
        return SimpleNamespace(replicas=replicas)

    alive = SimpleNamespace(info=info, pid=os.getpid())
    small = SimpleNamespace(info=SimpleNamespace(weights_bytes=0, kv_cache_bytes=1), pid=os.getpid())
    starting, gone = SimpleNamespace(info=None, pid=1), SimpleNamespace(info=info, pid=None)
    assert free_memory([]) == 100 * GIB
    assert free_memory([model(alive, alive), model(), model(small, starting, gone)]) == pytest.approx(
        80 * GIB, abs=2**28
    )
