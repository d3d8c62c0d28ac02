"""Fair shares, priorities and preemption with the real engine over a scripted model, counted in steps."""

from __future__ import annotations

import random

import pytest

from deepseek.engine.engine import Engine
from deepseek.engine.events import MAX_PRIORITY, EngineEvent, GenerateRequest, ScoreEvent, ScoreRequest, TokenEvent
from deepseek.engine.speculation import LookupDrafter, Speculation
from deepseek.errors import InvalidRequestError
from deepseek.sampling import SamplingParams
from tests.fakes import FakeModel, counting, hashing, make_engine, run, tokens_of

VOCAB = 64


def request(
    name: str,
    tenant: str = "",
    *,
    prompt: int = 6,
    answer: int = 8,
    priority: int = 0,
    weight: float = 1.0,
    **options: object,
) -> GenerateRequest:
    tokens = random.Random(name).choices(range(VOCAB), k=prompt)
    params = SamplingParams(temperature=0.0, max_tokens=answer, **options)  # type: ignore[arg-type]
    return GenerateRequest(name, tokens, params, priority=priority, tenant=tenant, weight=weight)


def engine_of(**settings: object) -> Engine:
    return make_engine(FakeModel(counting(VOCAB)), **settings)


def steps_until_end(engine: Engine, name: str, limit: int = 2000) -> int:
    for step in range(1, limit + 1):
        if any(e.request_id == name and isinstance(e, TokenEvent) and e.finish_reason for e in engine.step()):
            return step
    raise AssertionError(f"{name} did not end within {limit} steps")


def work_of(events: list[EngineEvent]) -> dict[str, int]:
    """Tokens of answers by the first letter of the request's id."""
    counts: dict[str, int] = {}
    for event in events:
        counts[event.request_id[0]] = counts.get(event.request_id[0], 0) + 1
    return counts


@pytest.mark.parametrize("flood", [0, 10, 1000])
@pytest.mark.parametrize("answer", [8, 100])
def test_a_flood_delays_another_tenant_by_a_bounded_number_of_steps(flood: int, answer: int) -> None:
    engine = engine_of()
    for i in range(flood):
        engine.add(request(f"flood {i}", "a", answer=answer))
    for _ in range(20):
        engine.step()
    engine.add(request("quiet", "b"))
    assert steps_until_end(engine, "quiet") <= 10, "alone it takes 8 steps"


def test_a_flood_over_scarce_pages_delays_another_tenant_little() -> None:
    engine = engine_of(num_pages=24)
    for i in range(100):
        engine.add(request(f"flood {i}", "a", prompt=20, answer=60))
    for _ in range(30):
        engine.step()
    engine.add(request("quiet", "b", prompt=20))
    assert steps_until_end(engine, "quiet") <= 12


def test_one_huge_prompt_does_not_hold_up_another_tenants_small_ones() -> None:
    engine = engine_of(max_context=4000, num_pages=1100)
    engine.add(request("huge", "a", prompt=3900, answer=1))
    engine.step()
    for i in range(5):
        engine.add(request(f"small {i}", "b", prompt=10, answer=1))
    events = [event.request_id for _ in range(8) for event in engine.step()]
    assert events == [f"small {i}" for i in range(5)]
    assert steps_until_end(engine, "huge") <= 3900 // 16 + 10


def test_two_floods_share_equally_and_by_weight() -> None:
    for weights, ratio in (((1.0, 1.0), 1.0), ((1.0, 3.0), 3.0)):
        engine = engine_of()
        for i in range(300):
            engine.add(request(f"a{i}", "a", prompt=1 + i % 13, answer=1 + i % 17, weight=weights[0]))
            engine.add(request(f"b{i}", "b", prompt=12, answer=5, weight=weights[1]))
        for _ in range(200):
            engine.step()
        (root,) = engine.scheduler.waiting._classes.values()
        done = {name: share.clock * share.weight for name, share in root.children.items()}
        assert done["b"] / done["a"] == pytest.approx(ratio, rel=0.1)


def test_log_probabilities_are_paid_for() -> None:
    engine = engine_of()
    for i in range(100):
        engine.add(request(f"a{i}", "a", prompt=1, answer=20, logprobs=5))
        engine.add(request(f"b{i}", "b", prompt=1, answer=20))
    work = work_of([event for _ in range(250) for event in engine.step()])
    assert work["b"] / work["a"] == pytest.approx(2.0, rel=0.1)


def test_two_tenants_never_take_turns_in_throwing_each_other_out() -> None:
    engine = engine_of(num_pages=200)
    for i in range(60):
        engine.add(request(f"a{i}", "a", answer=40))
    for _ in range(5):
        engine.step()
    for i in range(60):
        engine.add(request(f"b{i}", "b", answer=40))
    events = run(engine)
    assert 2 <= engine.stats().preemptions <= 24, "some let b in; a step in which each threw the other out had 600"
    assert all(len(tokens_of(events, f"b{i}")) == 40 for i in range(60))


def test_users_of_one_key_do_not_starve_each_other_nor_gain_by_their_number() -> None:
    engine = engine_of()
    for i in range(200):
        engine.add(request(f"flood {i}", "key/greedy", answer=60))
    for _ in range(10):
        engine.step()
    engine.add(request("quiet", "key/modest"))
    assert steps_until_end(engine, "quiet") <= 10
    engine = engine_of()
    for i in range(200):
        engine.add(request(f"many {i}", f"key/{i}", answer=6))
        engine.add(request(f"other {i}", "single", answer=6))
    work = work_of([event for _ in range(100) for event in engine.step()])
    assert work["m"] / work["o"] == pytest.approx(1.0, rel=0.1)


def test_live_traffic_takes_the_place_of_batches_at_once() -> None:
    engine = engine_of(num_pages=300)
    for i in range(50):
        engine.add(request(f"batch {i}", "a", answer=100, priority=-10))
    for _ in range(10):
        engine.step()
    for i in range(8):
        engine.add(request(f"live {i}", "a", answer=20))
    for _ in range(6):
        events = engine.step()
    assert {e.request_id.split()[0] for e in events} == {"live"}, "all places are live"
    assert engine.stats().preemptions == 8


def test_batches_run_where_live_traffic_leaves_room_and_lose_nothing() -> None:
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model, num_pages=200)
    batch = [request(f"batch {i}", answer=40, priority=-10) for i in range(12)]
    for item in batch:
        engine.add(item)
    events: list[EngineEvent] = []
    for step in range(400):
        if step % 7 == 0 and step < 200:
            engine.add(request(f"live {step}", "a", answer=10))
        events += engine.step()
    assert engine.stats().preemptions > 0 and not engine.has_work
    lost = engine.stats().preemptions * engine.page_size  # a page that was not full is computed again
    live = sum(10 + 6 for step in range(0, 200, 7))
    assert model.rows_computed <= 12 * 46 + live + lost
    for item in batch:
        alone = make_engine(FakeModel(hashing(VOCAB)))
        alone.add(item)
        assert tokens_of(events, item.request_id) == tokens_of(run(alone), item.request_id)


def test_a_batch_prompt_does_not_delay_a_live_one() -> None:
    engine = engine_of(max_context=2000, num_pages=600)
    engine.add(request("batch", prompt=1900, answer=1, priority=-10))
    engine.step()
    engine.add(request("live", prompt=30, answer=1))
    assert steps_until_end(engine, "live") == 2


def test_urgent_class_order_holds_for_many_classes() -> None:
    engine = engine_of(max_running=1)
    for priority in (-10, 5, 0, 100, -100):
        engine.add(request(f"{priority}", priority=priority, answer=2))
    ends = [e.request_id for e in run(engine) if isinstance(e, TokenEvent) and e.finish_reason]
    assert ends == ["100", "5", "0", "-10", "-100"]


@pytest.mark.parametrize("seed", range(6))
def test_random_tenants_priorities_preemption_speculation_and_cancels(seed: int) -> None:
    """Whatever the company, every answer is the one that the request gets alone, and all memory comes back."""
    chance = random.Random(seed)
    speculation = Speculation(LookupDrafter()) if seed % 2 else None
    engine = make_engine(FakeModel(hashing(VOCAB)), num_pages=20, speculation=speculation)
    requests = [
        request(
            str(i),
            chance.choice(("a", "b/1", "b/2", "")),
            prompt=chance.randrange(1, 40),
            answer=chance.randrange(1, 30),
            priority=chance.choice((0, 0, 0, -10, 3)),
            weight=chance.choice((1.0, 5.0)),
            seed=chance.choice((None, None, 7)),
        )
        for i in range(60)
    ]
    cancelled = {str(i) for i in chance.sample(range(60), 10)}
    pending, events = list(requests), []
    for step in range(4000):
        if pending and chance.random() < 0.6:
            engine.add(pending.pop(0))
        if step % 5 == 0 and cancelled:
            engine.cancel(chance.choice(sorted(cancelled)))
        events += engine.step()
        if not pending and not engine.has_work:
            break
    assert not engine.has_work and engine.stats().preemptions > 0
    for item in requests:
        got = tokens_of(events, item.request_id)
        alone = make_engine(FakeModel(hashing(VOCAB)))
        alone.add(item)
        expected = tokens_of(run(alone), item.request_id)
        assert got == expected or (item.request_id in cancelled and got == expected[: len(got)])
        ends = [e for e in events if e.request_id == item.request_id and isinstance(e, TokenEvent) and e.finish_reason]
        assert len(ends) == 1
    assert (engine.pool.num_free, len(engine.scheduler.waiting), len(engine.scheduler.running)) == (20, 0, 0)


def test_a_preempted_score_request_counts_nothing_twice() -> None:
    engine = make_engine(FakeModel(hashing(VOCAB)), max_running=1)
    tokens = request("x", prompt=60).prompt
    engine.add(ScoreRequest("score", tokens, 1))
    engine.step()
    engine.add(request("urgent", priority=1, answer=2))
    events = run(engine)
    assert engine.stats().preemptions == 1
    (score,) = [e for e in events if isinstance(e, ScoreEvent)]
    alone = make_engine(FakeModel(hashing(VOCAB)))
    alone.add(ScoreRequest("score", tokens, 1))
    (expected,) = run(alone)
    assert isinstance(expected, ScoreEvent) and score.logprobs == expected.logprobs


def test_seeded_turns_are_shared_between_tenants() -> None:
    engine = engine_of(max_running=16)
    for i in range(12):
        engine.add(request(f"a{i}", "a", prompt=3, answer=30, seed=i))
    engine.add(request("b", "b", prompt=3, answer=30, seed=99))
    events = [event for _ in range(60) for event in engine.step()]
    work = work_of(events)
    assert work["b"] == 30 or abs(work["b"] - work["a"]) <= 2, "half of the turns are the other tenant's"


def test_prefixes_under_way_are_awaited_without_stopping_the_others() -> None:
    model = FakeModel(counting(VOCAB))
    shared = list(range(64)) * 6
    engine = make_engine(model, max_running=128, max_batch_tokens=128, num_pages=2000, max_context=1000)
    for i in range(40):
        engine.add(GenerateRequest(f"same {i}", [*shared, i], SamplingParams(temperature=0.0, max_tokens=1)))
    engine.add(request("other", answer=1))
    assert steps_until_end(engine, "other") <= 6
    run(engine)
    assert model.rows_computed == len(shared) + 40 + 6


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": MAX_PRIORITY + 1},
        {"priority": -MAX_PRIORITY - 1},
        {"weight": 0.0},
        {"weight": float("nan")},
        {"weight": 1e9},
        {"weight": -1.0},
    ],
)
def test_bounds(fields: dict[str, float]) -> None:
    engine = engine_of()
    with pytest.raises(InvalidRequestError):
        engine.add(request("x", **fields))  # type: ignore[arg-type]
    assert not engine.has_work
