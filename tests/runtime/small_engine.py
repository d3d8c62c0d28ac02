"""The real engine over the scripted model, with the byte tokenizer's vocabulary: for what a server's queue does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepseek.config import EngineConfig
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineInfo
from tests.fakes import FakeModel, counting
from tests.runtime.fake_engine import EOS, MAX_CONTEXT, VOCAB


@dataclass(frozen=True)
class Loaded:
    engine: Engine
    info: EngineInfo


def load(config: EngineConfig, progress: Callable[[int, int], None]) -> Loaded:
    """The engine factory: places and rows as in ``config``."""
    model = FakeModel(counting(VOCAB), vocab_size=VOCAB)
    engine = Engine(
        model,
        num_pages=2000,
        page_size=16,
        max_context=MAX_CONTEXT,
        max_running=config.max_running,
        max_batch_tokens=config.max_batch_tokens,
        end_ids=frozenset({EOS}),
        seed=0,
    )
    info = EngineInfo(
        model="tiny-fake-1b",
        architecture=model.architecture,
        vocab_size=VOCAB,
        max_context=MAX_CONTEXT,
        dtype="float32",
        kv_cache_bytes=2**20,
        kv_cache_tokens=32000,
        weights_bytes=0,
        load_seconds=0.0,
        backends={},
    )
    return Loaded(engine, info)
