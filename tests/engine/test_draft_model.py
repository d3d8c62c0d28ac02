"""A small model that guesses for a large one."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import tokenizers
import torch

from deepseek.config import EngineConfig
from deepseek.engine.draft_model import DraftModel, vocabulary_difference
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineEvent, GenerateRequest
from deepseek.engine.speculation import Speculation
from deepseek.errors import ConfigurationError
from deepseek.llm import LLM
from deepseek.sampling import SamplingParams
from deepseek.tokenizer.tokenizer import Tokenizer, TokenizerParts
from deepseek.tokenizer.vocabulary import Vocabulary
from tests.engine.test_speculation import OPTIONS, VOCAB, by_request, feed, prompt_of
from tests.fakes import FakeModel, Script, counting, greedy, hashing, make_engine, run, tokens_of


def noisy(vocab_size: int, noise: float) -> Script:
    """Nearly what :func:`hashing` gives."""
    script = hashing(VOCAB)

    def approximate(context: Seq[int]) -> torch.Tensor:
        other = torch.randn(VOCAB, generator=torch.Generator().manual_seed(sum(context)))
        logits = script(context) + noise * other
        if vocab_size <= VOCAB:
            return logits[:vocab_size]
        return torch.cat([logits, torch.full((vocab_size - VOCAB,), 9.0)])

    return approximate


def drafting(
    draft: FakeModel, large: FakeModel, *, draft_pages: int = 64, max_rows: int = 64, **settings: object
) -> Engine:
    drafter = DraftModel(draft, num_pages=draft_pages, page_size=4, max_rows=max_rows, vocab_size=VOCAB, cost=0.0)
    speculation = Speculation(drafter, row_cost=0.0, max_draft=4)
    return make_engine(large, max_batch_tokens=64, speculation=speculation, **settings)


def requests_with(options: dict[str, object]) -> list[GenerateRequest]:
    params = [SamplingParams(max_tokens=5 + 7 * i % 29, **options) for i in range(8)]  # type: ignore[arg-type]
    return [GenerateRequest(str(i), prompt_of(3 + 5 * i % 30, i), own) for i, own in enumerate(params)]


def plain(requests: Seq[GenerateRequest]) -> list[EngineEvent]:
    return feed(make_engine(FakeModel(hashing(VOCAB)), max_batch_tokens=64), requests)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_pages", [64, 16])
def test_equal_models_agree_always(options: dict[str, object], num_pages: int) -> None:
    """Also when tokens are drawn: both draw with the same number."""
    requests = requests_with(options)
    engine = drafting(FakeModel(hashing(VOCAB)), FakeModel(hashing(VOCAB)), num_pages=num_pages)
    assert by_request(feed(engine, requests)) == by_request(plain(requests))
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens > 0
    assert (stats.preemptions > 0) == (num_pages == 16)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("draft_vocab", [VOCAB - 4, VOCAB, VOCAB + 4])
def test_unlike_models_give_the_large_ones_answer(options: dict[str, object], draft_vocab: int) -> None:
    requests = requests_with(options)
    draft = FakeModel(noisy(draft_vocab, 0.5), vocab_size=draft_vocab)
    engine = drafting(draft, FakeModel(hashing(VOCAB)))
    assert by_request(feed(engine, requests)) == by_request(plain(requests))
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.parametrize("pause", [1, 3])
def test_the_draft_models_cache_follows_the_answer(pause: int) -> None:
    """What the draft model reads of a sequence is always what the sequence became, also when it was not asked for some
    steps (``pause``) in which its last draft turned out wrong."""
    draft = FakeModel(noisy(VOCAB, 0.5))
    engine = drafting(draft, FakeModel(hashing(VOCAB)))
    speculation = engine._speculation
    assert speculation is not None
    tokens = prompt_of(9)
    engine.add(greedy("a", tokens, max_tokens=60))
    contexts: list[list[int]] = []
    script = draft.script

    def recorded(context: Seq[int]) -> torch.Tensor:
        contexts.append(list(context))
        return script(context)

    draft.script = recorded
    while engine.has_work:
        speculation.max_draft = 0 if engine.stats().steps % pause else 4
        contexts.clear()
        known = list(tokens)
        tokens += tokens_of(engine.step(), "a")
        assert all(context[: len(known)] == known[: len(context)] for context in contexts)
    stats = engine.stats()
    assert len(tokens) == 69
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    # Each token is computed once, but for the wrong guesses.
    assert draft.rows_computed <= 69 + stats.drafted_tokens - stats.accepted_tokens


@pytest.mark.parametrize("max_rows", [1, 5, 30])
def test_long_prompts_are_caught_up_with_in_chunks(max_rows: int) -> None:
    draft = FakeModel(counting(VOCAB))
    engine = drafting(draft, FakeModel(counting(VOCAB)), max_rows=max_rows)
    engine.add(greedy("a", [5] * 25, max_tokens=60))
    assert tokens_of(run(engine), "a") == [t % VOCAB for t in range(6, 66)]
    assert max(rows for _, sizes in draft.forwards for rows in sizes) <= max_rows
    # One row a step never catches up.
    assert (engine.stats().drafted_tokens > 0) == (max_rows > 1)


def test_without_room_there_are_no_drafts_until_pages_come_free() -> None:
    engine = drafting(FakeModel(counting(VOCAB)), FakeModel(counting(VOCAB)), draft_pages=6)
    engine.add(greedy("large", [5] * 30, max_tokens=20))
    assert tokens_of(run(engine), "large") == list(range(6, 26))
    assert engine.stats().drafted_tokens == 0
    for i in range(3):
        engine.add(greedy(f"small {i}", [5], max_tokens=20))
        assert tokens_of(run(engine), f"small {i}") == list(range(6, 26))
    assert engine.stats().drafted_tokens > 30


def test_drafts_end_with_the_draft_models_context() -> None:
    draft = FakeModel(counting(VOCAB), max_context=20)
    engine = drafting(draft, FakeModel(counting(VOCAB)))
    engine.add(greedy("a", [5] * 10, max_tokens=40))
    assert tokens_of(run(engine), "a") == list(range(6, 46))
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < 11
    assert draft.rows_computed <= 20


def tokenizer_of(pieces: Seq[str]) -> Tokenizer:
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE())
    vocabulary = Vocabulary(
        size=len(pieces), piece=lambda token_id: pieces[token_id], byte_level=False, special=frozenset()
    )
    return Tokenizer(TokenizerParts(first=encoder, later=encoder, vocabulary=vocabulary, special=()))


def test_vocabularies_are_compared_id_by_id() -> None:
    large = tokenizer_of(["a", "b", "c"])
    assert vocabulary_difference(large, tokenizer_of(["a", "b", "c"])) is None
    assert vocabulary_difference(large, tokenizer_of(["a", "b", "c", ""])) is None
    assert vocabulary_difference(large, tokenizer_of(["a", "x", "y"])) == (
        "token 1 is b'b' in the model and b'x' in the draft model"
    )
    assert "token 3" in (vocabulary_difference(large, tokenizer_of(["a", "b", "c", "d"])) or "")


def test_another_vocabulary_is_refused_by_name(test_model: Path, tmp_path: Path) -> None:
    """A real file with two words of its vocabulary exchanged."""
    data = bytearray(test_model.read_bytes())
    first, second = (len(word).to_bytes(8, "little") + word for word in (b"Hello", b"World"))
    a, b = data.find(first), data.find(second)
    assert a > 0 and b > 0
    data[a + 8 : a + 13], data[b + 8 : b + 13] = b"World", b"Hello"
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"cannot draft for .*token \d+ is b'\w+' in the model and b'\w+'"):
        LLM(str(test_model), dtype="fp32", draft_model=str(other), max_context=256, kv_cache_bytes=2**26)


def test_a_real_model_drafts_for_itself(test_model: Path) -> None:
    settings: dict[str, object] = {"dtype": "fp32", "max_context": 256, "kv_cache_bytes": 2**26, "seed": 1}
    prompt = "The three largest cities of France are"
    params = [SamplingParams(temperature=t, max_tokens=24) for t in (0.0, 0.8)]
    alone = LLM(str(test_model), speculation="off", **settings)  # type: ignore[arg-type]
    expected = [g.text for g in alone.generate([prompt, prompt], params)]
    del alone
    llm = LLM(str(test_model), draft_model=str(test_model), **settings)  # type: ignore[arg-type]
    speculation = llm._engine._speculation
    assert speculation is not None
    assert speculation.drafter.cost == 1.0
    speculation.drafter.cost = 0.0  # or no draft would pay
    assert [g.text for g in llm.generate([prompt, prompt], params)] == expected
    stats = llm.stats()
    assert stats.accepted_tokens > 0.9 * stats.drafted_tokens > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speculation": "always"}, "one of off, auto, lookup, draft"),
        ({"speculation": "draft"}, "needs a draft_model"),
        ({"speculation": "lookup", "draft_model": "small"}, "not used"),
        ({"speculation": "off", "draft_model": "small"}, "not used"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EngineConfig(**settings)  # type: ignore[arg-type]
