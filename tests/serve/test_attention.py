"""``attention`` and ``attention_error`` on every endpoint that generates, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deepseek.config import EngineConfig
from deepseek_serve.app import ROUTERS
from deepseek_serve.reference.document import document
from tests.serve.conftest import MODEL, Server, chat_body, running_server

CHAT = "/v1/chat/completions"
# path -> (body with the prompt, the answer's text)
ENDPOINTS: dict[str, tuple[Callable[[str], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    CHAT: (chat_body, lambda answer: answer["choices"][0]["message"]["content"]),
    "/v1/completions": (
        lambda text: {"model": MODEL, "prompt": text, "max_tokens": 30},
        lambda answer: answer["choices"][0]["text"],
    ),
    "/v1/responses": (
        lambda text: {"model": MODEL, "input": text, "store": False},
        lambda answer: answer["output"][0]["content"][0]["text"],
    ),
    "/v1/messages": (
        lambda text: {"model": MODEL, "max_tokens": 30, "messages": [{"role": "user", "content": text}]},
        lambda answer: answer["content"][0]["text"],
    ),
}


@pytest.fixture(scope="module")
def dense() -> Iterator[Server]:
    with running_server(engine=EngineConfig(attention="dense")) as running:
        yield running


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("fields,told", [
    ({}, "None None"),
    ({"attention": "sparse", "attention_error": 0.1}, "sparse 0.1"),
    ({"attention": "dense"}, "dense None"),
    ({"attention": "auto", "attention_error": 0}, "auto 0.0"),
    ({"attention_error": 0.5}, "None 0.5"),
])  # fmt: skip
def test_the_engine_is_told(http: httpx.Client, path: str, fields: dict[str, Any], told: str) -> None:
    body, text = ENDPOINTS[path]
    response = http.post(path, json=body("[reading]") | fields)
    assert response.status_code == 200, response.text
    assert text(response.json()) == told


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("fields,param", [
    ({"attention": "quick"}, "attention"),
    ({"attention": 1}, "attention"),
    ({"attention_error": "small"}, "attention_error"),
    ({"attention_error": -0.001}, "attention_error"),
    ({"attention_error": 0.501}, "attention_error"),
])  # fmt: skip
def test_senseless_wishes(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    response = http.post(path, json=ENDPOINTS[path][0]("hi") | fields)
    assert response.status_code == 400
    assert param in response.json()["error"]["message"]
    if path != "/v1/messages":  # Anthropic's errors name no field
        assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_dense_engine_refuses_sparse_only(dense: Server, path: str) -> None:
    body, text = ENDPOINTS[path]
    with dense.client() as client:
        response = client.post(path, json=body("hi") | {"attention": "sparse"})
        assert response.status_code == 400
        assert "this engine attends densely" in response.json()["error"]["message"]
        for fields in ({"attention": "auto"}, {"attention": "sparse", "attention_error": 0}):
            response = client.post(path, json=body("[reading]") | fields)
            assert response.status_code == 200, response.text
            assert text(response.json()).startswith(fields["attention"])


def test_the_reference_describes_them() -> None:
    schemas = document((router, bool(key)) for router, key in ROUTERS)["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "ResponseRequest", "MessagesRequest"):
        properties = schemas[name]["properties"]
        assert {"enum": ["auto", "dense", "sparse"], "type": "string"} in properties["attention"]["anyOf"]
        assert "sparse" in properties["attention"]["description"]
        assert {"maximum": 0.5, "minimum": 0, "type": "number"} in properties["attention_error"]["anyOf"]
        assert "relative error" in properties["attention_error"]["description"]


def test_metrics_show_what_was_read(server: Server, http: httpx.Client) -> None:
    before = server.metric("deepseek_engine_sparse_outputs_total")
    body = chat_body("hi", attention="sparse")
    rows = http.post(CHAT, json=body).json()["usage"]["prompt_tokens"]
    server.wait_metric("deepseek_engine_sparse_outputs_total", before + rows)
    server.wait_metric("deepseek_engine_sparse_estimated_error_total", 0.5 * (before + rows))
    assert server.metric("deepseek_engine_sparse_violations_total") == 0


@pytest.mark.parametrize("limit,words", [
    ("model", "what the model was made for"),
    ("max_context", "the engine's max_context"),
    ("kv_cache", "the memory for keys and values"),
])  # fmt: skip
def test_a_prompt_that_does_not_fit_is_told_why(limit: str, words: str) -> None:
    with running_server(environment={"DEEPSEEK_FAKE_LIMIT": limit}) as running, running.client() as client:
        for path, (body, _) in ENDPOINTS.items():
            response = client.post(path, json=body("x" * 3000))
            assert response.status_code == 400
            message = response.json()["error"]["message"]
            assert "maximum context length is 2048 tokens" in message and words in message
        assert running.metric("deepseek_engine_prompt_tokens_total") == 0
