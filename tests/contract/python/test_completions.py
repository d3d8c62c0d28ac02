"""``completions``."""

from __future__ import annotations

import openai

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL


def test_prompts_and_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=100, logprobs=1)
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.tokens is not None
    assert answer.choices[0].logprobs.tokens[0] == "H"


def test_a_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.completions.create(
        model=MODEL, prompt="a", max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].choices == [] and chunks[-1].usage is not None


def test_a_hole(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=MODEL, prompt="a", suffix="c", max_tokens=100, echo=True)
    assert answer.choices[0].text == "a" + ANSWER.partition("Q")[0]
    assert answer.choices[0].finish_reason == "stop"
