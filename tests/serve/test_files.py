"""``/v1/files`` as clients see it: the official SDK, and all that can be wrong with an upload."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serve.conftest import Server, running_server

LIMIT = 100_000
BOUNDARY = "b0undary"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def keyed(data_dir: Path) -> Iterator[Server]:
    with running_server(
        api_keys=("sk-one", "sk-two"), max_file_bytes=LIMIT, max_stored_bytes=5 * LIMIT, data_dir=str(data_dir)
    ) as server:
        yield server


def sdk_of(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(trust_env=False)
    )


@pytest.fixture
def sdk(keyed: Server) -> Iterator[openai.OpenAI]:
    with sdk_of(keyed, "sk-one") as client:
        yield client


@pytest.fixture
def http(keyed: Server) -> Iterator[httpx.Client]:
    with keyed.client(headers={"authorization": "Bearer sk-one"}) as client:
        yield client


def left_over(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "partial").rglob("*") if path.is_file() and path.suffix != ".lock"]


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart body of (Content-Disposition's parameters, value)."""
    body = b"".join(
        f"--{BOUNDARY}\r\ncontent-disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return body + f"--{BOUNDARY}--\r\n".encode() if end else body


FILE = ('name="file"; filename="a.txt"', b"hello")
PURPOSE = ('name="purpose"', b"user_data")
MULTIPART = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def test_upload_look_read_and_delete(sdk: openai.OpenAI) -> None:
    data = "世界\n".encode() * 1000
    made = sdk.files.create(file=("världen.txt", data), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.object) == (len(data), "världen.txt", "user_data", "file")
    assert made.status == "processed" and made.expires_at is None and abs(made.created_at - time.time()) < 60
    assert sdk.files.retrieve(made.id) == made
    content = sdk.files.content(made.id)
    assert content.content == data
    headers = content.response.headers
    assert headers["content-type"] == "application/octet-stream" and headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''v%C3%A4rlden.txt"
    assert sdk.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        sdk.files.retrieve(made.id)
    assert gone.value.code == "file_not_found"


def test_expiry_and_lists(keyed: Server) -> None:
    with sdk_of(keyed, "sk-two") as sdk:
        made = [sdk.files.create(file=io.BytesIO(b"x"), purpose="batch") for _ in range(3)]
        made.append(
            sdk.files.create(
                file=io.BytesIO(b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
            )
        )
        assert made[3].expires_at == made[3].created_at + 3600
        assert made[0].expires_at == made[0].created_at + 30 * 86_400
        newest_first = [file.id for file in reversed(made)]
        assert [file.id for file in sdk.files.list(limit=2)] == newest_first  # the SDK turns the pages
        assert [file.id for file in sdk.files.list(order="asc", limit=3)] == newest_first[::-1]
        assert [file.id for file in sdk.files.list(purpose="user_data")] == newest_first[:1]
        page = sdk.files.list(limit=2, after=newest_first[0])
        assert [file.id for file in page.data] == newest_first[1:3] and page.has_more
        for file in made:
            sdk.files.delete(file.id)


def test_other_keys_see_nothing(keyed: Server, sdk: openai.OpenAI) -> None:
    mine = sdk.files.create(file=io.BytesIO(b"secret"), purpose="user_data")
    with sdk_of(keyed, "sk-two") as other:
        for attempt in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                attempt(mine.id)
        assert mine.id not in [file.id for file in other.files.list()]
    assert sdk.files.content(mine.id).content == b"secret"


@pytest.mark.parametrize(
    ("body", "headers", "code", "param"),
    [
        (form(PURPOSE), MULTIPART, "missing_required_parameter", "file"),
        (form(FILE), MULTIPART, "missing_required_parameter", "purpose"),
        (form(FILE, ('name="purpose"', b"treason")), MULTIPART, "invalid_value", "purpose"),
        (form(FILE, ('name="purpose"', b"batch_output")), MULTIPART, "invalid_value", "purpose"),
        (form(('name="file"; filename="a"', b""), PURPOSE), MULTIPART, "empty_file", "file"),
        (form(('name="file"', b"no filename"), PURPOSE), MULTIPART, "invalid_value", "file"),
        (form(FILE, FILE, PURPOSE), MULTIPART, "invalid_value", "file"),
        (form(FILE, PURPOSE, ('name="colour"', b"red")), MULTIPART, "unknown_parameter", "colour"),
        (form(FILE, PURPOSE, ('name="image"; filename="x"', b"x")), MULTIPART, "unknown_parameter", "image"),
        (form(FILE, PURPOSE, end=False), MULTIPART, "invalid_form", None),
        (form(FILE, ('name="purpose"', b"\xff")), MULTIPART, "invalid_form", None),
        (form(FILE, ('name="purpose"', b"x" * 70_000)), MULTIPART, "invalid_form", None),
        (form(*((f'name="f{i}"', b"x") for i in range(20))), MULTIPART, "invalid_form", None),
        (b"--wrong\r\n", MULTIPART, "invalid_form", None),
        (b"", MULTIPART, "invalid_form", None),
        (form(FILE, PURPOSE), {"content-type": "multipart/form-data"}, "invalid_content_type", None),
        (form(FILE, PURPOSE), {"content-type": "multipart/form-data; boundary=" + "b" * 300}, "invalid_form", None),
        (b'{"purpose": "batch"}', {"content-type": "application/json"}, "invalid_content_type", None),
        (b"", {}, "invalid_content_type", None),
        (
            form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")),
            MULTIPART,
            "invalid_value",
            "expires_after.anchor",
        ),
        *(
            (
                form(
                    FILE,
                    PURPOSE,
                    ('name="expires_after[anchor]"', b"created_at"),
                    ('name="expires_after[seconds]"', seconds),
                ),
                MULTIPART,
                "invalid_value",
                "expires_after.seconds",
            )
            for seconds in (b"3599", b"2592001", b"-1", b"1e9", b"", "٣٦٠٠".encode(), b"9" * 400)
        ),
    ],
)
def test_bad_uploads(
    http: httpx.Client, data_dir: Path, body: bytes, headers: dict[str, str], code: str, param: str | None
) -> None:
    before = http.get("/v1/files").json()
    response = http.post("/v1/files", content=body, headers=headers)
    error = response.json()["error"]
    assert response.status_code == 400 and (error["code"], error["param"]) == (code, param), error
    assert http.get("/v1/files").json() == before and not left_over(data_dir)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../../etc/passwd", "passwd"),
        ("C:\\temp\\a.txt", "a.txt"),
        ("..", "file"),
        ("", "file"),
        ("a\x00b\nc\u202ed", "abcd"),
        ("é" * 300, "é" * 127),
    ],
)
def test_file_names_are_shown_and_never_used(http: httpx.Client, data_dir: Path, given: str, kept: str) -> None:
    escaped = given.replace("\\", "\\\\").replace("\n", "%0A")
    body = form((f'name="file"; filename="{escaped}"', b"x"), PURPOSE)
    response = http.post("/v1/files", content=body, headers=MULTIPART)
    assert response.status_code == 200, response.text
    shown = response.json()
    assert shown["filename"].replace("%0A", "") == kept
    assert http.get(f"/v1/files/{shown['id']}/content").content == b"x"
    assert {path.name for path in (data_dir / "files").rglob("*") if path.is_file()} >= {shown["id"]}
    assert http.delete(f"/v1/files/{shown['id']}").status_code == 200


@pytest.mark.parametrize(("size", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)])
def test_size_limit(http: httpx.Client, data_dir: Path, size: int, status: int) -> None:
    response = http.post("/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "user_data"})
    assert response.status_code == status, response.text
    if status == 413:
        assert response.json()["error"]["code"] == "request_too_large" and not left_over(data_dir)
    else:
        assert response.json()["bytes"] == size
        http.delete(f"/v1/files/{response.json()['id']}")


def test_too_long_is_told_before_everything_is_read(keyed: Server) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n"
    )
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=10) as client:
        client.sendall(f"{head}content-length: {1 << 40}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=10) as client:
        client.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        body = form(('name="file"; filename="a"', b"x" * (LIMIT + 1)), end=False)
        client.sendall(f"{len(body):x}\r\n".encode() + body + b"\r\n")  # and never the end
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_who_sends_on_after_the_refusal_gets_it_all_the_same(keyed: Server) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {2 * LIMIT}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=10) as client:
        client.sendall(head.encode())
        time.sleep(0.2)
        for _ in range(20):
            client.sendall(b"x" * (LIMIT // 10))
            time.sleep(0.005)
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_quota_of_a_key(keyed: Server, data_dir: Path) -> None:
    with sdk_of(keyed, "sk-two") as sdk:
        made = [sdk.files.create(file=io.BytesIO(b"x" * LIMIT), purpose="user_data") for _ in range(5)]
        with pytest.raises(openai.APIStatusError) as told:
            sdk.files.create(file=io.BytesIO(b"x"), purpose="user_data")
        assert told.value.status_code == 413 and told.value.code == "storage_quota_exceeded"  # type: ignore[attr-defined]
        sdk.files.delete(made[0].id)
        with pytest.raises(openai.APIStatusError):
            sdk.files.create(file=io.BytesIO(b"x" * (LIMIT - 1) + b"yy"), purpose="user_data")
        made[0] = sdk.files.create(file=io.BytesIO(b"x" * LIMIT), purpose="user_data")
        for file in made:
            sdk.files.delete(file.id)
    assert not left_over(data_dir)


def test_disconnect_in_the_middle_leaves_nothing(keyed: Server, http: httpx.Client, data_dir: Path) -> None:
    before = http.get("/v1/files").json()
    for sent in (0, 10, 200, 50_000):
        body = form(('name="file"; filename="a"', b"x" * 60_000), PURPOSE)
        with socket.create_connection(("127.0.0.1", keyed.port), timeout=10) as client:
            head = (
                f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\ncontent-length: {len(body)}\r\n"
                f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
            )
            client.sendall(head.encode() + body[:sent])
            deadline = time.monotonic() + 5
            while sent and not left_over(data_dir):
                assert time.monotonic() < deadline
                time.sleep(0.01)
    deadline = time.monotonic() + 5
    while left_over(data_dir):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert http.get("/v1/files").json() == before


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e3", "limit"),
        (f"limit={'9' * 5000}", "limit"),
        ("order=up", "order"),
        ("after=file-none", "after"),
        ("after=%00", "after"),
        ("purpose=%00", "purpose"),
    ],
)
def test_bad_lists(http: httpx.Client, query: str, param: str) -> None:
    response = http.get(f"/v1/files?{query}")
    assert response.status_code == 400 and response.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["file-x", "%00", "..%2F..%2Fetc%2Fpasswd", "é", "x" * 3000])
def test_ids_that_are_none(http: httpx.Client, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = http.request(method, f"/v1/files/{name}{path}")
        assert response.status_code == 404 and set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_methods_and_keys(keyed: Server, http: httpx.Client) -> None:
    assert http.put("/v1/files").status_code == 405
    with keyed.client() as nobody:
        for method, path in (
            ("GET", ""),
            ("POST", ""),
            ("GET", "/file-x"),
            ("GET", "/file-x/content"),
            ("DELETE", "/x"),
        ):
            assert nobody.request(method, f"/v1/files{path}").status_code == 401


def test_files_survive_a_restart(tmp_path: Path) -> None:
    made: Any = None
    for _ in range(2):
        with running_server(data_dir=str(tmp_path)) as server, sdk_of(server, "none") as sdk:
            if made is None:
                made = sdk.files.create(file=io.BytesIO(b"kept"), purpose="user_data")
            assert sdk.files.content(made.id).content == b"kept"
            assert json.loads(sdk.files.list().model_dump_json())["data"][0]["id"] == made.id
