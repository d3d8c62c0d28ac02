"""``/v1/embeddings`` through the official SDK and without it, of a model that answers too and of an encoder."""

from __future__ import annotations

import base64
import json
import threading
import time
from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deepseek.errors import ConfigurationError
from deepseek_serve.auth import ApiKey
from deepseek_serve.config import ServeConfig
from tests.runtime.fake_engine import BOS, ENCODER, vector_of
from tests.serve.conftest import MODEL, Server, chat_body, running_server
from tests.serve.test_errors import error_of


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(embedding_model=ENCODER, max_sequences=4) as running:
        deadline = time.monotonic() + 15
        with running.client() as client:
            while client.post("/v1/embeddings", json={"model": ENCODER, "input": "a"}).status_code != 200:
                assert time.monotonic() < deadline, running.output
                time.sleep(0.05)
        yield running


@pytest.fixture
def sdk(server: Server) -> openai.OpenAI:
    http_client = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http_client, max_retries=3)


def close(vector: list[float], text: str, dimensions: int | None = None) -> bool:
    return vector == pytest.approx(vector_of(text, dimensions), abs=1e-6)


@pytest.mark.parametrize("model", [MODEL, ENCODER])
def test_sdk(sdk: openai.OpenAI, model: str) -> None:
    texts = ["a cat", "一只猫", "x" * 50]
    answer = sdk.embeddings.create(model=model, input=texts)  # the SDK asks for base64 and decodes it
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(close(item.embedding, text) for item, text in zip(answer.data, texts, strict=True))
    tokens = sum(1 + len(text.encode()) for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (tokens, tokens, model)
    floats = sdk.embeddings.create(model=model, input="a cat", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(answer.data[0].embedding)


def test_models_are_listed_under_their_names(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL, ENCODER]
    assert sdk.models.retrieve(ENCODER).model_dump()["max_model_len"] == 64


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_the_body_to_the_letter(http: httpx.Client, path: str) -> None:
    body = http.post(path, json={"model": MODEL, "input": "a cat", "encoding_format": "base64", "user": "u"}).json()
    assert set(body) == {"object", "data", "model", "usage"} and body["object"] == "list"
    (item,) = body["data"]
    assert set(item) == {"object", "index", "embedding"} and item["object"] == "embedding"
    values = array("f", base64.b64decode(item["embedding"]))
    assert close(values.tolist(), "a cat")
    assert body["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_token_ids_are_embedded_as_they_are(http: httpx.Client) -> None:
    cat = list(b"a cat")
    one = http.post("/v1/embeddings", json={"model": MODEL, "input": cat}).json()
    assert close(one["data"][0]["embedding"], "a cat") and one["usage"]["prompt_tokens"] == 5
    two = http.post("/v1/embeddings", json={"model": MODEL, "input": [[BOS, *cat], list(b"dog")]}).json()
    assert close(two["data"][0]["embedding"], "a cat") and close(two["data"][1]["embedding"], "dog")
    assert two["usage"]["prompt_tokens"] == 9


def test_dimensions_where_the_model_has_them(sdk: openai.OpenAI, http: httpx.Client) -> None:
    short = sdk.embeddings.create(model=MODEL, input="a cat", dimensions=4).data[0].embedding
    assert len(short) == 4 and close(short, "a cat", 4)
    whole = sdk.embeddings.create(model=ENCODER, input="a cat", dimensions=8).data[0].embedding
    assert close(whole, "a cat")
    wrong = ((MODEL, 3, "invalid_value"), (MODEL, 9, "invalid_value"), (ENCODER, 4, "unsupported_value"))
    for model, dimensions, code in wrong:
        body = {"model": model, "input": "a cat", "dimensions": dimensions}
        error = error_of(http.post("/v1/embeddings", json=body), 400)
        assert (error["param"], error["code"]) == ("dimensions", code)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": [[1], []]}, "input[1]", "invalid_value"),
        ({"input": ["a", [1]]}, "input", "invalid_value"),
        ({"input": ["a", 1.5]}, "input[1]", "invalid_value"),
        ({"input": {"text": "a"}}, "input", "invalid_value"),
        ({"input": [True]}, "input[0]", "invalid_value"),
        ({"input": [260]}, "input", "invalid_value"),
        ({"input": [[1, -1]]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": "x" * 2048}, "input", "context_length_exceeded"),
        ({"input": "x" * 64, "model": ENCODER}, "input", "context_length_exceeded"),
        ({"input": ["x" * 2000] * 151}, "input", "max_tokens_per_request"),
        ({"input": [[1] * 150_001] * 2}, "input", "max_tokens_per_request"),
        ({"input": [1] * 300_001}, "input", "array_above_max_length"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"wish": 1}, "wish", "unknown_parameter"),
    ],
)
def test_what_cannot_be_is_told(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    error = error_of(http.post("/v1/embeddings", json={"model": MODEL, "input": "a"} | fields), 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_unknown_model_and_missing_fields(http: httpx.Client) -> None:
    assert (
        error_of(http.post("/v1/embeddings", json={"model": "gpt-9", "input": "a"}), 404)["code"] == "model_not_found"
    )
    assert error_of(http.post("/v1/embeddings", json={"model": MODEL}), 400)["param"] == "input"
    assert error_of(http.post("/v1/embeddings", json={"input": "a"}), 400)["param"] == "model"


def test_an_encoder_does_not_answer(http: httpx.Client) -> None:
    chat = error_of(http.post("/v1/chat/completions", json=chat_body() | {"model": ENCODER}), 400)
    text = error_of(http.post("/v1/completions", json={"model": ENCODER, "prompt": "a"}), 400)
    for error in (chat, text):
        assert (error["param"], error["code"]) == ("model", "model_not_supported")
        assert "/v1/embeddings" in error["message"]


def test_as_many_inputs_as_allowed(http: httpx.Client) -> None:
    texts = [f"text {i}" for i in range(2048)]
    body = http.post("/v1/embeddings", json={"model": ENCODER, "input": texts}).json()
    assert [item["index"] for item in body["data"]] == list(range(2048))
    assert close(body["data"][2047]["embedding"], "text 2047")


def test_one_failure_fails_the_request_and_leaves_nothing(http: httpx.Client, server: Server) -> None:
    texts = ["[long]"] * 3 + ["[nan]"]
    assert "not finite" in error_of(http.post("/v1/embeddings", json={"model": MODEL, "input": texts}), 500)["message"]
    server.wait_metric("deepseek_engine_running", 0)
    server.wait_metric("deepseek_admitted_answers", 0)
    server.wait_metric("deepseek_waiting_prompt_tokens", 0)


def test_a_client_that_leaves_cancels_its_texts(server: Server) -> None:
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"model": ENCODER, "input": ["[long]"] * 5}, timeout=0.5)
    server.wait_metric("deepseek_engine_running", 0)
    server.wait_metric("deepseek_admitted_answers", 0)


def test_tokens_are_counted(server: Server, http: httpx.Client) -> None:
    def count() -> float:
        return server.metric("deepseek_prompt_tokens_total")

    before = count()
    http.post("/v1/embeddings", json={"model": ENCODER, "input": ["abc", "de"]})
    assert count() - before == 7
    time.sleep(1.2)  # usage is written once a second
    results = http.get("/v1/usage?group_by=model").json()["data"][-1]["results"]
    (used,) = [result for result in results if result["model"] == ENCODER]
    assert used["requests"] > 0 and used["prompt_tokens"] > 0 and used["completion_tokens"] == 0


def test_a_full_server_says_so(server: Server, http: httpx.Client) -> None:
    def hold() -> None:
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/embeddings", json={"model": MODEL, "input": ["[long]"]}, timeout=2)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    server.wait_metric("deepseek_admitted_answers", 4)
    error = error_of(http.post("/v1/embeddings", json={"model": MODEL, "input": "a"}), 503)
    assert error["code"] == "server_is_overloaded"
    for thread in threads:
        thread.join()
    server.wait_metric("deepseek_admitted_answers", 0)


def test_a_dead_engine_is_told_and_replaced(server: Server, http: httpx.Client) -> None:
    body = {"model": ENCODER, "input": "[die]"}
    assert error_of(http.post("/v1/embeddings", json=body), 503)["code"] == "engine_unavailable"
    assert http.post("/v1/embeddings", json={"model": MODEL, "input": "a"}).status_code == 200  # the other one lives
    deadline = time.monotonic() + 10
    while http.post("/v1/embeddings", json={"model": ENCODER, "input": "a"}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_and_their_tokens_per_minute() -> None:
    key = ApiKey.of("sk-small", name="small", tokens_per_minute=100)
    with running_server(api_keys=(key,)) as running, running.client() as client:
        body = {"model": MODEL, "input": "x" * 59}
        assert error_of(client.post("/v1/embeddings", json=body), 401)
        headers = {"Authorization": "Bearer sk-small"}
        first = client.post("/v1/embeddings", json=body, headers=headers)
        assert first.status_code == 200 and first.headers["x-ratelimit-remaining-tokens"] == "40"
        error = error_of(client.post("/v1/embeddings", json=body, headers=headers), 429)
        assert error["type"] == "tokens"


def test_a_batch_of_embeddings(server: Server, http: httpx.Client) -> None:
    lines = [
        {"custom_id": f"e{i}", "method": "POST", "url": "/v1/embeddings", "body": {"model": ENCODER, "input": text}}
        for i, text in enumerate(("a cat", "x" * 64))
    ]
    content = "\n".join(map(json.dumps, lines))
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}).json()
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = http.post("/v1/batches", json=wanted).json()
    deadline = time.monotonic() + 15
    while batch["status"] != "completed":
        assert batch["status"] in ("validating", "in_progress", "finalizing") and time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = http.get(f"/v1/batches/{batch['id']}").json()
    answer = json.loads(http.get(f"/v1/files/{batch['output_file_id']}/content").text)
    assert close(answer["response"]["body"]["data"][0]["embedding"], "a cat")
    problem = json.loads(http.get(f"/v1/files/{batch['error_file_id']}/content").text)
    assert problem["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert batch["usage"]["input_tokens"] == 6


def test_the_embedding_model_is_another_one() -> None:
    engine = ServeConfig().engine
    for name in ("", engine.model):
        with pytest.raises(ConfigurationError, match="embedding_model"):
            ServeConfig(embedding_model=name)
