"""Anthropic's SDK and a real model."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from tests.e2e.conftest import KEY, RealServer

PARIS: dict[str, Any] = {
    "model": "deepseek-v2.1",
    "max_tokens": 30,
    "system": "You answer in one short sentence.",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"temperature": 0},
}


@pytest.fixture
def sdk(server: RealServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, http_client=httpx2.Client(trust_env=False))


def test_messages(sdk: anthropic.Anthropic) -> None:
    whole = sdk.messages.create(**PARIS)
    (block,) = whole.content
    assert block.type == "text" and "Paris" in block.text and whole.stop_reason == "end_turn"
    with sdk.messages.stream(**PARIS) as stream:
        assert "".join(stream.text_stream) == block.text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    prompt = {name: PARIS[name] for name in ("model", "system", "messages")}
    counted = sdk.messages.count_tokens(**prompt).input_tokens
    usage = whole.usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_prefix_is_continued_and_a_stop_sequence_is_named(sdk: anthropic.Anthropic) -> None:
    turns = [*PARIS["messages"], {"role": "assistant", "content": "The capital of France is"}]
    answer = sdk.messages.create(**PARIS | {"messages": turns, "stop_sequences": ["aris"]})
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "aris")
    assert [block.text for block in answer.content if block.type == "text"] == [" P"]
