"""Bad input: each gets one clear error with all four keys, and the server goes on serving."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serve.conftest import MODEL, chat_body, running_server

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


RAW_BODIES: list[tuple[bytes, str]] = [
    (b"", "parse the JSON"),
    (b"{", "parse the JSON"),
    (b"hello", "parse the JSON"),
    (b'{"model": "\xff\xfe"}', "parse the JSON"),
    (b'{"model": "\\ud800"}', "parse the JSON"),
    (b"[1]", "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b'"text"', "must be a JSON object"),
    (b"[" * 100_000, "parse the JSON"),
    (b'{"a":' * 100_000, "parse the JSON"),
]


@pytest.mark.parametrize(("body", "message"), RAW_BODIES, ids=range(len(RAW_BODIES)))
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_bodies_that_are_no_request(http: httpx.Client, path: str, body: bytes, message: str) -> None:
    error = error_of(http.post(path, content=body, headers={"content-type": "application/json"}))
    assert message in error["message"] and error["type"] == "invalid_request_error"


def messages(*items: Any) -> dict[str, Any]:
    return {"messages": list(items)}


USER = {"role": "user", "content": "x"}
CHAT_FIELDS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"foo": 1}, "foo", "Unrecognized request argument supplied: foo"),
    (messages({**USER, "str": 1}), "messages[0]", "Unrecognized"),
    (messages({**USER, "color": 1}), "messages[0].color", "Unrecognized"),
    ({"messages": None}, "messages", "valid"),
    ({"messages": []}, "messages", "at least 1"),
    (messages("hi"), "messages[0]", "Invalid"),
    (messages({"role": "king", "content": "x"}), "messages[0].role", "'system'"),
    (messages({"role": "user"}), "messages[0].content", "must have content"),
    (messages({"role": "user", "content": 5}), "messages[0].content", "Invalid"),
    (messages({"role": "user", "content": [{"text": "x"}]}), "messages[0].content[0]", "type"),
    (messages({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text", "string"),
    (messages({"role": "user", "content": [{"type": "image_url"}]}), "messages[0].content[0]: image_url", "not supp"),
    (messages({"role": "tool", "content": "x"}), "messages[0].tool_call_id", "must name the call"),
    (messages({**USER, "prefix": True}), "messages[0].prefix", "assistant"),
    ({"continue_final_message": True}, "messages", "assistant"),
    ({"temperature": "0.7"}, "temperature", "number"),
    ({"temperature": 3}, "temperature", "[0, 2]"),
    ({"temperature": -1}, "temperature", "[0, 2]"),
    ({"top_p": 0}, "top_p", "(0, 1]"),
    ({"n": 0}, "n", "[1, 128]"),
    ({"n": 10**9}, "n", "[1, 128]"),
    ({"n": 1.5}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"max_tokens": 0}, "max_tokens", "[1, "),
    ({"max_tokens": -5}, "max_tokens", "[1, "),
    ({"max_tokens": 10**30}, "max_tokens", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differs"),
    ({"stop": [""]}, "stop", "1 to 1024"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": [5]}, "stop[0]", "string"),
    ({"seed": 2**70}, "seed", "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "259"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "[-100, 100]"),
    ({"logit_bias": {str(i): 0 for i in range(250)} | {"-1": 0}}, "logit_bias", "token ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "0 to 259"),
    ({"stop_token_ids": [2**80]}, "stop_token_ids", "stop_token_ids"),
    ({"top_k": 2**80}, "top_k", "top_k"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs", "[0, 20]"),
    ({"presence_penalty": 5}, "presence_penalty", "[-2, 2]"),
    ({"attention": "quick"}, "attention", "'auto', 'dense' or 'sparse'"),
    ({"attention_error": -0.1}, "attention_error", "greater than or equal to 0"),
    ({"attention_error": 0.51}, "attention_error", "less than or equal to 0.5"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unrecognized"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing required parameter"),
    ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools' are given"),
    ({"modalities": ["audio"]}, "modalities", "not supported yet"),
    ({"prediction": {"type": "content"}}, "prediction", "not supported yet"),
    ({"audio": {}}, "audio", "not supported yet"),
    (messages({"role": "user", "content": "[template]"}), "messages", "template refuses"),
    (messages({"role": "user", "content": "x" * 3000}), "messages", "maximum context length is 2048"),
    (messages({"role": "user", "content": "x" * 3000}), "messages", "The limit is what the model was made for"),
    ({"max_tokens": 2048}, "messages", "2048 for the answer"),
]


@pytest.mark.parametrize(("fields", "param", "message"), CHAT_FIELDS, ids=range(len(CHAT_FIELDS)))
def test_chat_fields(http: httpx.Client, fields: dict[str, Any], param: str | None, message: str) -> None:
    error = error_of(http.post(CHAT, json=chat_body() | fields))
    assert message in error["message"], error
    assert error["param"] == param and error["type"] == "invalid_request_error"


TEXT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": [5000]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": "x" * 2040}, "prompt"),
    ({"suffix": 1}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "logprobs"),
    ({"prompt": ["a"] * 300}, "n"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), TEXT_FIELDS, ids=range(len(TEXT_FIELDS)))
def test_completion_fields(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert error_of(http.post(TEXT, json={"model": MODEL, "prompt": "a"} | fields))["param"] == param


def test_missing_fields(http: httpx.Client) -> None:
    error = error_of(http.post(CHAT, json={"model": MODEL}))
    assert (error["message"], error["param"]) == ("Missing required parameter: 'messages'.", "messages")
    assert error_of(http.post(CHAT, json={"messages": [USER]}))["param"] == "model"


def test_lone_surrogate_in_a_message(http: httpx.Client) -> None:
    body = json.dumps(chat_body("\ud800"))
    assert "JSON" in error_of(http.post(CHAT, content=body))["message"]


def test_nan_and_infinity(http: httpx.Client) -> None:
    for value in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = json.dumps(chat_body(temperature=123456)).replace("123456", value)
        assert error_of(http.post(CHAT, content=body))["param"] == "temperature", value


def test_context_error_has_its_code(http: httpx.Client) -> None:
    assert error_of(http.post(CHAT, json=chat_body("x" * 3000)))["code"] == "context_length_exceeded"


def test_unknown_model(http: httpx.Client) -> None:
    error = error_of(http.post(CHAT, json=chat_body() | {"model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found" and "gpt-9" in error["message"] and MODEL in error["message"]
    assert error_of(http.get("/v1/models/gpt-9"), 404)["code"] == "model_not_found"
    assert http.post(CHAT, json=chat_body() | {"model": "tiny-fake-1b"}).status_code == 200


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert (card["id"], card["root"], card["object"]) == (MODEL, "tiny-fake-1b", "model")
    assert card["max_model_len"] == 2048
    assert http.get(f"/v1/models/{MODEL}").json() == card


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health/live", 405),
        ("GET", "/v1/chat/completions/", 404),
    ],
)
def test_routes_that_are_not_there(http: httpx.Client, method: str, path: str, status: int) -> None:
    error = error_of(http.request(method, path), status)
    assert method in error["message"]


def test_body_too_large_declared_and_chunked() -> None:
    with running_server(max_body_bytes=10_000) as server, server.client() as http:
        big = b'{"model": "' + b"x" * 20_000 + b'"}'
        error_of(http.post(CHAT, content=big), 413)
        error_of(http.post(CHAT, content=(big[i : i + 1000] for i in range(0, len(big), 1000))), 413)
        assert http.post(CHAT, json=chat_body()).status_code == 200
