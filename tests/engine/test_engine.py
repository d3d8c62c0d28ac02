"""The whole engine over a scripted model: every path must give what one sequence alone would."""

from __future__ import annotations

import random

import pytest
import torch

from deepseek.engine.events import GenerateRequest, ScoreEvent, ScoreRequest, TokenEvent
from deepseek.errors import ContextLengthError, InvalidRequestError
from deepseek.sampling import SamplingParams
from tests.fakes import FakeModel, counting, greedy, hashing, make_engine, run, tokens_of

VOCAB = 64


def alone(request: GenerateRequest) -> list[int]:
    engine = make_engine(FakeModel(hashing(VOCAB)), max_batch_tokens=512, prefix_cache=False)
    engine.add(request)
    return tokens_of(run(engine), request.request_id)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
def test_page_and_chunk_boundaries(length: int) -> None:
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model)
    request = greedy("a", prompt_of(length), max_tokens=10)
    engine.add(request)
    events = run(engine)
    expected: list[int] = []
    for _ in range(10):
        expected.append(int(model.script(request.prompt + expected).argmax()))
    assert tokens_of(events, "a") == expected
    assert [e.finish_reason for e in events if isinstance(e, TokenEvent)] == [None] * 9 + ["length"]
    assert engine.pool.num_free == engine.pool.num_pages


def test_mixed_requests_do_not_disturb_each_other() -> None:
    requests = [greedy(str(i), prompt_of(3 + 5 * i % 40, i), max_tokens=1 + i % 13) for i in range(30)]
    engine = make_engine(FakeModel(hashing(VOCAB)), num_pages=40)
    pending = list(requests)
    events = []
    while pending or engine.has_work:
        if pending:
            engine.add(pending.pop(0))
        events += engine.step()
    for request in requests:
        assert tokens_of(events, request.request_id) == alone(request)
    stats = engine.stats()
    assert (stats.finished, stats.pages_free, stats.running, stats.waiting) == (30, 40, 0, 0)


def test_decodes_and_prefill_share_steps() -> None:
    model = FakeModel(counting(VOCAB))
    engine = make_engine(model)
    engine.add(greedy("a", [1], max_tokens=30))
    engine.step()
    engine.add(greedy("b", prompt_of(40), max_tokens=2))
    for _ in range(3):
        events = engine.step()
        assert tokens_of(events, "a"), "a running sequence waits for somebody's prompt"
    assert model.batch_sizes[-1] == 2


def test_preemption_gives_the_same_answer() -> None:
    requests = [greedy(str(i), prompt_of(9, i), max_tokens=24) for i in range(6)]
    engine = make_engine(FakeModel(hashing(VOCAB)), num_pages=14)
    for request in requests:
        engine.add(request)
    events = run(engine)
    assert engine.stats().preemptions > 0
    for request in requests:
        assert tokens_of(events, request.request_id) == alone(request)
    assert engine.pool.num_free == 14


def test_preempted_sampling_draws_the_same_numbers() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=24, seed=5)
    requests = [GenerateRequest(str(i), prompt_of(9, i), params) for i in range(6)]
    engine = make_engine(FakeModel(hashing(VOCAB)), num_pages=14)
    for request in requests:
        engine.add(request)
    events = run(engine)
    assert engine.stats().preemptions > 0
    for request in requests:
        assert tokens_of(events, request.request_id) == alone(request)


@pytest.mark.parametrize(("crowd", "num_pages"), [(0, 64), (6, 64), (6, 34)])
def test_seeded_requests_run_in_forwards_of_their_own(crowd: int, num_pages: int) -> None:
    """The shapes of a seeded request's forwards must not depend on company, prefix cache or preemption."""
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model, num_pages=num_pages)
    prompt = [VOCAB - 1, *prompt_of(36)]
    engine.add(greedy("warm", prompt, max_tokens=1))
    run(engine)
    for i in range(crowd):
        engine.add(greedy(f"other {i}", [i, *prompt_of(10, i)], max_tokens=30))
    engine.step()
    engine.add(GenerateRequest("seeded", prompt, SamplingParams(seed=3, max_tokens=12)))
    model.forwards.clear()
    events = run(engine)
    own = [rows for firsts, rows in model.forwards if VOCAB - 1 in firsts]
    whole = [(16,), (16,), (5,)] + [(1,)] * 11
    assert own[-len(whole) :] == whole
    assert all(rows in whole for rows in own), "a forward was shared"
    if num_pages == 64:
        assert own == whole
    else:
        assert engine.stats().preemptions
    assert len(tokens_of(events, "seeded")) == 12


def test_seeded_requests_take_turns_and_leave_the_others_their_steps() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)))
    engine.add(greedy("stream", [1], max_tokens=60))
    engine.step()
    for i in range(5):
        engine.add(GenerateRequest(f"seeded {i}", [1, 2, 3], SamplingParams(seed=i, max_tokens=4)))
    seen: list[str] = []
    for _ in range(21):
        events = engine.step()
        assert len(tokens_of(events, "stream")) == 1
        seen += [e.request_id for e in events if e.request_id.startswith("seeded")]
    assert seen == [f"seeded {i}" for i in range(5)] * 4


@pytest.mark.parametrize("length", [7, 8, 9, 12, 13])
def test_prefix_cache_reuses_full_pages(length: int) -> None:
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model)
    request = greedy("a", prompt_of(length), max_tokens=3)
    engine.add(request)
    first = tokens_of(run(engine), "a")
    rows = model.rows_computed
    engine.add(GenerateRequest("b", request.prompt, request.params))
    events = run(engine)
    reused = (length - 1) // 4 * 4
    assert tokens_of(events, "b") == first
    assert isinstance(events[0], TokenEvent)
    assert events[0].cached_tokens == reused
    assert model.rows_computed - rows == rows - reused


def test_prefix_cache_is_salted_per_tenant() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)))
    prompt = prompt_of(20)
    for request_id, salt in [("a", "one"), ("b", "two"), ("c", "one")]:
        engine.add(GenerateRequest(request_id, prompt, SamplingParams(temperature=0.0, max_tokens=1), salt))
        (event,) = run(engine)
        assert isinstance(event, TokenEvent)
        assert event.cached_tokens == (16 if request_id == "c" else 0)


def test_simultaneous_equal_prompts_are_computed_once() -> None:
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model)
    prompt = prompt_of(32)
    for i in range(4):
        engine.add(greedy(str(i), prompt, max_tokens=1))
    run(engine)
    assert model.rows_computed == 32 + 3 * 4


def test_cancel_frees_pages_at_once_and_reports_once() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)), prefix_cache=False)
    engine.add(greedy("a", prompt_of(20), max_tokens=50))
    engine.add(greedy("b", prompt_of(20, 1), max_tokens=50))
    for _ in range(4):
        engine.step()
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("never seen")
    events = run(engine)
    ends = [e for e in events if isinstance(e, TokenEvent) and e.finish_reason]
    assert [(e.request_id, e.finish_reason) for e in ends] == [("a", "cancelled"), ("b", "length")]
    assert engine.pool.num_free == engine.pool.num_pages


def test_cancel_while_waiting() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)), max_running=1)
    engine.add(greedy("a", [1], max_tokens=3))
    engine.add(greedy("b", [1], max_tokens=3))
    engine.step()
    engine.cancel("b")
    events = run(engine)
    assert [e.finish_reason for e in events if e.request_id == "b" and isinstance(e, TokenEvent)] == ["cancelled"]


def test_end_tokens_stop_unless_ignored() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)), end_ids=frozenset({9}))
    engine.add(greedy("a", [5], max_tokens=20))
    engine.add(greedy("b", [5], max_tokens=8, ignore_eos=True))
    engine.add(greedy("c", [5], max_tokens=20, stop_token_ids=(7,)))
    events = run(engine)
    assert tokens_of(events, "a") == [6, 7, 8, 9]
    assert tokens_of(events, "b") == [6, 7, 8, 9, 10, 11, 12, 13]
    assert tokens_of(events, "c") == [6, 7]
    last = [e for e in events if isinstance(e, TokenEvent) and e.finish_reason]
    assert {e.request_id: (e.finish_reason, e.stop_token) for e in last} == {
        "a": ("stop", True),
        "b": ("length", False),
        "c": ("stop", True),
    }


def test_answer_ends_where_the_context_does() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)), max_context=10)
    params = SamplingParams(temperature=0.0)
    engine.add(GenerateRequest("a", [1, 2, 3], params))
    events = run(engine)
    assert len(tokens_of(events, "a")) == 7
    assert isinstance(events[-1], TokenEvent)
    assert events[-1].finish_reason == "length"


def test_score_equals_log_softmax_across_chunks_and_cache() -> None:
    script = hashing(VOCAB)
    engine = make_engine(FakeModel(script))
    tokens = prompt_of(37)
    for start in (1, 4, 5, 20, 36):
        engine.add(ScoreRequest(f"s{start}", tokens, start))
        (event,) = run(engine)
        assert isinstance(event, ScoreEvent)
        rows = [torch.log_softmax(script(tokens[:p]), -1) for p in range(start, len(tokens))]
        assert event.logprobs == pytest.approx(
            [row[t].item() for row, t in zip(rows, tokens[start:], strict=True)], abs=1e-5
        )
        assert event.greedy == [int(row.argmax()) == t for row, t in zip(rows, tokens[start:], strict=True)]
    assert engine.stats().cached_prompt_tokens > 0


def test_logprobs_are_of_the_models_own_distribution() -> None:
    script = hashing(VOCAB)
    engine = make_engine(FakeModel(script))
    prompt = prompt_of(6)
    params = SamplingParams(temperature=0.5, max_tokens=4, seed=1, logprobs=3, logit_bias={7: 5.0}, presence_penalty=1)
    engine.add(GenerateRequest("a", prompt, params))
    engine.add(greedy("b", prompt, max_tokens=4))
    events = [e for e in run(engine) if isinstance(e, TokenEvent)]
    context = list(prompt)
    for event in (e for e in events if e.request_id == "a"):
        expected = torch.log_softmax(script(context), -1)
        assert event.logprobs is not None and event.token_id is not None
        assert event.logprobs.logprob == pytest.approx(expected[event.token_id].item(), abs=1e-5)
        values, ids = expected.topk(3)
        assert [i for i, _ in event.logprobs.top] == ids.tolist()
        assert [v for _, v in event.logprobs.top] == pytest.approx(values.tolist(), abs=1e-5)
        context.append(event.token_id)
    assert all(e.logprobs is None for e in events if e.request_id == "b")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_request_that_breaks_the_model_fails_alone(poison: float) -> None:
    script = hashing(VOCAB)

    def poisoned(context: list[int]) -> torch.Tensor:
        logits = script(context)
        if 13 in context:
            logits[3] = poison
        return logits

    engine = make_engine(FakeModel(poisoned))
    healthy = greedy("good", [1, 2, 3], max_tokens=5)
    engine.add(greedy("bad", [1, 13, 3], max_tokens=5))
    engine.add(ScoreRequest("bad score", [1, 13, 3], 1))
    engine.add(healthy)
    events = run(engine)
    failures = [e for e in events if isinstance(e, TokenEvent) and e.finish_reason == "error"]
    assert {e.request_id for e in failures} == {"bad", "bad score"}
    assert all(e.error and "NaN" in e.error for e in failures)
    if 13 not in (expected := alone(healthy)):
        assert tokens_of(events, "good") == expected
    assert engine.pool.num_free == engine.pool.num_pages


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (greedy("x", []), InvalidRequestError, "empty"),
        (greedy("x", [VOCAB]), InvalidRequestError, "outside"),
        (greedy("x", [-1]), InvalidRequestError, "outside"),
        (greedy("x", [1] * 128), ContextLengthError, "128 tokens"),
        (greedy("x", [1], logit_bias={VOCAB: 1.0}), InvalidRequestError, "logit_bias"),
        (greedy("taken", [1]), InvalidRequestError, "already in use"),
        (ScoreRequest("x", [1, 2], 2), InvalidRequestError, "start"),
        (ScoreRequest("x", [1, 2], 0), InvalidRequestError, "start"),
        (ScoreRequest("x", [1] * 129, 1), ContextLengthError, "129 tokens"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(
    request_: GenerateRequest | ScoreRequest, error: type[Exception], words: str
) -> None:
    engine = make_engine(FakeModel(counting(VOCAB)))
    engine.add(greedy("taken", [1], max_tokens=2))
    with pytest.raises(error, match=words):
        engine.add(request_)
    assert tokens_of(run(engine), "taken") == [2, 3]
