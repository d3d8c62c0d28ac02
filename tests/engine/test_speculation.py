"""Speculation changes how many steps an answer takes, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence as Seq
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.engine import engine as engine_module
from deepseek.engine import speculation as speculation_module
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineEvent, GenerateRequest, ScoreRequest, TokenEvent
from deepseek.engine.request import Sequence
from deepseek.engine.speculation import (
    EXPERTS_ROW_COST,
    MAX_DRAFT,
    ROW_COST,
    Gate,
    LookupDrafter,
    LookupIndex,
    Speculation,
)
from deepseek.llm import LLM
from deepseek.sampling import SamplingParams
from tests.fakes import FakeModel, Script, counting, greedy, hashing, make_engine, run, tokens_of

VOCAB = 64
OPTIONS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": 0.4},
    {"temperature": 1.0},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.02, "logit_bias": {3: 4.0, 4: 3.0}},
    {"temperature": 0.7, "repetition_penalty": 0.8, "frequency_penalty": -0.5, "logprobs": 3},
]


class Prophet:
    """A drafter that knows the answers, and lies with a given probability; past an answer's end it guesses."""

    cost = 0.0

    def __init__(self, answers: dict[str, list[int]], lies: float, seed: int = 0) -> None:
        self.answers = answers
        self.lies = lies
        self.random = random.Random(seed)
        self.asked: set[str] = set()
        self.forgotten: list[str] = []

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        drafts = {}
        for sequence, length in wanted.items():
            self.asked.add(sequence.request_id)
            coming = self.answers.get(sequence.request_id, [])[sequence.answer_length :][:length]
            coming += self.random.choices(range(VOCAB), k=length - len(coming))
            drafts[sequence] = [
                t if self.random.random() >= self.lies else self.random.randrange(VOCAB) for t in coming
            ]
        return drafts

    def forget(self, sequence: Sequence) -> None:
        self.forgotten.append(sequence.request_id)


def eager(drafter: object, max_draft: int = 5) -> Speculation:
    """Free rows, so that the gate is open wherever a draft can be right."""
    return Speculation(drafter, row_cost=0.0, max_draft=max_draft)  # type: ignore[arg-type]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def feed(engine: Engine, requests: Seq[GenerateRequest]) -> list[EngineEvent]:
    """One new request per step, and all of their events."""
    pending, events = list(requests), list[EngineEvent]()
    while pending or engine.has_work:
        if pending:
            engine.add(pending.pop(0))
        events += engine.step()
    return events


def by_request(events: Seq[EngineEvent]) -> dict[str, list[tuple[object, ...]]]:
    """What each request was told, but for the cache hits, which depend on timing."""
    told: dict[str, list[tuple[object, ...]]] = {}
    for e in events:
        assert isinstance(e, TokenEvent)
        logprobs = e.logprobs and (e.logprobs.logprob, tuple(e.logprobs.top))
        told.setdefault(e.request_id, []).append((e.token_id, e.stop_token, logprobs, e.finish_reason, e.error))
    return told


def answers_of(events: Seq[EngineEvent]) -> dict[str, list[int]]:
    return {name: tokens_of(events, name) for name in {e.request_id for e in events}}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lies", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("num_pages", [64, 16])
def test_answers_are_the_same_token_for_token(options: dict[str, object], lies: float, num_pages: int) -> None:
    requests = [
        GenerateRequest(
            str(i),
            prompt_of(3 + 5 * i % 30, i),
            SamplingParams(max_tokens=1 + 7 * i % 29, stop_token_ids=(5,), **options),  # type: ignore[arg-type]
        )
        for i in range(12)
    ]
    plain = make_engine(FakeModel(hashing(VOCAB)), num_pages=num_pages, max_batch_tokens=64)
    expected = feed(plain, requests)
    prophet = Prophet(answers_of(expected), lies)
    engine = make_engine(
        FakeModel(hashing(VOCAB)), num_pages=num_pages, max_batch_tokens=64, speculation=eager(prophet)
    )
    assert by_request(feed(engine, requests)) == by_request(expected)
    stats = engine.stats()
    assert stats.pages_free == num_pages
    assert (stats.finished, stats.generated_tokens) == (12, plain.stats().generated_tokens)
    assert sorted(prophet.forgotten) == sorted(request.request_id for request in requests)
    assert (stats.preemptions > 0) == (num_pages == 16)
    assert stats.drafted_tokens > 0
    if lies == 0.0:
        assert stats.accepted_tokens > 0.5 * stats.drafted_tokens
        assert stats.steps < plain.stats().steps


@pytest.mark.parametrize("length", range(1, 10))
def test_page_boundaries_and_what_lies_in_the_cache(length: int) -> None:
    """After every step the computed part of the cache holds the sequence's tokens, and no page is findable that holds
    anything else."""
    model = FakeModel(hashing(VOCAB))
    request = greedy("a", prompt_of(length), max_tokens=30)
    plain = make_engine(FakeModel(hashing(VOCAB)))
    plain.add(request)
    answer = tokens_of(run(plain), "a")
    engine = make_engine(model, speculation=eager(Prophet({"a": answer}, 0.3, length)))
    engine.add(request)
    (sequence,) = engine.scheduler.waiting
    while engine.has_work:
        engine.step()
        keys = engine.cache.layers[0].keys[:, 0, 0].view(-1, engine.page_size)
        held = keys[torch.tensor(sequence.pages, dtype=torch.int64)].flatten()[: sequence.computed]
        assert held.tolist() == sequence.tokens[: sequence.computed]
        assert not sequence.pages or sequence.computed == len(sequence.tokens) - 1
    assert sequence.tokens == request.prompt + answer
    engine.add(greedy("b", request.prompt + answer, max_tokens=1))
    (event,) = run(engine)
    assert isinstance(event, TokenEvent)
    assert event.cached_tokens == (length + 29) // 4 * 4
    assert event.token_id == int(model.script(request.prompt + answer).argmax())


def test_a_draft_ends_with_the_answer() -> None:
    """Right guesses behind an end token or the last token allowed are not given out."""
    told = {"stop": list(range(6, 40)), "length": list(range(6, 40)), "context": list(range(6, 40))}
    model = FakeModel(counting(VOCAB))
    engine = make_engine(model, end_ids=frozenset({14}), max_context=20, speculation=eager(Prophet(told, 0.0)))
    engine.add(greedy("stop", [5], max_tokens=30))
    engine.add(greedy("length", [5], max_tokens=7))
    engine.add(greedy("context", [5] * 13, max_tokens=30, ignore_eos=True))
    events = run(engine)
    assert tokens_of(events, "stop") == list(range(6, 15))
    assert tokens_of(events, "length") == list(range(6, 13))
    assert tokens_of(events, "context") == list(range(6, 13))
    ends = [e for e in events if isinstance(e, TokenEvent) and e.finish_reason]
    assert {e.request_id: (e.finish_reason, e.stop_token) for e in ends} == {
        "stop": ("stop", True),
        "length": ("length", False),
        "context": ("length", False),
    }
    assert engine.stats().steps < 6


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    prophet = Prophet({"a": list(range(6, 40))}, 0.0)
    engine = make_engine(FakeModel(counting(VOCAB)), prefix_cache=False, speculation=eager(prophet))
    engine.add(greedy("a", [5], max_tokens=30))
    engine.step()
    assert len(engine.step()) == 6
    engine.cancel("a")
    (event,) = run(engine)
    assert isinstance(event, TokenEvent)
    assert event.finish_reason == "cancelled"
    assert prophet.forgotten == ["a"]
    assert engine.pool.num_free == engine.pool.num_pages


def test_seeded_and_scored_sequences_get_no_drafts() -> None:
    model, prophet = FakeModel(hashing(VOCAB)), Prophet({}, 1.0)
    engine = make_engine(model, speculation=eager(prophet))
    engine.add(GenerateRequest("seeded", prompt_of(5), SamplingParams(seed=3, max_tokens=6)))
    engine.add(ScoreRequest("scored", prompt_of(9), 8))
    run(engine)
    assert not prophet.asked
    assert engine.stats().drafted_tokens == 0


def poisoned(poison: float) -> Script:
    """Counts, and gives no usable logits behind 13."""
    count = counting(VOCAB)

    def script(context: Seq[int]) -> torch.Tensor:
        logits = count(context)
        if context[-1] == 13:
            logits[3] = poison
        return logits

    return script


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_only_logits_that_were_reached_can_fail_a_request(poison: float) -> None:
    wrong = {"a": [13] * 30, "b": [13] * 30, "c": list(range(8, 30))}
    engine = make_engine(FakeModel(poisoned(poison)), speculation=eager(Prophet(wrong, 0.0)))
    engine.add(greedy("a", [20], max_tokens=10))
    engine.add(greedy("b", [40], max_tokens=10))
    engine.add(greedy("c", [7], max_tokens=10))
    events = run(engine)
    assert tokens_of(events, "a") == list(range(21, 31))
    assert tokens_of(events, "b") == list(range(41, 51))
    assert tokens_of(events, "c") == list(range(8, 14))
    ends = {e.request_id: e.finish_reason for e in events if isinstance(e, TokenEvent) and e.finish_reason}
    assert ends == {"a": "length", "b": "length", "c": "error"}
    assert engine.pool.num_free == engine.pool.num_pages


def test_the_distribution_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of a vocabulary of four, against the exact joint probabilities."""
    vocab, count = 4, 6000
    monkeypatch.setattr(engine_module.secrets, "randbits", random.Random(1).getrandbits)
    script = hashing(vocab)
    engine = make_engine(
        FakeModel(script, vocab_size=vocab), seed=None, max_batch_tokens=32, speculation=eager(Guess([2, 1, 3]))
    )
    params = SamplingParams(max_tokens=4)
    for i in range(count):
        engine.add(GenerateRequest(str(i), [1, 2], params))
    events = run(engine, 20_000)
    seen: dict[str, list[int]] = {}
    for e in events:
        assert isinstance(e, TokenEvent)
        assert e.token_id is not None
        seen.setdefault(e.request_id, []).append(e.token_id)
    stats = engine.stats()
    assert 0.05 < stats.accepted_tokens / stats.drafted_tokens < 0.95
    observed = Counter(tuple(answer[:3]) for answer in seen.values())
    statistic = 0.0
    for answer in product(range(vocab), repeat=3):
        chance = 1.0
        for i, token in enumerate(answer):
            chance *= torch.softmax(script([1, 2, *answer[:i]]).double(), -1)[token].item()
        statistic += (observed[answer] - count * chance) ** 2 / (count * chance)
    # Chi-squared with 63 degrees of freedom: the 99.9% quantile is 103.4.
    assert statistic < 103.4


class Guess:
    """Always the same guess."""

    cost = 0.0

    def __init__(self, guess: list[int]) -> None:
        self.guess = guess

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: self.guess[:length] for sequence, length in wanted.items()}

    def forget(self, sequence: Sequence) -> None:
        pass


# The gate


def settled(acceptance: float) -> Gate:
    return Gate(acceptance=acceptance)


def test_surer_guesses_make_longer_drafts() -> None:
    lengths = [settled(a).length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.0) for a in (0.1, 0.3, 0.6, 0.8, 0.99)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] == MAX_DRAFT


@pytest.mark.parametrize(("acceptance", "drafts"), [(0.65, False), (0.75, True)])
def test_experts_need_surer_guesses(acceptance: float, drafts: bool) -> None:
    assert bool(settled(acceptance).length(MAX_DRAFT, 1.0, 1, EXPERTS_ROW_COST, 0.0)) == drafts


@pytest.mark.parametrize(("rows", "drafts"), [(1, True), (4, True), (24, False), (500, False)])
def test_full_steps_have_no_free_rows(rows: int, drafts: bool) -> None:
    assert bool(settled(0.6).length(MAX_DRAFT, float(rows), rows, ROW_COST, 0.0)) == drafts


def test_a_costly_drafter_needs_surer_guesses() -> None:
    assert settled(0.4).length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.0)
    assert not settled(0.4).length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.5)


def test_wrong_guesses_close_the_gate_and_rare_probes_open_it() -> None:
    gate = Gate()
    drafted = []
    for _ in range(400):
        drafted.append(gate.length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.0))
        if drafted[-1]:
            gate.verified(drafted[-1], 0)
    assert 0 < sum(map(bool, drafted[100:])) < 15
    for _ in range(400):
        if length := gate.length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.0):
            gate.verified(length, length)
    assert gate.length(MAX_DRAFT, 1.0, 1, ROW_COST, 0.0) == MAX_DRAFT


def test_no_draft_beside_a_prompt_or_beyond_the_steps_rows() -> None:
    model, prophet = FakeModel(counting(VOCAB)), Prophet({"a": list(range(6, 40))}, 0.0)
    engine = make_engine(model, num_pages=256, max_context=512, max_batch_tokens=64, speculation=Speculation(prophet))
    engine.add(greedy("a", [5], max_tokens=30))
    engine.step()
    engine.step()
    assert model.forwards[-1][1][0] > 1
    engine.add(greedy("b", prompt_of(200), max_tokens=2))
    engine.step()
    assert model.forwards[-1][1] == (1, 63)
    tight = make_engine(model, max_batch_tokens=8, speculation=eager(prophet, 7))
    tight.add(greedy("a", [5], max_tokens=30))
    tight.add(greedy("b", [5], max_tokens=30))
    model.forwards.clear()
    run(tight)
    assert max(sum(rows) for _, rows in model.forwards) == 8


# Prompt lookup


def naive(tokens: list[int], length: int) -> list[int]:
    """What followed the latest earlier place of the last three tokens, else of the last two."""
    for size in (3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                out = list(tokens)
                for i in range(length):
                    out.append(out[end + i])
                return out[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_lookup_follows_a_passage_and_finds_the_next(prompt: list[int], answer: list[int]) -> None:
    tokens = list(prompt)
    index = LookupIndex(tokens)
    previous: list[int] = []
    for token in answer:
        guess = index.guess(6)
        followed = previous[1:] if previous and tokens[-1] == previous[0] else naive(tokens, 5)
        assert guess[:5] == followed
        assert len(guess) in (0, 6)
        previous = guess
        tokens.append(token)


def test_lookup_copies_with_edits() -> None:
    text = prompt_of(60, 3)
    edited = [*text[:20], 1, 1, *text[22:40], *text[43:]]
    script = scripted([*text, 63], edited)
    plain = make_engine(FakeModel(script))
    engine = make_engine(FakeModel(script), speculation=Speculation(LookupDrafter()))
    for each in (plain, engine):
        each.add(greedy("a", [*text, 63], max_tokens=len(edited)))
        assert tokens_of(run(each), "a") == edited
    assert engine.stats().steps < 0.45 * plain.stats().steps
    assert engine.stats().accepted_tokens > 0.6 * engine.stats().drafted_tokens


def scripted(prompt: list[int], answer: list[int]) -> Script:
    """Gives ``answer`` behind ``prompt``, and 0 behind anything else."""
    whole = prompt + answer

    def script(context: Seq[int]) -> torch.Tensor:
        logits = torch.zeros(VOCAB)
        right = list(context) == whole[: len(context)] and len(context) < len(whole)
        logits[whole[len(context)] if right else 0] = 10.0
        return logits

    return script


# Real weights

FUNCTION = """def mean(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)
"""


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_real_model_answers_the_same(test_model: Path, temperature: float) -> None:
    chats = [
        [{"role": "user", "content": f"{order}\n```python\n{FUNCTION}```"}]
        for order in ("Repeat this code exactly:", "Rename the variable total to result in this code:")
    ]
    params = SamplingParams(temperature=temperature, max_tokens=80)
    answers = []
    for speculation in ("off", "auto"):
        llm = LLM(str(test_model), dtype="fp32", speculation=speculation, max_context=512, kv_cache_bytes=2**26, seed=1)
        answers.append([llm.chat(chat, params)[0].choices[0].token_ids for chat in chats])
        drafted = llm.stats().drafted_tokens
        assert bool(drafted) == (speculation == "auto")
    assert answers[0] == answers[1]
    assert llm.stats().accepted_tokens > 0.3 * drafted


@pytest.mark.parametrize("length", [39, 40, 41])
def test_a_long_prompt_is_indexed_over_several_steps(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation_module, "_INDEXED_PER_STEP", 10)
    tokens = [*range(length), 33, 34, 35]
    index = LookupIndex(tokens)
    guesses = []
    for _ in range(5):
        guesses.append(index.guess(2))
        if guesses[-1]:
            break
    assert guesses == [[]] * 3 + [[36, 37]]
