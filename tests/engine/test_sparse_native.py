"""Sparse attention of native kernels in the engine: exactly dense at an error of 0, and the same whatever is around."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from deepseek.attention import policy
from deepseek.attention.stats import AttentionStats
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineEvent, GenerateRequest, ScoreEvent, ScoreRequest, TokenEvent
from deepseek.engine.request import Sequence
from deepseek.engine.speculation import Gate, Speculation
from deepseek.kernels.cpu.extension import obstacle
from deepseek.models.native import NativeDecoder
from deepseek.models.registry import load_native_model
from deepseek.sampling import SamplingParams
from tests.fakes import make_engine, run
from tests.parity import tiny

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

UNTIL = 448
QUESTION = 100
PROMPT = [(5 * i * i + 11 * i + i // 97) % tiny.VOCAB for i in range(1100)]
LENGTHS = [UNTIL - 20, UNTIL + 63, UNTIL + QUESTION + 64, 800, 1100]


@cache
def model(kv_dtype: str = "fp16", *, indexed: bool = True) -> NativeDecoder:
    checkpoint = tiny.checkpoint(tiny.build("llama-large"))
    return load_native_model(checkpoint, scheme="int8", kv_dtype=kv_dtype, threads=2, indexed=indexed)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(policy, "SPARSE_DENSE_UNTIL", UNTIL)
    yield
    model.cache_clear()


def engine(decoder: NativeDecoder, **settings: Any) -> Engine:
    options: dict[str, Any] = {"page_size": 64, "num_pages": 80, "max_context": 2048, "max_batch_tokens": 256}
    options |= {"attention": "sparse", "attention_error": 0.1, "question_tokens": QUESTION}
    return make_engine(decoder, **options | settings)  # type: ignore[arg-type]


def wanted(name: str, length: int, answer: int = 12, seed: int | None = 3, **options: Any) -> GenerateRequest:
    params = SamplingParams(max_tokens=answer, seed=seed, temperature=1.2, ignore_eos=True, logprobs=4)
    return GenerateRequest(name, PROMPT[:length], params, **options)


def said(events: list[EngineEvent], name: str) -> list[tuple[int | None, Any]]:
    """Tokens and log-probabilities, to the bit."""
    return [
        (event.token_id, event.logprobs)
        for event in events
        if isinstance(event, TokenEvent) and event.request_id == name
    ]


def answer(served: Engine, *requests: GenerateRequest) -> list[list[tuple[int | None, Any]]]:
    for request in requests:
        served.add(request)
    events = run(served, 5000)
    return [said(events, request.request_id) for request in requests]


@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
def test_an_error_of_zero_is_dense_to_the_bit(kv_dtype: str) -> None:
    plain = answer(engine(model(kv_dtype, indexed=False), attention="dense"), wanted("x", 1100))
    indexed = model(kv_dtype)
    assert answer(engine(indexed), wanted("x", 1100, attention_error=0.0)) == plain
    assert answer(engine(indexed), wanted("x", 1100, attention="dense")) == plain
    assert answer(engine(indexed), wanted("x", 1100)) != plain
    assert answer(engine(indexed, attention_error=0.0), wanted("x", 1100)) == plain
    below = wanted("x", UNTIL - 20)
    assert answer(engine(indexed), below) == answer(engine(model(kv_dtype, indexed=False), attention="dense"), below)


@pytest.mark.parametrize("length", LENGTHS)
def test_reproducible_answers_depend_on_nothing_around_them(length: int) -> None:
    (expected,) = answer(engine(model()), wanted("x", length))
    assert answer(engine(model(), prefix_cache=False, max_batch_tokens=2048), wanted("x", length)) == [expected]
    assert answer(engine(model(), max_batch_tokens=32), wanted("x", length)) == [expected]
    crowd = engine(model())
    others = [
        wanted("a", 1100, seed=9),
        wanted("b", length, seed=None),
        wanted("c", 900, attention="dense"),
        wanted("d", max(1, length - 70), attention_error=0.3),
        wanted("e", min(1100, length + 130), question_tokens=0),
    ]
    assert answer(crowd, *others[:3], wanted("x", length), *others[3:], wanted("y", length))[3] == expected
    assert answer(crowd, wanted("z", length)) == [expected]  # its prompt cached


@pytest.mark.parametrize("length", [UNTIL - 5, 800])
def test_a_preempted_answer_goes_on_as_it_would_have(length: int) -> None:
    """Its rows are computed again, in chunks: those of the answer as single rows are."""
    (expected,) = answer(engine(model()), wanted("x", length, 40))
    served = engine(model(), num_pages=20, prefix_cache=False)
    served.add(wanted("x", length, 40))
    events: list[EngineEvent] = []
    while len(events) < 25:
        events += served.step()
    served.add(GenerateRequest("urgent", PROMPT, SamplingParams(max_tokens=2), priority=5))
    events += run(served)
    assert served.scheduler.preemptions == 1
    assert said(events, "x") == expected


class WrongGuesses:
    """Drafts that are never right, so that pages fill with tokens that are then overwritten."""

    cost = 0.0

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: [len(sequence.tokens) % tiny.VOCAB] * length for sequence, length in wanted.items()}

    def forget(self, sequence: Sequence) -> None:
        pass


class Always(Speculation):
    """Seven guesses in each step."""

    def draft(self, chunks: Any, max_rows: int) -> dict[Sequence, list[int]]:
        super().draft(chunks, max_rows)
        decoding = [c.sequence for c in chunks if c.completes and c.num_tokens == 1 and c.sequence.answer_length]
        for sequence in decoding:
            self._gates.setdefault(sequence, Gate())
        return self.drafter.draft(dict.fromkeys(decoding, 7))


def test_what_was_guessed_wrongly_leaves_no_trace() -> None:
    """The index of a page that a rejected draft filled must be that of the tokens that came to stand there. Answers
    are long enough for their own first pages to be chosen from."""
    for length in (UNTIL - 5, 800):
        (expected,) = answer(engine(model()), wanted("x", length, 460))
        assert answer(engine(model(), speculation=Always(WrongGuesses())), wanted("x", length, 460)) == [expected]


def test_statistics() -> None:
    decoder = model()
    assert decoder.attention_stats() == AttentionStats()
    answer(engine(decoder), wanted("dense", 1100, attention="dense"))
    assert decoder.attention_stats() == AttentionStats()
    served = engine(decoder)
    answer(served, wanted("x", 1100, 81, question_tokens=0, attention_error=0.5))
    found = served.stats().attention
    layers, heads, kv_heads, rows = 2, 4, 2, 80  # the first token of the answer comes with the prompt
    assert found.outputs == layers * heads * rows
    assert found.context_tokens == layers * kv_heads * sum(range(1101, 1101 + rows))
    assert 0 < found.read_tokens < found.context_tokens
    assert found.read_bytes > 0 and 0 < found.estimated_error <= found.error_bound
    assert 0 <= found.prompt_pages_read < found.prompt_pages  # so great an error may leave out all of them
    assert found.checks == heads  # of one layer, every 64 steps
    assert found.checked_error > 0 and found.violations <= found.checks


def test_scores_are_sparse() -> None:
    def score(**options: Any) -> list[float]:
        served = engine(model())
        served.add(ScoreRequest("s", PROMPT, 1, **options))
        (event,) = [event for event in run(served) if isinstance(event, ScoreEvent)]
        return event.logprobs

    sparse, dense = score(), score(attention="dense")
    assert len(sparse) == len(dense) == len(PROMPT) - 1
    assert sparse[: UNTIL - 1] == dense[: UNTIL - 1]
    assert sparse != dense
