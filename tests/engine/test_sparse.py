"""Sparse and dense requests in one engine: who is told what, who shares which pages, and what stays reproducible."""

from __future__ import annotations

from typing import Any

import pytest

from deepseek.attention import policy
from deepseek.attention.stats import AttentionStats
from deepseek.engine.engine import Engine
from deepseek.engine.events import EmbedRequest, GenerateRequest, ScoreEvent, ScoreRequest
from deepseek.engine.speculation import LookupDrafter, Speculation
from deepseek.errors import InvalidRequestError
from deepseek.sampling import SamplingParams
from tests.fakes import FakeModel, hashing, make_engine, run, tokens_of

UNTIL = 8  # sparse from here on; pages have 4 tokens
QUESTION = 6
VOCAB = 64


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "SPARSE_DENSE_UNTIL", UNTIL)
    monkeypatch.setattr(policy, "AUTO_DENSE_UNTIL", 2 * UNTIL)


def model(sparse: bool = True) -> FakeModel:
    made = FakeModel(hashing(VOCAB), vocab_size=VOCAB)
    made.sparse = made.row_invariant = sparse
    return made


def engine(made: FakeModel, **settings: Any) -> Engine:
    return make_engine(made, **{"num_pages": 128, "question_tokens": QUESTION, "attention": "sparse"} | settings)


def request(name: str, prompt: list[int], max_tokens: int = 6, seed: int | None = 5, **options: Any) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.0, ignore_eos=True)
    return GenerateRequest(name, prompt, params, **options)


def text(length: int, start: int = 0) -> list[int]:
    return [(7 * i * i + 3 * i + start) % VOCAB for i in range(length)]


def answer(made: Engine, *requests: GenerateRequest) -> list[list[int]]:
    for each in requests:
        made.add(each)
    events = run(made)
    return [tokens_of(events, each.request_id) for each in requests]


LENGTHS = [1, UNTIL - 1, UNTIL, UNTIL + 1, UNTIL + QUESTION + 3, UNTIL + QUESTION + 4, UNTIL + QUESTION + 5, 41, 80]


def told(made: FakeModel) -> set[bool]:
    return {each is not None for each in made.policies}


@pytest.mark.parametrize("options", [{"attention": "dense"}, {"attention_error": 0.0}])
@pytest.mark.parametrize("length", LENGTHS)
def test_dense_and_an_error_of_zero_are_exactly_dense(length: int, options: dict[str, Any]) -> None:
    plain, by_setting, by_request = model(sparse=False), model(), model()
    plain.row_invariant = True
    expected = answer(engine(plain, attention="dense"), request("x", text(length)))
    assert answer(engine(by_setting, **options), request("x", text(length))) == expected
    assert answer(engine(by_request), request("x", text(length), **options)) == expected
    assert told(by_setting) == told(by_request) == {False}


def test_a_question_is_dense_and_what_lies_around_it_sparse() -> None:
    made, prompt = model(), text(41)
    answer(engine(made), request("x", prompt, max_tokens=3))
    parts = [(rows[0], policy is not None) for (_, rows), policy in zip(made.forwards, made.policies, strict=True)]
    # dense_until is an edge, the question begins at (41 - 6) // 4 * 4 = 32; chunks have 16 rows at most
    assert parts == [(8, True), (16, True), (8, True), (9, False), (1, True), (1, True)]


def test_a_request_says_otherwise_than_the_engine() -> None:
    long = text(41)
    for setting, asked, sparse in [
        ("dense", {}, False),
        ("dense", {"attention": "sparse"}, True),
        ("auto", {"attention": "dense"}, False),
        ("auto", {}, True),
        ("sparse", {"attention_error": 0.0}, False),
        ("sparse", {"attention": "auto", "attention_error": 0.1}, True),
    ]:
        made = model()
        answer(engine(made, attention=setting), request("x", long, **asked))
        assert (True in told(made)) == sparse, (setting, asked)
    (only,) = {each for each in made.policies if each is not None}
    assert (only.error, only.dense_until, only.question_tokens) == (0.1, 2 * UNTIL, QUESTION)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("options,param", [
    ({"attention": "quick"}, "attention"),
    ({"attention_error": -0.01}, "attention_error"),
    ({"attention_error": 0.51}, "attention_error"),
    ({"attention_error": float("nan")}, "attention_error"),
    ({"question_tokens": -1}, "question_tokens"),
])  # fmt: skip
def test_senseless_wishes_are_refused(options: dict[str, Any], param: str, sparse: bool) -> None:
    made = engine(model(sparse))
    with pytest.raises(InvalidRequestError, match=param) as refused:
        made.add(request("x", [1], **options))
    assert refused.value.param == param
    assert not made.has_work


def test_an_engine_without_an_index_refuses_only_what_it_cannot_do() -> None:
    made = model(sparse=False)
    served = engine(made, attention="auto")
    with pytest.raises(InvalidRequestError, match="attends densely") as refused:
        served.add(request("x", text(41), attention="sparse"))
    assert refused.value.param == "attention"
    with pytest.raises(InvalidRequestError, match="attends densely"):
        served.add(ScoreRequest("s", text(41), 1, attention="sparse"))
    answer(
        served,
        request("a", text(41), attention="auto"),
        request("b", text(41), attention="sparse", attention_error=0.0),
    )
    assert told(made) == {False}


@pytest.mark.parametrize("length", LENGTHS)
def test_reproducible_answers_depend_on_nothing_around_them(length: int) -> None:
    """Alone, in a crowd, in other chunks, without places, with speculation, and with a cache that others have filled:
    shorter and longer prompts with the same beginning, dense, sparse and otherwise sparse ones."""
    whole = text(100)
    prompt = whole[:length]

    def wanted(name: str) -> GenerateRequest:
        return request(name, prompt, 20)

    (expected,) = answer(engine(model()), wanted("x"))
    assert answer(engine(model(), prefix_cache=False, max_batch_tokens=40), wanted("x")) == [expected]
    assert answer(engine(model(), max_batch_tokens=8), wanted("x")) == [expected]
    guessing = Speculation(LookupDrafter(), row_cost=0.0)
    assert answer(engine(model(), speculation=guessing), wanted("x")) == [expected]

    crowd = engine(model(), num_pages=48, max_batch_tokens=24)
    others: list[GenerateRequest] = []
    for index, end in enumerate([length + 7, 100, max(1, length - 5), length]):
        others.append(request(f"a{index}", whole[:end], 9, seed=3))
        others.append(request(f"b{index}", whole[:end], 9, seed=None))
        others.append(request(f"c{index}", whole[:end], 9, attention="dense"))
        others.append(request(f"d{index}", whole[:end], 9, attention="auto", attention_error=0.3))
        others.append(request(f"e{index}", whole[:end], 9, question_tokens=0))
    answers = answer(crowd, *others[:10], wanted("x"), *others[10:], wanted("y"))
    assert answers[10] == answers[-1] == expected
    assert crowd.scheduler.preemptions > 0
    assert answer(crowd, wanted("z")) == [expected]  # its prompt cached
    assert crowd.pool.num_free == crowd.pool.num_pages


def test_pages_are_shared_up_to_where_keys_differ() -> None:
    made = engine(model())
    prompt = text(60)

    def cached(name: str, **options: Any) -> int:
        made.add(request(name, prompt, 1, seed=None, **options))
        return next(event.cached_tokens for event in run(made) if event.cached_tokens or event.finish_reason)  # type: ignore[union-attr]

    assert cached("sparse") == 0
    assert cached("again") == 56
    assert cached("dense", attention="dense") == UNTIL
    assert cached("auto", attention="auto") == 2 * UNTIL  # of the dense one's
    assert cached("other", attention_error=0.3) == UNTIL
    assert cached("other again", attention_error=0.3) == 56


def test_the_next_turn_finds_question_and_answer() -> None:
    made = engine(model())
    first = text(60)
    (said,) = answer(made, request("1", first, 12, seed=None))
    made.add(request("2", [*first, *said, *text(9, 1)], 1, seed=None))
    (event,) = run(made)
    assert event.cached_tokens == 68  # 60 + 11 tokens were computed: 17 pages  # type: ignore[union-attr]


@pytest.mark.parametrize("known,kept", [(UNTIL - 2, 1), (UNTIL - 1, 0), (UNTIL, 7), (UNTIL + 1, 7)])
def test_a_draft_ends_where_attention_changes(known: int, kept: int) -> None:
    """Its rows attend as the row does that it stands behind, and must as they would alone."""
    served = engine(model(), max_batch_tokens=32)
    served.add(request("x", text(3), 60))
    for _ in range(known - 2):
        served.step()
    (chunk,) = served.scheduler.schedule()
    assert (chunk.sequence.computed, chunk.num_tokens) == (known, 1)
    assert len(served.scheduler.with_draft(chunk, [1] * 7).draft) == kept


def test_a_prompts_last_row_takes_no_draft() -> None:
    """It belongs to the question, and what follows does not."""
    served = engine(model(), max_batch_tokens=32, prefix_cache=False)
    served.add(request("x", text(41), 5))
    while not (chunk := served.scheduler.schedule()[0]).completes:
        served.scheduler.started(chunk)
        served.scheduler.completed(chunk)
    assert chunk.policy is None and served.scheduler.with_draft(chunk, [1, 2]).draft == ()


@pytest.mark.parametrize("max_batch_tokens", [8, 9, 16])
def test_a_full_batch_does_not_starve_a_sparse_prompt(max_batch_tokens: int) -> None:
    """What is left beside decodes may be less than the page that its chunk is at least."""
    made = engine(model(), max_running=8, max_batch_tokens=max_batch_tokens)
    for index in range(7):
        made.add(request(f"d{index}", [index], 60))
    for _ in range(3):
        made.step()
    made.add(request("long", text(60), 1))
    for _ in range(40):
        if tokens_of(made.step(), "long"):
            break
    else:
        raise AssertionError("the prompt is not through after 40 steps")


def test_scores_are_sparse_without_a_question_and_vectors_dense() -> None:
    made = model()
    served = engine(made)
    served.add(ScoreRequest("s", text(41), 1))
    assert any(isinstance(event, ScoreEvent) for event in run(served))
    assert told(made) == {True}
    made.policies.clear()
    served.add(EmbedRequest("e", text(41)))
    run(served)
    assert told(made) == {False}


def test_statistics_come_from_the_model() -> None:
    made = model()
    served = engine(made)
    assert served.stats().attention == AttentionStats()
    made.stats = AttentionStats(outputs=3, read_tokens=70, estimated_error=0.5)
    assert served.stats().attention == made.stats
