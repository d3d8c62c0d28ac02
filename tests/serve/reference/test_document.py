"""The description says what the server does: every route, every answer's shape, every error."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi import APIRouter

from deepseek_serve.app import ROUTERS
from deepseek_serve.reference.document import document, routes_of
from tests.serve.conftest import Server, chat_body, events_of, running_server

MODEL = "deepseek-v2.1"
RESULT = {"type": "function_call_output", "call_id": "c", "output": ""}


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    with server.client() as http:
        response = http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def validator(description: dict[str, Any], path: str, method: str, status: int, media: str) -> jsonschema_rs.Validator:
    content = description["paths"][path][method]["responses"][str(status)]["content"]
    return jsonschema_rs.validator_for({**content[media]["schema"], "components": description["components"]})


def test_all_routes_are_there(description: dict[str, Any]) -> None:
    found = {(route.path, route.method) for route in routes_of((router, bool(key)) for router, key in ROUTERS)}
    assert {(path, method) for path, methods in description["paths"].items() for method in methods} == found
    assert len(found) > 20
    operations = [operation for methods in description["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["tags"] for operation in operations)
    assert all(operation["security"] or operation["tags"] == ["Health"] for operation in operations)


def test_references_lead_somewhere(description: dict[str, Any]) -> None:
    names = set(re.findall(r"#/components/schemas/([^\"']+)", str(description)))
    assert names <= set(description["components"]["schemas"]) and len(names) > 30


def test_undescribed_routes_are_an_error() -> None:
    router = APIRouter()

    @router.get("/v1/new")
    async def new() -> None: ...

    with pytest.raises(LookupError, match="GET /v1/new is not described"):
        document([(router, True)])


CALLS: list[tuple[str, str, str, dict[str, Any] | None, int]] = [
    ("/v1/chat/completions", "post", "", chat_body(logprobs=True, top_logprobs=2, n=2), 200),
    ("/v1/chat/completions", "post", "", chat_body(temperature=9), 400),
    ("/v1/chat/completions", "post", "", {**chat_body(), "model": "gpt-9"}, 404),
    ("/v1/completions", "post", "", {"model": MODEL, "prompt": "hi", "logprobs": 1}, 200),
    ("/tokenize", "post", "", {"prompt": "hi", "return_token_strs": True}, 200),
    ("/detokenize", "post", "", {"tokens": [70, 71]}, 200),
    ("/v1/models", "get", "", None, 200),
    ("/v1/models/{model}", "get", "deepseek-v2.1", None, 200),
    ("/v1/models/{model}", "get", "gpt-9", None, 404),
    ("/v1/files", "get", "", None, 200),
    ("/v1/files/{file_id}", "get", "file-none", None, 404),
    ("/v1/batches", "get", "", None, 200),
    ("/v1/usage", "get", "", None, 200),
    ("/health/live", "get", "", None, 200),
    ("/health/ready", "get", "", None, 200),
    ("/v1/messages", "post", "", chat_body(max_tokens=8), 200),
    ("/v1/messages", "post", "", chat_body(), 400),
    ("/v1/responses", "post", "", {"model": MODEL, "input": "hi", "top_logprobs": 1}, 200),
    ("/v1/responses", "post", "", {"model": MODEL, "input": [RESULT]}, 400),
    ("/v1/responses/input_tokens", "post", "", {"model": MODEL, "input": [{"role": "user", "content": "hi"}]}, 200),
    ("/v1/responses/{response_id}", "get", "resp_none", None, 404),
    ("/v1/messages/count_tokens", "post", "", chat_body(), 200),
]


@pytest.mark.parametrize(("path", "method", "name", "body", "status"), CALLS)
def test_answers_are_as_described(
    server: Server,
    http: httpx.Client,
    description: dict[str, Any],
    path: str,
    method: str,
    name: str,
    body: dict[str, Any] | None,
    status: int,
) -> None:
    if body is not None and status == 200:
        schema = description["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
        asked = jsonschema_rs.validator_for({**schema, "components": description["components"]})
        assert asked.is_valid(body)
    response = http.request(method, re.sub(r"{\w+}", name, path), json=body)
    assert response.status_code == status, response.text
    validator(description, path, method, status, "application/json").validate(response.json())


def test_events_are_as_described(http: httpx.Client, description: dict[str, Any]) -> None:
    chat = chat_body(stream=True, max_tokens=8)
    asked = {"model": MODEL, "input": "hi", "stream": True}
    for path, body in (("/v1/chat/completions", chat), ("/v1/messages", chat), ("/v1/responses", asked)):
        response = http.post(path, json=body)
        shape = validator(description, path, "post", 200, "text/event-stream")
        events = [event for event in events_of(response) if event != "[DONE]"]
        assert len(events) > 2
        for event in events:
            shape.validate(httpx.Response(200, text=event).json())


def test_pages_can_be_left_out() -> None:
    with running_server(docs=False) as server, server.client() as http:
        assert {http.get(path).status_code for path in ("/docs", "/docs/start.js", "/openapi.json")} == {404}
