"""Every family against transformers' own implementation of it, on tiny random weights in fp32."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from deepseek.hub.open import open_checkpoint
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.registry import load_model
from tests.parity import tiny
from tests.parity.driver import Driver

TOLERANCE = 1e-4
PAGE = 4


@cache
def pair(name: str) -> tuple[Any, Decoder]:
    theirs = tiny.build(name)
    return theirs, tiny.load(theirs)


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, tiny.VOCAB, (count,), generator=generator).tolist()


def expected(theirs: Any, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return theirs(torch.tensor([prompt]), use_cache=False).logits[0]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", tiny.CASES)
@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 61])
def test_whole_prompt(name: str, length: int) -> None:
    theirs, ours = pair(name)
    prompt = tokens(length, length)
    [logits] = Driver(ours, page_size=PAGE).step([(0, prompt)])
    reference = expected(theirs, prompt)
    assert reference.std() > 0.3  # random weights that say something
    assert_close(logits, reference)


@pytest.mark.parametrize("name", tiny.CASES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_chunks_in_mixed_batches(name: str, shuffle: bool) -> None:
    """Sequences that arrive in chunks of every kind, prefill beside decode, equal one forward of each."""
    theirs, ours = pair(name)
    prompts = [tokens(23, 1), tokens(17, 2), tokens(40, 3)]
    driver = Driver(ours, page_size=PAGE, shuffle=shuffle)
    schedule = [(3, 0, 7), (1, 4, 5), (1, 1, 13), (5, 8, 1), (1, 4, 1), (12, 0, 13)]
    done, seen = [0, 0, 0], [[], [], []]
    for counts in schedule:
        chunks = [(i, prompts[i][done[i] : done[i] + n]) for i, n in enumerate(counts) if n]
        for (i, chunk), logits in zip(chunks, driver.step(chunks), strict=True):
            done[i] += len(chunk)
            seen[i].append(logits)
    assert done == [len(prompt) for prompt in prompts]
    for prompt, logits in zip(prompts, seen, strict=True):
        assert_close(torch.cat(logits), expected(theirs, prompt))


@pytest.mark.parametrize("name", tiny.CASES)
def test_logits_of_chosen_rows(name: str) -> None:
    _, ours = pair(name)
    chunks = [(0, tokens(9, 4)), (1, tokens(5, 5))]
    every = Driver(ours, page_size=PAGE).step(chunks)
    last = Driver(ours, page_size=PAGE).step(chunks, last_only=True)
    for all_rows, last_row in zip(every, last, strict=True):
        assert_close(last_row, all_rows[-1:])


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek-v3"])
def test_no_logits_wanted(name: str) -> None:
    """A chunk in the middle of a prompt asks for none."""
    _, ours = pair(name)
    driver = Driver(ours, page_size=PAGE)
    prompt = tokens(9, 4)
    assert driver.step([(0, prompt[:6])], rows=[])[0].shape == (0, tiny.VOCAB)
    [rest] = driver.step([(0, prompt[6:])])
    [whole] = Driver(ours, page_size=PAGE).step([(0, prompt)])
    assert_close(rest, whole[6:])


@pytest.mark.parametrize("name", tiny.CASES)
def test_greedy_tokens(name: str) -> None:
    """64 tokens, two sequences decoding together over shuffled pages, equal transformers' generate for each."""
    theirs, ours = pair(name)
    prompts = [tokens(PAGE + 1, 6), tokens(11, 7)]
    answers = Driver(ours, page_size=PAGE, shuffle=True).greedy(prompts, 64)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
        assert answer == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [name for name in tiny.CASES if name.startswith("deepseek")])
def test_latent_attention_forms_agree(name: str) -> None:
    theirs, ours = pair(name)
    prompt = tokens(30, 8)
    reference = expected(theirs, prompt)
    for mode in ("expanded", "absorbed"):
        for layer in ours.layers:
            layer.attention.mode = mode
        try:
            driver = Driver(ours, page_size=PAGE, shuffle=True)
            logits = [*driver.step([(0, prompt[:13])]), *(driver.step([(0, [token])])[0] for token in prompt[13:])]
        finally:
            for layer in ours.layers:
                layer.attention.mode = "auto"
        assert_close(torch.cat(logits), reference)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gemma3", "deepseek-v3"])
def test_reference_backend(name: str) -> None:
    theirs, _ = pair(name)
    ours = tiny.load(theirs, backend="reference")
    prompt = tokens(9, 9)
    driver = Driver(ours, page_size=PAGE, shuffle=True)
    logits = torch.cat([*driver.step([(0, prompt[:5])]), *driver.step([(0, prompt[5:])])])
    assert_close(logits, expected(theirs, prompt))


@pytest.mark.parametrize("name", tiny.CASES)
def test_saved_checkpoint(name: str, tmp_path: Any) -> None:
    """What transformers writes to disk loads to the same model."""
    theirs, ours = pair(name)
    theirs.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    saved = load_model(checkpoint, ops=bind("cpu"), dtype=torch.float32, device="cpu")
    prompt = tokens(7, 10)
    [first], [second] = Driver(ours).step([(0, prompt)]), Driver(saved).step([(0, prompt)])
    assert torch.equal(first, second)
    assert saved.weights_bytes == ours.weights_bytes
