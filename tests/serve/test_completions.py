from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, events_of

PATH = "/v1/completions"


def post(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(PATH, json={"model": MODEL, "prompt": "hi"} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_default_is_sixteen_tokens(http: httpx.Client) -> None:
    answer = post(http)
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"
    assert ANSWER.startswith(answer["choices"][0]["text"])


@pytest.mark.parametrize(
    ("prompt", "count", "tokens"),
    [
        ("abc", 1, 4),
        (["abc", "de"], 2, 7),
        ([104, 105], 1, 2),
        ([[104, 105], [106]], 2, 3),
    ],
)
def test_shapes_of_prompts(http: httpx.Client, prompt: Any, count: int, tokens: int) -> None:
    answer = post(http, prompt=prompt, max_tokens=100)
    assert [c["index"] for c in answer["choices"]] == list(range(count))
    assert all(c["text"] == ANSWER for c in answer["choices"])
    assert answer["usage"]["prompt_tokens"] == tokens


def test_prompts_times_choices_in_order(http: httpx.Client) -> None:
    answer = post(http, prompt=["[seed]", "[seed]"], n=2, seed=7)
    assert [c["text"] for c in answer["choices"]] == ["7", "8", "7", "8"]


def test_echo(http: httpx.Client) -> None:
    assert post(http, echo=True, max_tokens=5)["choices"][0]["text"] == "hiHello"
    assert post(http, prompt=[[104], [105]], echo=True, max_tokens=1)["choices"][1]["text"] == "iH"
    response = http.post(PATH, json={"model": MODEL, "prompt": "hi", "echo": True, "max_tokens": 5, "stream": True})
    chunks = [json.loads(e) for e in events_of(response)[:-1]]
    assert "".join(c["choices"][0]["text"] for c in chunks) == "hiHello"


def test_stream(http: httpx.Client) -> None:
    body = {
        "model": MODEL,
        "prompt": ["a", "b"],
        "stream": True,
        "max_tokens": 100,
        "stream_options": {"include_usage": True},
    }
    *events, done = events_of(http.post(PATH, json=body))
    assert done == "[DONE]"
    *chunks, usage = [json.loads(e) for e in events]
    texts = ["", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [ANSWER, ANSWER]
    assert sorted(c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]) == [0, 1]
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens"] == 4


def test_legacy_logprobs(http: httpx.Client) -> None:
    found = post(http, logprobs=2, max_tokens=10)["choices"][0]["logprobs"]
    assert found["tokens"] == [*"Hello, ", "bytes:\\xe4", "bytes:\\xb8", "bytes:\\x96"]
    assert found["token_logprobs"] == [-0.25] * 10
    assert found["top_logprobs"][0] == {"H": -0.25, "z": -2.0}
    assert found["text_offset"][:7] == list(range(7))
    assert all(7 <= offset <= 8 for offset in found["text_offset"][7:])


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("ab", 6), ([97, 98], 6), ("", 4), (["a", "bc"], 11), ([[97], [98]], 10)]
)
def test_a_suffix_makes_a_hole(http: httpx.Client, prompt: Any, tokens: int) -> None:
    """Three tokens around the texts; the answer ends where another file would begin."""
    answer = post(http, prompt=prompt, suffix="c", max_tokens=100)
    assert answer["usage"]["prompt_tokens"] == tokens
    for choice in answer["choices"]:
        assert (choice["text"], choice["finish_reason"]) == (ANSWER.partition("Q")[0], "stop")


def test_an_empty_suffix_asks_for_nothing(http: httpx.Client) -> None:
    answer = post(http, suffix="", max_tokens=100)
    assert answer["choices"][0]["text"] == ANSWER
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_suffix_with_the_other_fields(http: httpx.Client) -> None:
    middle = ANSWER.partition("Q")[0]
    both = post(http, suffix="c", n=2, echo=True, max_tokens=100)
    assert [choice["text"] for choice in both["choices"]] == ["hi" + middle] * 2
    measured = post(http, suffix="c", logprobs=1, max_tokens=5)["choices"][0]
    assert measured["logprobs"]["tokens"] == list("Hello")
    cut = post(http, suffix="c", stop=[","], max_tokens=100)["choices"][0]
    assert cut["text"] == "Hello"
    assert post(http, suffix="c", ignore_eos=True, max_tokens=60)["usage"]["completion_tokens"] == 60
    response = http.post(PATH, json={"model": MODEL, "prompt": "hi", "suffix": "c", "stream": True, "max_tokens": 100})
    chunks = [json.loads(event) for event in events_of(response)[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == middle
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
