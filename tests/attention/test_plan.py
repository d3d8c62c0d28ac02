"""Which tokens are sparse, and where chunks must end."""

from __future__ import annotations

import itertools

import pytest

from deepseek.attention.plan import SparsePlan
from deepseek.attention.policy import SparsePolicy, policy_of

PAGE, UNTIL, QUESTION = 64, 1024, 256
POLICY = SparsePolicy(0.02, UNTIL, QUESTION)


def plan(length: int, **options: int) -> SparsePlan:
    return SparsePlan.of(SparsePolicy(0.02, UNTIL, **({"question_tokens": QUESTION} | options)), length, PAGE)


def chunks(made: SparsePlan, length: int, budgets: list[int], start: int = 0) -> list[tuple[int, int]]:
    """(first position, end) of the chunks of ``length`` tokens, computed with these budgets in turn."""
    found, at = [], start
    for budget in itertools.cycle(budgets):
        if at >= length:
            return found
        count = made.cut(at, min(budget, length - at))
        assert count >= 1
        found.append((at, at + count))
        at += count
    raise AssertionError("unreachable")


def test_modes() -> None:
    assert policy_of("dense", 0.02) is None
    assert policy_of("sparse", 0.0) is None
    assert policy_of("auto", 0.0) is None
    auto, sparse = policy_of("auto", 0.05), policy_of("sparse", 0.05, 0)
    assert auto is not None and sparse is not None
    assert (auto.error, sparse.error, sparse.question_tokens) == (0.05, 0.05, 0)
    assert auto.dense_until > sparse.dense_until
    there, same = policy_of("auto", 0.05, on_gpu=True), policy_of("sparse", 0.05, 0, on_gpu=True)
    assert there is not None and there.dense_until > auto.dense_until
    assert same == sparse


@pytest.mark.parametrize(
    "length,question",
    [
        (1, 0),
        (UNTIL, 0),
        (UNTIL + QUESTION + PAGE - 1, 0),  # the page before the question still ends where sparseness begins
        (UNTIL + QUESTION + PAGE, UNTIL + PAGE),
        (UNTIL + QUESTION + PAGE + 1, UNTIL + PAGE),
        (10 * UNTIL, 10 * UNTIL - QUESTION),
        (10 * UNTIL - 1, 10 * UNTIL - QUESTION - PAGE),
    ],
)
def test_the_question_begins_on_a_page_and_is_dense(length: int, question: int) -> None:
    made = plan(length)
    assert made.question == question
    assert made.policy_at(length) == POLICY
    assert made.policy_at(length - 1) is None
    assert made.policy_at(question) is None
    if question:
        assert made.policy_at(question - 1) == POLICY
        assert length - question >= QUESTION


def test_no_question_asked_for() -> None:
    made = plan(5000, question_tokens=0)
    assert made.policy_at(4999) is not None
    assert chunks(made, 5000, [512])[-1] == (4608, 5000)


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 1343, 1344, 1345, 3000, 3001, 4096])
@pytest.mark.parametrize("budgets", [[1], [63], [64], [65], [512], [7, 300, 64, 1]])
def test_chunks_lie_in_one_part_and_are_whole_pages_where_sparse(length: int, budgets: list[int]) -> None:
    made, total = plan(length), length + 100  # an answer that is computed again
    for start, end in chunks(made, total, budgets):
        for edge in (made.question, length):
            assert not start < edge < end
        policy = made.policy_at(start)
        if policy is not None:
            assert not start < UNTIL < end
            if UNTIL < end <= made.question:
                assert start % PAGE == 0 and end % PAGE == 0
        assert all(made.policy_at(position) == policy for position in range(start, end))
        assert end - start <= max(max(budgets), PAGE)


def test_digest_marks_begin_where_keys_differ() -> None:
    long, short = plan(5000), plan(UNTIL + 300)
    assert list(long.marks(exact=False)) == [UNTIL // PAGE]
    assert list(long.marks(exact=True)) == [UNTIL // PAGE, long.question // PAGE]
    assert list(short.marks(exact=True)) == [(UNTIL + 300) // PAGE]  # its prompt is dense
    assert list(plan(100).marks(exact=True)) == [UNTIL // PAGE]
    other = SparsePlan.of(SparsePolicy(0.05, UNTIL, QUESTION), 5000, PAGE)
    assert other.marks(exact=False) != long.marks(exact=False)
