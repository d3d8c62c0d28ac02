"""Engines on torch kernels whose keys and values are 8-bit integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek.config import EngineConfig
from deepseek.engine.events import ScoreEvent, ScoreRequest
from deepseek.engine.execution import TorchExecution, choose_execution
from deepseek.models.base import KVCache, Model
from deepseek.models.registry import parse_config
from tests.fakes import greedy, make_engine, run, tokens_of
from tests.parity import tiny

NAMES = ["llama-wide", "deepseek-v2-wide", "gemma3"]
TEXT = [(7 * i * i + 3 * i) % tiny.VOCAB for i in range(60)]


def model(name: str, kv_dtype: str) -> Model:
    stored = tiny.checkpoint(tiny.build(name))
    config = EngineConfig(model=name, backend="torch", dtype="fp32", kv_dtype=kv_dtype, threads=1)
    execution = choose_execution(config, stored, parse_config(stored.config), Path("nowhere"))
    assert isinstance(execution, TorchExecution)
    return execution.load(stored, name, None)


def scores(own: Model, **settings: object) -> torch.Tensor:
    engine = make_engine(own, **settings)  # type: ignore[arg-type]
    engine.add(ScoreRequest("a", TEXT, start=1))
    (event,) = run(engine)
    assert isinstance(event, ScoreEvent)
    return torch.tensor(event.logprobs)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_nearly_those_of_floats(name: str) -> None:
    exact, rounded = scores(model(name, "auto")), scores(model(name, "int8"))
    assert 0 < (exact - rounded).abs().max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_preemption_change_nothing(name: str) -> None:
    """A token's integers depend on that token alone."""
    own = model(name, "int8")
    assert torch.allclose(scores(own), scores(own, max_batch_tokens=7), atol=1e-4)
    prompts = [TEXT[start : start + 9] for start in range(0, 48, 8)]
    alone = []
    for prompt in prompts:
        engine = make_engine(own)  # type: ignore[arg-type]
        engine.add(greedy("a", prompt, max_tokens=16))
        alone.append(tokens_of(run(engine), "a"))
    engine = make_engine(own, num_pages=14)  # type: ignore[arg-type]
    for index, prompt in enumerate(prompts):
        engine.add(greedy(str(index), prompt, max_tokens=16))
    events = run(engine)
    assert engine.stats().preemptions
    assert [tokens_of(events, str(index)) for index in range(len(prompts))] == alone


@pytest.mark.parametrize("name", NAMES)
def test_a_page_takes_what_is_said(name: str) -> None:
    for kv_dtype in ("auto", "int8"):
        own = model(name, kv_dtype)
        cache = own.new_cache(3, 16)
        assert isinstance(cache, KVCache)
        assert sum(tensor.nbytes for layer in cache.layers for tensor in layer.tensors) == 3 * own.page_bytes(16)


def test_a_copied_page_has_its_scales() -> None:
    cache = model("llama-wide", "int8").new_cache(3, 4)
    for layer in cache.layers:
        for tensor in layer.tensors:
            tensor[4:8], tensor[8:] = 5, 7
    cache.copy_page(2, 1)
    assert all((tensor[4:8] == 7).all() for layer in cache.layers for tensor in layer.tensors)
