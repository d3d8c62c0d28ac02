"""Sparse attention of torch kernels in the engine: settings, policies, what is counted, and what stays dense."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from deepseek.attention import policy
from deepseek.engine.engine import Engine
from deepseek.engine.events import GenerateRequest, ScoreEvent, ScoreRequest
from deepseek.errors import ConfigurationError, InvalidRequestError
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.registry import load_model
from deepseek.sampling import SamplingParams
from tests.engine.test_sparse_native import answer
from tests.fakes import make_engine, run
from tests.parity import tiny

UNTIL = 448
QUESTION = 100
PROMPT = [(5 * i * i + 11 * i + i // 97) % tiny.VOCAB for i in range(700)]
NAMES = ["llama-wide", "deepseek-v2-wide"]


@cache
def model(name: str = "llama-wide", *, indexed: bool = True, kv_dtype: str = "auto") -> Decoder:
    checkpoint = tiny.checkpoint(tiny.build(name, max_position_embeddings=2048))
    return load_model(
        checkpoint, ops=bind("cpu", "torch"), dtype=torch.float32, device="cpu", indexed=indexed, kv_dtype=kv_dtype
    )


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(policy, "SPARSE_DENSE_UNTIL", UNTIL)
    yield
    model.cache_clear()


def engine(decoder: Decoder, **settings: Any) -> Engine:
    options: dict[str, Any] = {"page_size": 64, "num_pages": 80, "max_context": 2048, "max_batch_tokens": 256}
    options |= {"attention": "sparse", "attention_error": 0.3, "question_tokens": QUESTION}
    return make_engine(decoder, **options | settings)  # type: ignore[arg-type]


def wanted(name: str, length: int, answer: int = 6, **options: Any) -> GenerateRequest:
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True, logprobs=4)
    return GenerateRequest(name, PROMPT[:length], params, **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_zero_is_dense_to_the_bit(name: str) -> None:
    plain = answer(engine(model(name, indexed=False), attention="dense"), wanted("x", 700))
    indexed = model(name)
    assert answer(engine(indexed), wanted("x", 700, attention_error=0.0)) == plain
    assert answer(engine(indexed), wanted("x", 700, attention="dense")) == plain
    assert answer(engine(indexed, attention="auto"), wanted("x", 700)) == plain  # below auto's length
    assert indexed.attention_stats().outputs == 0
    assert answer(engine(indexed), wanted("x", 700)) != plain
    assert (
        answer(engine(indexed, attention="dense"), wanted("x", 700, attention="sparse", attention_error=0.3)) != plain
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_counted(name: str) -> None:
    decoder = model(name)
    served = engine(decoder)
    answer(served, wanted("x", 700, 6))
    stats, spec = served.stats().attention, decoder.cache_specs[0]
    rows = 5  # the first token is the prompt's
    heads = decoder.layers[0].attention.shape.heads  # type: ignore[attr-defined]
    assert stats.outputs == rows * len(decoder.layers) * heads
    per_head = len(decoder.layers) * spec.heads
    assert stats.context_tokens == per_head * sum(701 + i for i in range(rows))
    assert 0.4 * stats.context_tokens < stats.read_tokens < stats.context_tokens  # the last 256 and the first 64 are
    assert stats.dense_bytes == stats.context_tokens * 2 * (spec.key_dim + spec.value_dim)
    assert stats.read_bytes < stats.dense_bytes
    assert stats.pieces == rows * per_head
    assert 0.0 < stats.unread_weight < stats.outputs
    assert 0.0 < stats.estimated_error / stats.outputs < 1.5 * 0.3  # the factor before the error is squared


@pytest.mark.parametrize("name", NAMES)
def test_an_int8_cache_is_indexed_as_it_is_read(name: str) -> None:
    """A sparse answer strays no further from the dense one than with a cache of floats; fewer bytes are read."""
    strays = []
    for kv_dtype in ("auto", "int8"):
        decoder = model(name, kv_dtype=kv_dtype)
        served = engine(decoder, attention_error=0.05)
        (sparse,) = answer(served, wanted("x", 700, 3))
        stats = served.stats().attention
        assert 0 < stats.read_tokens < stats.context_tokens
        if kv_dtype == "int8":
            spec = decoder.cache_specs[0]
            token = spec.key_dim + spec.value_dim + 2 * 4
            assert stats.dense_bytes == stats.context_tokens * token
        (dense,) = answer(engine(decoder), wanted("x", 700, 3, attention="dense"))
        likely, exact = sparse[1][1], dense[1][1]  # the first is the prompt's
        strays.append(abs(likely.logprob - exact.logprob))
    assert strays[1] < 2 * strays[0] + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_depends_on_nothing_around_it(name: str) -> None:
    """In a crowd of others, dense and sparse, with a prompt that was cached, and in other chunks."""
    decoder = model(name)
    (expected,) = answer(engine(decoder), wanted("x", 600))
    tokens = [token for token, _ in expected]
    crowd = engine(decoder)
    others = [wanted("a", 700), wanted("b", 600, attention="dense"), wanted("c", 300)]
    found = answer(crowd, *others, wanted("x", 600))[-1]
    assert [token for token, _ in found] == tokens
    again = answer(crowd, wanted("y", 600))[0]
    assert [token for token, _ in again] == tokens
    chunked = answer(engine(decoder, max_batch_tokens=64), wanted("z", 600))[0]
    assert [token for token, _ in chunked] == tokens


def test_drafts_are_sparse_rows_too() -> None:
    """A score of a few tokens behind a cached prompt comes in one chunk of rows."""
    served = engine(model(), attention_error=0.05)
    answer(served, wanted("x", 576, 2, question_tokens=0))
    before = served.stats().attention.outputs
    for mode in ("sparse", "dense"):
        served.add(ScoreRequest(mode, PROMPT[:584], 577, attention=mode))
    scores = {event.request_id: event for event in run(served) if isinstance(event, ScoreEvent)}
    assert served.stats().attention.outputs > before
    sparse, dense = (sum(scores[mode].logprobs) for mode in ("sparse", "dense"))
    assert sparse != dense
    assert sparse == pytest.approx(dense, rel=0.05)


def test_pages_that_cannot_be_indexed_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="page_size must be 64 for sparse attention, not 32"):
        engine(model(), page_size=32)
    with pytest.raises(InvalidRequestError, match="attends densely"):
        engine(model(indexed=False), attention="auto").add(wanted("x", 20, attention="sparse"))


def test_the_index_is_part_of_a_page() -> None:
    plain, indexed = model(indexed=False), model()
    assert indexed.page_bytes(64) - plain.page_bytes(64) == indexed.index_page_bytes() > plain.index_page_bytes() == 0
    cache = indexed.new_cache(3, 64)
    index = cache.layers[0].page_index
    assert index is not None
    for array in (index.codes, index.alphas, index.key_means, index.value_means, index.scalars):
        array[1] = 7
    cache.copy_page(1, 2)
    assert all(
        (a[2] == 7).all() for a in (index.codes, index.alphas, index.key_means, index.value_means, index.scalars)
    )
