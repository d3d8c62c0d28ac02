"""Classes of security bugs that servers of models have had. :data:`COVERED` says which test is about which."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import pickle
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import psutil
import pytest
import uvicorn

from deepseek.runtime.messages import FromEngine, ToEngine
from deepseek_serve import http_protocol, limits
from deepseek_serve.errors import ApiError
from deepseek_serve.http_protocol import MAX_HEAD, BoundedProtocol
from deepseek_serve.limits import read_body
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import ROOT, Server, chat_body, free_port, running_server

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
KEYS = ("sk-first", "sk-second")

COVERED = {
    "pickle over sockets": (
        "test_imports.py::test_the_product_never_unpickles",
        "serve/test_security.py::test_what_is_pickled_is_no_message",
    ),
    "torch.load": (
        "test_imports.py::test_the_product_never_unpickles",
        "hub/test_safetensors_checkpoint.py::test_pickled_weights_are_refused_with_advice",
    ),
    "authentication by a path made from the Host header": (
        "serve/test_auth.py::test_host_header_and_odd_paths_open_nothing",
        "serve/test_auth.py::test_every_route_is_protected_unless_named_open",
        "serve/test_security.py::test_requests_that_proxies_and_servers_read_differently",
    ),
    "keys compared in time that tells": (
        "serve/test_auth.py::test_all_keys_are_compared_whichever_matches",
        "serve/test_messages.py::test_keys_come_in_either_header",
    ),
    "fetching what a client names": ("serve/test_security.py::test_no_address_in_a_request_is_opened",),
    "chat templates": (
        "tokenizer/test_chat_template.py::test_the_sandbox_holds",
        "tokenizer/test_chat_template.py::test_what_would_not_end_is_stopped",
        "tokenizer/test_chat_template.py::test_the_limit_on_output",
    ),
    "grammars and regular expressions without end": (
        "serve/test_security.py::test_hostile_forms_of_answers_end_soon_and_stop_nobody",
    ),
    "huge values": (
        "serve/test_errors.py::test_chat_fields",
        "serve/test_errors.py::test_completion_fields",
        "serve/test_security.py::test_a_million_errors_cost_as_much_as_one",
        "serve/test_security.py::test_huge_values_are_refused",
    ),
    "cached prefixes of others": (
        "serve/test_auth.py::test_tenants_do_not_share_the_prefix_cache",
        "serve/test_auth.py::test_users_of_one_key_do_not_share_the_prefix_cache_either",
        "serve/test_security.py::test_messages_of_others_are_not_in_the_cache_either",
    ),
    "headers of weights": (
        "hub/test_gguf_file.py::test_bad_files_raise_checkpoint_error_at_once",
        "hub/test_gguf_file.py::test_every_truncation_is_an_error",
        "hub/test_gguf_file.py::test_damaged_bytes_never_do_anything_else",
        "hub/test_safetensors_checkpoint.py::test_bad_headers_raise_checkpoint_error",
        "hub/test_safetensors_checkpoint.py::test_every_truncation_is_an_error",
    ),
    "clients who never finish": (
        "serve/test_security.py::test_a_head_without_end_is_cut_off",
        "serve/test_security.py::test_heads_and_bodies_that_do_not_come",
        "serve/test_security.py::test_a_silent_body_is_given_up",
    ),
    "work without a place": ("serve/test_security.py::test_tokenization_needs_room",),
}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with running_server(api_keys=KEYS) as server:
        yield server


@pytest.fixture
def http(locked: Server) -> Iterator[httpx.Client]:
    with locked.client(headers={"authorization": f"Bearer {KEYS[0]}"}) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("name", sorted({name for names in COVERED.values() for name in names}))
def test_what_is_said_to_be_covered_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("kind", [ToEngine, FromEngine])
def test_what_is_pickled_is_no_message(kind: Any, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(pickle.dumps(Touch()), type=kind)
    assert not (tmp_path / "touched").exists()
    pickle.loads(pickle.dumps(Touch()))  # noqa: S301 - so it would have been
    assert (tmp_path / "touched").exists()


def sent(server: Server, data: bytes) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(data)
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("line", "headers", "statuses"),
    [
        ("GET http://x/v1/models HTTP/1.1", "", {401}),
        ("GET http://health/live/../v1/models HTTP/1.1", "", {401, 404}),
        ("GET /v1/models%00/health/live HTTP/1.1", "", {404}),
        ("GET /v1/models;/health/live HTTP/1.1", "", {401, 404}),
        ("GET /v1/models HTTP/1.0", "", {401}),
        ("GET /v1/models HTTP/1.1", "X-Original-URL: /health/live\r\nX-Forwarded-Prefix: /health\r\n", {401}),
        ("GET /v1/models HTTP/1.1", "Authorization: Bearer no\r\nAuthorization: Bearer sk-first\r\n", {401}),
        ("GET /v1/models HTTP/1.1", "Authorization: Bearer no, Bearer sk-first\r\n", {401}),
        ("POST /v1/models HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", {400}),
        ("POST /v1/models HTTP/1.1", "Content-Length: 2\r\nContent-Length: 5\r\n", {400}),
        ("POST /v1/models HTTP/1.1", "Content-Length: -5\r\n", {400}),
        ("POST /v1/models HTTP/1.1", "Content-Length: \xb2\r\n", {400}),
        ("POST /v1/models HTTP/1.1", "Transfer-Encoding: xchunked\r\n", {400}),
        ("GET /v1/models HTTP/1.1", "X: a\r\n b\r\n", {400, 401}),
        ("GET /v1/models HTTP/1.1", "Bad Name: x\r\n", {400}),
    ],
)
def test_requests_that_proxies_and_servers_read_differently(
    locked: Server, line: str, headers: str, statuses: set[int]
) -> None:
    answer = sent(locked, f"{line}\r\nHost: [\r\n{headers}Connection: close\r\n\r\n".encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in statuses and head.count(b"HTTP/1.1") == 1
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, "never another shape"


def test_no_address_in_a_request_is_opened(http: httpx.Client) -> None:
    """Neither by chats nor by messages, whatever part it is in."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        chats = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "input_audio", "input_audio": {"data": address, "format": "wav"}},
            {"type": "file", "file": {"file_data": address}},
        ]
        for part in chats:
            assert http.post(CHAT, json=chat_body([part])).status_code == 400  # type: ignore[arg-type]
        for kind in ("image", "document", "search_result", "container_upload"):
            block = {"type": kind, "source": {"type": "url", "url": address}}
            for content in ([block], [{"type": "tool_result", "tool_use_id": "a", "content": [block]}]):
                body = chat_body(content, max_tokens=5)  # type: ignore[arg-type]
                assert http.post(MESSAGES, json=body).status_code == 400
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": address}}}
        assert http.post(CHAT, json=chat_body(response_format=schema)).status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE_FORMS: dict[str, dict[str, Any]] = {
    "counted twice": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "ambiguous": {"regex": "((((a*)*)*)*)*b" * 50},
    "alternatives": {"regex": "(" + "|".join(f"a{{{i},{1000 + i}}}" for i in range(300)) + ")*"},
    "deep regex": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "wide classes": {"regex": r"[\w\W]{5000}\p{L}{5000}"},
    "deep schema": {"json": nested(90)},
    "wide schema": {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}},
    "endless references": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    "doubling references": {
        "json": {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} if i < 60 else {"type": "null"}
                for i in range(61)
            },
        }
    },
    "huge array": {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}},
    "huge string": {"json": {"type": "string", "minLength": 10**9, "pattern": "(a*)*"}},
    "many choices": {"choice": [f"{i:06d}" * 4 for i in range(9000)]},
    "long choice": {"choice": ["x" * 300_000]},
    "many rules": {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(2000))},
    "doubling rules": {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(60)) + "\nr60: "},
    "left recursion": {"grammar": 'start: start start | "a" |'},
}


@pytest.mark.parametrize("form", HOSTILE_FORMS.values(), ids=HOSTILE_FORMS.keys())
def test_hostile_forms_of_answers_end_soon_and_stop_nobody(
    locked: Server, http: httpx.Client, form: dict[str, Any]
) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(http.post(CHAT, json=chat_body(structured_outputs=form)))

    hostile = threading.Thread(target=ask)
    hostile.start()
    longest = 0.0
    with locked.client() as probe:
        while hostile.is_alive():
            begun = time.monotonic()
            assert probe.get("/health/live").status_code == 200
            longest = max(longest, time.monotonic() - begun)
            hostile.join(0.02)
    assert answers, "not answered within the client's 20 s"
    assert answers[0].status_code in (200, 400), answers[0].text
    if answers[0].status_code == 400:
        assert answers[0].json()["error"]["param"] == "structured_outputs"
    assert longest < 5, "others waited for it"
    assert http.post(CHAT, json=chat_body()).json()["choices"][0]["message"]["content"] == ANSWER


WRONG = b",".join([b"1"] * 1_000_000)
UNKNOWN = b",".join(b'"%d":1' % i for i in range(200_000))
MANY_ERRORS = {
    "parts": (CHAT, b'{"model":"m","messages":[{"role":"user","content":[' + WRONG + b"]}]}"),
    "messages": (CHAT, b'{"model":"m","messages":[' + WRONG + b"]}"),
    "stop strings": (CHAT, b'{"model":"m","messages":[{"role":"user","content":"x"}],"stop":[' + WRONG + b"]}"),
    "fields": (CHAT, b'{"model":"m","messages":[{"role":"user","content":"x"}],' + UNKNOWN + b"}"),
    "blocks": (MESSAGES, b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[' + WRONG + b"]}]}"),
    "tools": (MESSAGES, b'{"model":"m","max_tokens":1,"messages":[],"tools":[' + WRONG + b"]}"),
    "prompts": ("/v1/completions", b'{"model":"m","prompt":["a",' + WRONG + b"]}"),
    "tokens": ("/detokenize", b'{"model":"m","tokens":["a",' + WRONG + b"]}"),
}


@pytest.mark.parametrize(("path", "body"), MANY_ERRORS.values(), ids=MANY_ERRORS.keys())
def test_a_million_errors_cost_as_much_as_one(locked: Server, http: httpx.Client, path: str, body: bytes) -> None:
    """They took a kilobyte each: two megabytes of such a body took a gigabyte."""
    process = psutil.Process(locked.process.pid)
    before = process.memory_info().rss
    response = http.post(path, content=body)
    assert response.status_code in (400, 404), response.text
    assert len(response.content) < 2000
    assert process.memory_info().rss - before < 300 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2**63},
        {"max_tokens": 2**63},
        {"logprobs": True, "top_logprobs": 2**31},
        {"stop": ["x" * 2000]},
        {"stop": ["x"] * 100_000},
        {"logit_bias": {str(i): 1 for i in range(100_000)}},
        {"stop_token_ids": [10**9] * 100_000},
        {"user_id": "u" * 100_000},
        {"tools": [{"type": "function", "function": {"name": f"t{i}"}} for i in range(10_000)]},
        {"messages": [{"role": "user", "content": ""}] * 20_000},
        {"chat_template_kwargs": {f"k{i}": 1 for i in range(10_000)}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_huge_values_are_refused(http: httpx.Client, fields: dict[str, Any]) -> None:
    response = http.post(CHAT, json=chat_body() | fields)
    assert response.status_code == 400 and len(response.content) < 2000
    assert response.json()["error"]["param"]


def test_messages_of_others_are_not_in_the_cache_either(locked: Server) -> None:
    cached = []
    for key, user in ((KEYS[0], "ann"), (KEYS[1], "ann"), (KEYS[0], "bob"), (KEYS[0], None), (KEYS[0], "ann")):
        with locked.client(headers={"x-api-key": key}) as http:
            body = chat_body("a prompt of messages " * 9, max_tokens=5, metadata={"user_id": user})
            cached.append(http.post(MESSAGES, json=body).json()["usage"]["cache_read_input_tokens"])
    assert cached[:4] == [0, 0, 0, 0] and cached[4] > 0


def test_a_head_without_end_is_cut_off(locked: Server) -> None:
    """Without a key: it would be gathered in memory, in time that grows with its square."""
    for line in (b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: ", b"GET /", b""):
        with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as connection:
            connection.sendall(line or b"GET / HTTP/1.1\r\n")
            sent_bytes = 0
            with contextlib.suppress(ConnectionError):
                while sent_bytes < 64 << 20:
                    connection.sendall(b"a" * 65536 if line else b"a: b\r\n" * 10_000)
                    sent_bytes += 65536
            assert sent_bytes < 64 << 20
    answer = sent(locked, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 16 * MAX_HEAD)
    assert answer == b"" or b" 431 " in answer.splitlines()[0]
    with locked.client(headers={"authorization": f"Bearer {KEYS[0]}", "x": "a" * 16_000}) as http:
        assert http.get("/v1/models").status_code == 200


@contextlib.asynccontextmanager
async def bounded_server() -> AsyncIterator[int]:
    """An application that answers after the whole body, behind the protocol; its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, http=BoundedProtocol, lifespan="off", log_config=None, timeout_keep_alive=5)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await serving


@pytest.mark.anyio
async def test_heads_and_bodies_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT", 0.3)
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with bounded_server() as port:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: a", whole + b"GET / HT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.count(b"HTTP/1.1 200") == begun.count(whole)
            assert b"HTTP/1.1 408" in answer and b"request_timeout" in answer
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        await asyncio.sleep(0.6)  # a body has a bound of its own, and so has the time between requests
        writer.write(b"x")
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        await asyncio.sleep(0.6)
        writer.write(whole)
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"ok"), 5)
        writer.close()


@pytest.mark.anyio
async def test_a_silent_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SILENCE", 0.1)

    async def stream() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    with pytest.raises(ApiError, match="Nothing was received") as given_up:
        await asyncio.wait_for(read_body(SimpleNamespace(headers={}, stream=stream), 100), 5)  # type: ignore[arg-type]
    assert given_up.value.status == 408 and given_up.value.headers["connection"] == "close"


def test_tokenization_needs_room() -> None:
    """It shares its threads with chats: it must not be a way around what these are refused by."""
    with running_server(max_sequences=1) as server, server.client() as http:
        requests = [
            ("/tokenize", {"prompt": "x"}, 503),
            ("/detokenize", {"tokens": [65]}, 503),
            (
                f"{MESSAGES}/count_tokens",
                {"model": "deepseek-v2.1", "messages": [{"role": "user", "content": "x"}]},
                529,
            ),
        ]
        with server.client() as other, other.stream("POST", CHAT, json=chat_body("[slow][long]", stream=True)) as busy:
            lines = busy.iter_lines()
            next(lines)
            for path, body, status in requests:
                refused = http.post(path, json=body)
                assert refused.status_code == status and refused.headers["retry-after"], path
        server.wait_metric("deepseek_admitted_answers", 0)
        for path, body, _ in requests:
            assert http.post(path, json=body).status_code == 200
        server.wait_metric("deepseek_admitted_answers", 0)
