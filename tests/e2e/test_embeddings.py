"""Embeddings of real models through the installed command and the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.e2e.conftest import RealServer

NEAR = [
    ("A man is eating food.", "Someone is having a meal."),
    ("How do I reset my password?", "I forgot my password and want a new one."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
]


@pytest.fixture(scope="module")
def sdk(test_model: Path, minilm: Path) -> Iterator[openai.OpenAI]:
    running = RealServer(
        str(test_model), "--embedding-model", "all-minilm-l6-v2", "--offline", "--kv-cache-bytes", "256MiB"
    )
    try:
        http_client = httpx.Client(trust_env=False)
        yield openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", http_client=http_client)
    finally:
        assert running.stop() == 0


def vectors(sdk: openai.OpenAI, model: str) -> np.ndarray:
    """Of the pairs' sentences, one behind the other."""
    answer = sdk.embeddings.create(model=model, input=[text for pair in NEAR for text in pair])
    found = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    return found


def test_sentences_that_mean_the_same_are_near(sdk: openai.OpenAI) -> None:
    found = vectors(sdk, "all-minilm-l6-v2")
    assert found.shape == (6, 384)
    similar = found @ found.T
    for first in range(0, 6, 2):
        others = [i for i in range(6) if i not in (first, first + 1)]
        assert similar[first, first + 1] > 0.5 > 0.3 > similar[first, others].max()


def test_a_chat_model_knows_them_too_if_less_well(sdk: openai.OpenAI) -> None:
    found = vectors(sdk, "deepseek-v2.1")
    assert found.shape == (6, 576)
    similar = found @ found.T
    for first in range(0, 6, 2):
        others = [i for i in range(6) if i not in (first, first + 1)]
        assert similar[first, first + 1] > similar[first, others].mean() + 0.05


def test_vectors_do_not_depend_on_the_company(sdk: openai.OpenAI) -> None:
    for model in ("all-minilm-l6-v2", "deepseek-v2.1"):
        texts = [f"{'A longer story. ' * (i % 9)}{NEAR[0][0]}" for i in range(40)]
        together = sdk.embeddings.create(model=model, input=texts)
        alone = sdk.embeddings.create(model=model, input=texts[13])
        np.testing.assert_allclose(together.data[13].embedding, alone.data[0].embedding, atol=1e-4)


def test_an_encoder_does_not_chat(sdk: openai.OpenAI) -> None:
    assert {"deepseek-v2.1", "all-minilm-l6-v2"} == {model.id for model in sdk.models.list()}
    with pytest.raises(openai.BadRequestError) as error:
        sdk.chat.completions.create(model="all-minilm-l6-v2", messages=[{"role": "user", "content": "Hi"}])
    assert error.value.code == "model_not_supported"
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.embeddings.create(model="all-minilm-l6-v2", input="word " * 300)
    assert too_long.value.code == "context_length_exceeded"
