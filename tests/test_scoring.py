"""Continuations that differ in their last token alone take one forward, and score as if each had its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deepseek.engine.events import ScoreRequest
from deepseek.errors import InvalidRequestError
from deepseek.llm import LLM
from deepseek.scoring import Score, forwards

QUESTION = "Which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. neon\nAnswer:"


@pytest.fixture(scope="module")
def llm(test_model: Path) -> LLM:
    return LLM(str(test_model), offline=True, max_context=512, kv_cache_bytes=64 * 2**20, page_size=16)


def test_which_continuations_share_a_forward() -> None:
    same, other = [1, 2], [1, 3]
    found = forwards([(same, [7]), (same, [8, 9]), (same, [5]), (other, [7]), (same, [8, 4]), (same, [7])])
    assert [(one.after, one.alternatives, one.places) for one in found] == [
        ([7], [5, 7], [0, 2, 5]),
        ([8, 9], [4], [1, 4]),
        ([7], [], [3]),
    ]
    # A context is no part of a continuation, whatever their tokens are together.
    assert len(forwards([([1], [2, 3]), ([1, 2], [3])])) == 2


def run(llm: LLM, requests: Sequence[ScoreRequest]) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for name, result in llm.run(requests):
        assert isinstance(result, Score)
        found[name] = result
    return found


# Rows of the forward: at the ends of pages of 16 tokens, where the prefix cache begins to help, and in between.
@pytest.mark.parametrize("length", [15, 16, 17, 33])
def test_alternatives_are_what_forwards_of_their_own_give_to_the_last_bit(llm: LLM, length: int) -> None:
    text = (llm.tokenizer.encode(QUESTION) * 2)[:length]
    last = [llm.tokenizer.encode(letter)[0] for letter in (" A", " B", " C", " D")]
    own = run(llm, [ScoreRequest(f"{length}/{t}", [*text, t], length, reproducible=True) for t in last])
    shared = run(llm, [ScoreRequest(f"{length}", [*text, last[0]], length, reproducible=True, alternatives=last[1:])])[
        f"{length}"
    ]
    for token, score in zip(last, (shared, *shared.alternatives), strict=True):
        alone = own[f"{length}/{token}"]
        assert (score.token_ids, score.logprobs, score.greedy) == (alone.token_ids, alone.logprobs, alone.greedy)


def test_score_gives_each_continuation_its_own(test_model: Path) -> None:
    llm = LLM(str(test_model), offline=True, max_context=512, kv_cache_bytes=64 * 2**20, backend="torch")
    choices = [" A", " B", " the answer is C", " the answer is D"]
    together = llm.score([QUESTION] * 4, choices)
    for choice, score in zip(choices, together, strict=True):
        (alone,) = llm.score([QUESTION], [choice])
        assert score.token_ids == alone.token_ids and score.greedy == alone.greedy
        assert score.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


def test_four_letters_take_one_forward(llm: LLM) -> None:
    before = llm.stats().prompt_tokens
    scores = llm.score([QUESTION] * 4, [" A", " B", " C", " D"])
    assert llm.stats().prompt_tokens - before == len(llm.tokenizer.encode(QUESTION)) + 1
    assert len({score.total for score in scores}) == 4


def test_an_alternative_outside_of_the_vocabulary_is_refused(llm: LLM) -> None:
    found = dict(llm.run([ScoreRequest("wrong", [1, 2, 3], 2, alternatives=[10**6])]))
    assert isinstance(found["wrong"], InvalidRequestError)
