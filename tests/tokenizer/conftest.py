"""Tokenizers of real models (skipped where the cache lacks them) and tiny ones made here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from deepseek.errors import HubError
from deepseek.hub.resolve import resolve
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct", "gemma-3-270m")


@cache
def _load(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def cached_path() -> Callable[[str], Path]:
    """The file of a built-in model; skips the test if it is not in the cache."""

    def find(name: str) -> Path:
        try:
            return resolve(name, offline=True).path
        except HubError as error:
            pytest.skip(f"{name} is not in the cache: {error}")

    return find


@pytest.fixture(scope="session")
def cached_tokenizer(cached_path: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    """The tokenizer of a built-in model; loaded once."""
    return lambda name: _load(cached_path(name))


@pytest.fixture(scope="session")
def smollm2(test_model: Path) -> Tokenizer:
    return _load(test_model)


@pytest.fixture(params=MODELS)
def real_tokenizer(request: pytest.FixtureRequest, cached_tokenizer: Callable[[str], Tokenizer]) -> Tokenizer:
    return cached_tokenizer(request.param)


@pytest.fixture(scope="session")
def parity() -> ModuleType:
    """``benchmarks/tokenizer_parity.py``, for its corpus."""
    file = Path(__file__).parents[2] / "benchmarks" / "tokenizer_parity.py"
    spec = importlib.util.spec_from_file_location("tokenizer_parity", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
