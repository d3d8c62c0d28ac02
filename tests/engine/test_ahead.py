"""A step planned before the one in front of it is done gives the same tokens as one planned behind it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from deepseek.engine.engine import Engine
from deepseek.engine.events import (
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineRequest,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)
from deepseek.engine.speculation import LookupDrafter, Speculation
from deepseek.sampling import SamplingParams
from tests.engine.launchers import Late, launcher_of
from tests.fakes import FakeModel, counting, greedy, hashing, make_engine, run, tokens_of
from tests.parity import tiny

VOCAB = 64
KINDS = ["late", "threaded"]
Ending = tuple[list[int], str | None, Any]


@dataclass
class Mix:
    """Requests, the step before which each arrives, and the steps before which some are cancelled."""

    requests: list[EngineRequest]
    arrivals: list[int]
    cancelled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def drawn(cls, seed: int, vocab: int) -> Mix:
        chance = random.Random(seed)
        shared = chance.choices(range(vocab), k=23)
        requests: list[EngineRequest] = []
        for index in range(24):
            beginning = shared[: chance.choice([0, 0, 8, 16, 23])]
            tokens = beginning + chance.choices(range(vocab), k=chance.randint(1, 30))
            name = str(index)
            if index % 8 == 6:
                requests.append(ScoreRequest(name, [*tokens, 1], start=1))
            elif index % 8 == 7:
                requests.append(EmbedRequest(name, tokens, pooling="mean", normalize=True))
            else:
                requests.append(
                    GenerateRequest(name, tokens, _params(chance, vocab), priority=chance.choice([0, 0, 1]))
                )
        arrivals = sorted(chance.randint(0, 25) for _ in requests)
        cancelled = {str(chance.randrange(24)): chance.randint(3, 40) for _ in range(4)}
        return cls(requests, arrivals, cancelled)

    def run(self, engine: Engine) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        step = 0
        while step < 30 or engine.has_work:
            for request, arrival in zip(self.requests, self.arrivals, strict=True):
                if arrival == step:
                    engine.add(request)
            for name, when in self.cancelled.items():
                if when == step:
                    engine.cancel(name)
            events += engine.step()
            step += 1
            assert step < 2000
        return events


def _params(chance: random.Random, vocab: int) -> SamplingParams:
    options: dict[str, Any] = {"max_tokens": chance.randint(1, 20), "temperature": chance.choice([0.0, 0.7, 1.3])}
    options |= chance.choice(
        [
            {},
            {},
            {"stop_token_ids": chance.sample(range(vocab), 6)},
            {"seed": chance.randrange(100)},
            {"repetition_penalty": 1.3},
            {"frequency_penalty": 0.5, "seed": 3},
            {"logit_bias": {chance.randrange(vocab): 5.0}},
            {"logprobs": 2},
            {"top_k": 5, "logprobs": 0},
        ]
    )
    return SamplingParams(**options)


def endings(events: list[EngineEvent], but: dict[str, int]) -> dict[str, Ending]:
    """Of each request its tokens, how it ended, and what came beside; cancelled ones aside, which end anywhere."""
    found: dict[str, Ending] = {}
    for event in events:
        if event.request_id in but:
            continue
        if isinstance(event, TokenEvent):
            tokens, reason, extra = found.get(event.request_id, ([], None, []))
            assert reason is None, "an event behind the last one"
            tokens = tokens if event.token_id is None else [*tokens, event.token_id]
            found[event.request_id] = (tokens, event.finish_reason, [*extra, event.logprobs])
        elif isinstance(event, ScoreEvent):
            found[event.request_id] = ([], "score", (event.logprobs, event.greedy))
        elif isinstance(event, EmbedEvent):
            found[event.request_id] = ([], "vector", event.vector)
    return found


def check(mix: Mix, engine_of: Callable[..., Engine], kind: str) -> Engine:
    """Runs the mix ahead, and compares it with what comes of it step by step."""
    expected = endings(mix.run(engine_of()), mix.cancelled)
    with launcher_of(kind) as launcher:
        engine = engine_of(launcher=launcher)
        found = endings(mix.run(engine), mix.cancelled)
    assert found == expected
    stats = engine.stats()
    assert stats.finished + stats.cancelled == len(mix.requests)
    assert (stats.pages_free, stats.running, stats.waiting) == (stats.pages_total, 0, 0)
    return engine


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_the_same_tokens_as_step_by_step(seed: int, kind: str) -> None:
    """The scripted model's tokens depend on its whole context, and on nothing else in the batch."""

    def engine_of(**options: Any) -> Engine:
        pages = 18 if seed % 2 else 64
        return make_engine(FakeModel(hashing(VOCAB)), num_pages=pages, max_context=64, **options)

    engine = check(Mix.drawn(seed, VOCAB), engine_of, kind)
    assert engine.stats().preemptions or seed % 2 == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_with_guesses(kind: str) -> None:
    def engine_of(**options: Any) -> Engine:
        speculation = Speculation(LookupDrafter(), row_cost=0.1)
        return make_engine(FakeModel(turning), max_context=64, speculation=speculation, **options)

    def turning(context: Sequence[int]) -> torch.Tensor:
        return counting(VOCAB)([context[-1] % 3])

    engine = check(Mix.drawn(11, VOCAB), engine_of, kind)
    assert engine.stats().accepted_tokens


@pytest.mark.parametrize("name", ["llama", "deepseek-v2-wide"])
def test_a_torch_model_gives_the_same_tokens(name: str) -> None:
    model = tiny.load(tiny.build(name), "torch")
    requests: list[EngineRequest] = [
        greedy(
            str(i),
            [(7 * i + 3 * j) % tiny.VOCAB for j in range(3 + 5 * i)],
            max_tokens=6 + i,
            seed=i if i == 3 else None,
        )
        for i in range(5)
    ]

    def engine_of(**options: Any) -> Engine:
        return make_engine(model, num_pages=30, **options)  # type: ignore[arg-type]

    check(Mix(requests, [0, 0, 1, 3, 4]), engine_of, "threaded")


def test_one_step_is_under_way_while_the_next_is_planned() -> None:
    launcher = Late()
    engine = make_engine(FakeModel(counting(VOCAB)), launcher=launcher)
    engine.add(greedy("a", [5], max_tokens=4))
    assert engine.step() == []
    assert tokens_of(engine.step(), "a") == [6]
    assert launcher.most_under_way == 2
    assert tokens_of(run(engine), "a") == [7, 8, 9]
    assert engine.stats().steps == 4  # nothing is computed behind the last token


def test_a_token_behind_the_end_is_dropped() -> None:
    engine = make_engine(FakeModel(counting(VOCAB)), launcher=Late(), end_ids=frozenset({9}))
    engine.add(greedy("a", [6], max_tokens=20))
    events = run(engine)
    assert tokens_of(events, "a") == [7, 8, 9]
    assert engine.stats().generated_tokens == 3
    assert engine.stats().steps == 4
    assert engine.pool.num_free == engine.pool.num_pages


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0}])
def test_who_needs_its_tokens_waits_for_them(options: dict[str, float]) -> None:
    launcher = Late()
    engine = make_engine(FakeModel(counting(VOCAB)), launcher=launcher)
    engine.add(greedy("a", [5], max_tokens=4, **options))
    assert tokens_of(engine.step(), "a") == [6]
    run(engine)
    assert launcher.most_under_way == 1


def test_a_shared_prompt_is_computed_once() -> None:
    """Pages that a step under way computes are waited for, as those that the next one will."""
    model = FakeModel(hashing(VOCAB))
    engine = make_engine(model, launcher=Late(), max_batch_tokens=64)
    prompt = [3 * i % VOCAB for i in range(41)]
    engine.add(greedy("a", prompt, max_tokens=6))
    engine.step()
    engine.add(greedy("b", prompt, max_tokens=6))
    events = run(engine)
    assert tokens_of(events, "a") == tokens_of(events, "b")
    assert engine.stats().cached_prompt_tokens == 40


def test_a_broken_row_ends_its_request_only() -> None:
    script = hashing(VOCAB)

    def breaking(context: Any) -> torch.Tensor:
        return script(context) * (float("nan") if list(context[:1]) == [9] and len(context) > 3 else 1.0)

    engine = make_engine(FakeModel(breaking), launcher=Late())
    engine.add(greedy("bad", [9, 1], max_tokens=9))
    engine.add(greedy("good", [8, 1], max_tokens=9))
    found = endings(run(engine), {})
    assert (len(found["bad"][0]), found["bad"][1]) == (2, "error")
    assert (len(found["good"][0]), found["good"][1]) == (9, "length")
