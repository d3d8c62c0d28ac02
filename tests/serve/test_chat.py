from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, chat_body, events_of

PATH = "/v1/chat/completions"


def stream(http: httpx.Client, path: str = PATH, **fields: Any) -> list[dict[str, Any]]:
    response = http.post(path, json=chat_body(stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events_of(response)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_whole_answer(http: httpx.Client) -> None:
    response = http.post(PATH, json=chat_body())
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    answer = response.json()
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["index"] == 0 and choice["logprobs"] is None
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len("<user>hi</><assistant>")
    assert usage["completion_tokens"] == len(ANSWER.encode()) + 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_stream_is_the_whole_answer_in_pieces(http: httpx.Client) -> None:
    chunks = stream(http, stream_options={"include_usage": True})
    *texts, finish, usage = chunks
    assert texts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"]["content"] for c in texts) == ANSWER
    assert all(c["choices"][0]["finish_reason"] is None and c["usage"] is None for c in texts)
    assert finish["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


def test_no_usage_unless_asked(http: httpx.Client) -> None:
    assert all("usage" not in chunk for chunk in stream(http))


@pytest.mark.parametrize("streamed", [False, True])
def test_choices_have_seeds_of_their_own(http: httpx.Client, streamed: bool) -> None:
    fields: dict[str, Any] = {"n": 3, "seed": 41}
    if streamed:
        texts = ["", "", ""]
        finished = []
        for chunk in stream(http, messages=[{"role": "user", "content": "[seed]"}], **fields):
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            finished += [choice["index"]] if choice["finish_reason"] else []
        assert sorted(finished) == [0, 1, 2]
    else:
        answer = http.post(PATH, json=chat_body("[seed]", **fields)).json()
        assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
        texts = [c["message"]["content"] for c in answer["choices"]]
        assert answer["usage"]["prompt_tokens"] == len("<user>[seed]</><assistant>")
    assert texts == ["41", "42", "43"]


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_string_ends_text_and_engine_request(http: httpx.Client, streamed: bool) -> None:
    fields: dict[str, Any] = {"stop": [" Quantum"], "max_tokens": 1000, "ignore_eos": True}
    if streamed:
        chunks = stream(http, **fields)
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = http.post(PATH, json=chat_body(**fields)).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("Hello, 世界!", "stop")


def test_max_tokens(http: httpx.Client) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = http.post(PATH, json=chat_body(**{name: 5})).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


def test_default_length_is_the_rest_of_the_context(http: httpx.Client) -> None:
    usage = http.post(PATH, json=chat_body("[long]")).json()["usage"]
    assert usage["total_tokens"] == 2048


def test_logprobs(http: httpx.Client) -> None:
    choice = http.post(PATH, json=chat_body(logprobs=True, top_logprobs=2, max_tokens=8)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 8 and choice["logprobs"]["refusal"] is None
    assert content[0] == {
        "token": "H",
        "logprob": -0.25,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.25, "bytes": [72]},
            {"token": "z", "logprob": -2.0, "bytes": [122]},
        ],
    }
    assert content[7]["bytes"] == [0xE4]
    chunks = stream(http, logprobs=True, max_tokens=8)
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [e["bytes"] for e in streamed] == [e["bytes"] for e in content]


def test_chat_prefix_completion(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The", "prefix": True}]
    usage = http.post(PATH, json={"model": MODEL, "messages": messages}).json()["usage"]
    assert usage["prompt_tokens"] == len("<user>q</><assistant>The")
    messages[1].pop("prefix")
    other = http.post(PATH, json={"model": MODEL, "messages": messages, "continue_final_message": True}).json()
    assert other["usage"]["prompt_tokens"] == usage["prompt_tokens"]


def test_text_parts_and_developer_role(http: httpx.Client) -> None:
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    usage = http.post(PATH, json={"model": MODEL, "messages": messages}).json()["usage"]
    assert usage["prompt_tokens"] == len("<system>d</><user>a\nb</><assistant>")


def test_cached_tokens_and_their_salt(http: httpx.Client) -> None:
    def cached(**fields: Any) -> tuple[int, int, int]:
        usage = http.post(PATH, json=chat_body("cache " * 30, **fields)).json()["usage"]
        return (
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["prompt_cache_hit_tokens"],
            usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] - usage["prompt_tokens"],
        )

    assert cached(user_id="one") == (0, 0, 0)
    assert cached(user_id="one") == (192, 192, 0)
    assert cached(user_id="two") == (0, 0, 0), "users must not learn of each other's prompts through the cache"


def test_harmless_fields_are_accepted(http: httpx.Client) -> None:
    harmless = {
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {"50": -100},
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop": None,
        "temperature": 0,
    }
    assert http.post(PATH, json=chat_body(**harmless)).status_code == 200


def test_deepseek_paths_without_version(http: httpx.Client) -> None:
    assert http.post("/chat/completions", json=chat_body()).status_code == 200
    assert http.get("/models").json() == http.get("/v1/models").json()


def test_one_failing_request_fails_alone(http: httpx.Client) -> None:
    response = http.post(PATH, json=chat_body("[nan]"))
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the logits were not finite",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    response = http.post(PATH, json=chat_body("[nan]", stream=True))
    *_, last = events_of(response)
    assert json.loads(last)["error"]["message"] == "the logits were not finite"
    assert http.post(PATH, json=chat_body()).status_code == 200
