"""The offline API on a real model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deepseek import LLM, SamplingParams
from deepseek.errors import ConfigurationError, ContextLengthError, InvalidRequestError

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm(test_model: Path) -> LLM:
    return LLM(str(test_model), dtype="fp32", kv_cache_bytes=2**29, max_context=2048)


def test_chat_answers(llm: LLM) -> None:
    (generation,) = llm.chat(PARIS, GREEDY)
    assert "Paris" in generation.text
    (choice,) = generation.choices
    assert choice.finish_reason == "stop"
    assert llm.tokenizer.decode(choice.token_ids) == generation.text
    assert generation.prompt_tokens == len(llm.tokenizer.encode_chat(PARIS))


def test_many_prompts_in_one_call_equal_one_by_one(llm: LLM) -> None:
    prompts = ["The sky is", "Once upon a time", "def fibonacci(n):", "1 2 3 4 5", "The " * 100]
    together = [g.choices[0].token_ids for g in llm.generate(prompts, GREEDY)]
    assert together == [llm.generate(prompt, GREEDY)[0].choices[0].token_ids for prompt in prompts]
    assert together == [llm.generate([llm.tokenizer.encode(p)], GREEDY)[0].choices[0].token_ids for p in prompts]


def test_a_seed_gives_the_same_answer_whatever_else_runs(llm: LLM) -> None:
    params = SamplingParams(seed=11, max_tokens=24)
    (alone,) = llm.generate("The meaning of life is", params)
    crowd = llm.generate(["Hello", "The meaning of life is", "A", "B " * 70], params)
    assert crowd[1].text == alone.text
    (other,) = llm.generate("The meaning of life is", SamplingParams(seed=12, max_tokens=24))
    assert other.text != alone.text


def test_n_answers_differ(llm: LLM) -> None:
    prompt = "Write a story. " * 20
    (generation,) = llm.generate(prompt, SamplingParams(n=3, seed=1, max_tokens=16))
    assert len({choice.text for choice in generation.choices}) == 3
    (second,) = llm.generate(prompt, SamplingParams(seed=2, max_tokens=16))
    assert second.text == generation.choices[1].text


def test_n_answers_share_the_prompt(llm: LLM) -> None:
    before = llm.stats().cached_prompt_tokens
    llm.generate("Write a poem. " * 20, SamplingParams(n=3, max_tokens=4))
    assert llm.stats().cached_prompt_tokens - before >= 2 * 64


def test_stop_strings_cut_the_text(llm: LLM) -> None:
    (whole,) = llm.generate("Count: one, two, three,", GREEDY)
    stop = whole.text[5:9]
    (cut,) = llm.generate("Count: one, two, three,", SamplingParams(temperature=0.0, max_tokens=24, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert llm.stats().running == 0


def test_stream_is_the_same_text(llm: LLM) -> None:
    pieces = list(llm.stream_chat(PARIS, GREEDY))
    assert "".join(piece.text for piece in pieces) == llm.chat(PARIS, GREEDY)[0].text
    assert len(pieces) > 3
    assert pieces[-1].finish_reason == "stop"


def test_leaving_a_stream_frees_its_pages(llm: LLM) -> None:
    free = llm.stats().pages_free
    stream = llm.stream_chat([{"role": "user", "content": "Tell me a long story."}], SamplingParams(max_tokens=500))
    next(stream)
    assert llm.stats().running == 1
    stream.close()
    assert llm.stats().running == 0
    assert llm.stats().pages_free == free


def test_score_is_the_sum_of_logprobs(llm: LLM) -> None:
    contexts = ["The capital of France is", "The capital of France is", ""]
    scores = llm.score(contexts, [" Paris", " a banana", "Hello world"])
    assert scores[0].total > scores[1].total
    prompt = llm.tokenizer.encode("The capital of France is")
    (generation,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1, logprobs=20))
    top = {entry.token_id: entry.logprob for entry in generation.choices[0].logprobs[0].top}
    assert scores[0].logprobs[0] == pytest.approx(top[scores[0].token_ids[0]], abs=1e-3)
    assert scores[0].greedy[0] == (scores[0].token_ids[0] == generation.choices[0].token_ids[0])
    assert len(scores[2].logprobs) == len(scores[2].token_ids)
    (answer,) = llm.generate([prompt], GREEDY)
    (own,) = llm.score([prompt], [answer.choices[0].token_ids[:6]])
    assert own.is_greedy
    assert not scores[1].is_greedy


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


SENTENCES = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply today."]


def test_embeddings_of_a_model_that_answers(llm: LLM) -> None:
    vectors = llm.embed(SENTENCES)
    assert [len(vector) for vector in vectors] == [576] * 3
    assert all(cosine(vector, vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors)
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2])
    (alone,) = llm.embed(llm.tokenizer.encode(SENTENCES[1]))
    assert alone.tolist() == pytest.approx(vectors[1].tolist(), abs=1e-4)
    with pytest.raises(InvalidRequestError, match="cannot be shortened"):
        llm.embed("a", dimensions=64)
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.embed(["fine", ""])
    assert (llm.stats().running, llm.stats().waiting) == (0, 0)


def test_an_encoder_embeds_and_does_not_answer(minilm: Path) -> None:
    encoder = LLM(str(minilm))
    vectors = encoder.embed(SENTENCES)
    assert cosine(vectors[0], vectors[1]) > 0.5 > 0.2 > cosine(vectors[0], vectors[2])
    with pytest.raises(InvalidRequestError, match="cannot generate"):
        encoder.generate("Hello", GREEDY)
    with pytest.raises(ContextLengthError, match="256"):
        encoder.embed("word " * 300)
    assert encoder.stats().waiting == 0


def test_refused_requests_leave_nothing_behind(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="2048"):
        llm.generate(["fine", "x " * 3000], GREEDY)
    with pytest.raises(InvalidRequestError, match="2 prompts and 1 sampling params"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(InvalidRequestError, match="one continuation per context"):
        llm.score(["a"], [])
    with pytest.raises(InvalidRequestError, match="continuation"):
        llm.score(["a"], [""])
    assert (llm.stats().running, llm.stats().waiting) == (0, 0)
    assert "Paris" in llm.chat(PARIS, GREEDY)[0].text


def test_a_context_that_is_too_short_says_why(llm: LLM, test_model: Path) -> None:
    with pytest.raises(ContextLengthError, match=r"holds 2048 .* the engine's max_context"):
        llm.generate("x " * 3000, GREEDY)
    small = LLM(str(test_model), dtype="fp32", kv_cache_bytes=2**25, max_context=2048)
    assert small.info.context_limit == "kv_cache" and small.info.max_context < 2048
    with pytest.raises(ContextLengthError, match=rf"holds {small.info.max_context} .* memory for keys and values"):
        small.generate("x " * 1500, GREEDY)


def test_attention_of_a_call(test_model: Path, llm: LLM) -> None:
    """An error of 0 is dense to the bit; a dense model refuses ``sparse``."""
    native = LLM(str(test_model), kv_cache_bytes=2**28, max_context=2048)
    prompt = "The history of bread, and of those who bake it. " * 150
    params = SamplingParams(seed=1, max_tokens=4, logprobs=0)

    def logprobs(**options: Any) -> list[float]:
        (generation,) = native.generate(prompt, params, **options)
        return [entry.logprob for entry in generation.choices[0].logprobs]

    dense = logprobs(attention="dense")
    assert native.stats().attention.prompt_pages == 0
    assert logprobs(attention="sparse", attention_error=0.0) == logprobs() == dense
    logprobs(attention="sparse", attention_error=0.1)
    assert native.stats().attention.outputs > 0
    with pytest.raises(InvalidRequestError, match="attention_error"):
        native.chat(PARIS, GREEDY, attention_error=0.6)
    with pytest.raises(InvalidRequestError, match="attends densely"):
        next(llm.stream_chat(PARIS, GREEDY, attention="sparse"))
    with pytest.raises(InvalidRequestError, match="attends densely"):
        llm.score(["a"], ["b"], attention="sparse")


def test_a_context_beyond_the_trained_one(test_model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"8192 tokens that .* rope_scaling yarn"):
        LLM(str(test_model), max_context=10_000)
    stretched = LLM(str(test_model), max_context=16_384, rope_scaling="yarn", kv_cache_bytes=2**29)
    assert stretched.info.max_context == 16_384
    assert stretched.chat(PARIS, GREEDY)[0].choices[0].token_ids  # how good an answer is not promised


def test_settings_that_cannot_work(test_model: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_context"):
        LLM(str(test_model), max_context=100_000)
    with pytest.raises(ConfigurationError, match="KV cache"):
        LLM(str(test_model), kv_cache_bytes=1000)
    with pytest.raises(ConfigurationError, match="no kernels for device 'abacus'"):
        LLM(str(test_model), device="abacus")
    with pytest.raises(ConfigurationError, match="unknown backend 'nosuch'"):
        LLM(str(test_model), backend="nosuch")
    with pytest.raises(ConfigurationError, match="dtype"):
        LLM(str(test_model), dtype="int3")


@pytest.mark.parametrize(("dtype", "context", "tokens"), [("fp32", 256, 60), ("bf16", 512, 120)])
def test_seeds_hold_to_the_last_bit(test_model: Path, dtype: str, context: int, tokens: int) -> None:
    """With a crowd around, with a warm prefix cache, and after preemptions."""
    llm = LLM(str(test_model), dtype=dtype, kv_cache_bytes=2**25, max_context=context)
    prompt = "Tell me something about " + "the history and the future of " * 12 + "bread."
    params = SamplingParams(seed=7, max_tokens=40, ignore_eos=True, logprobs=0)
    (alone,) = llm.generate(prompt, params)
    free = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = [*(f"{i} {prompt}" for i in range(9)), prompt, prompt]
    crowd = llm.generate(prompts, [*[free] * 9, params, params])
    assert llm.stats().preemptions > 0
    for other in crowd[-2:]:
        assert other.choices[0].token_ids == alone.choices[0].token_ids
        assert [e.logprob for e in other.choices[0].logprobs] == [e.logprob for e in alone.choices[0].logprobs]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_agrees_with_fp32(llm: LLM, test_model: Path, dtype: str) -> None:
    half = LLM(str(test_model), dtype=dtype, kv_cache_bytes=2**28, max_context=512)
    contexts = ["The capital of France is", "Water boils at a temperature of", "Once upon a time, there"]
    answers = [
        " Paris, a city on the river Seine.",
        " 100 degrees Celsius.",
        " was a little girl who lived in a village.",
    ]
    for ours, exact in zip(half.score(contexts, answers), llm.score(contexts, answers), strict=True):
        assert ours.total == pytest.approx(exact.total, rel=0.03)
    assert half.info.weights_bytes < 300e6
