from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from deepseek.errors import ConfigurationError
from deepseek_serve.app import OPEN, OPEN_ROUTES, PROTECTED
from deepseek_serve.auth import Keys, load_keys
from deepseek_serve.errors import ApiError
from tests.serve.conftest import Server, chat_body, running_server

KEYS = ("sk-first", "sk-second")


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with running_server(api_keys=KEYS) as server:
        yield server


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Basic sk-first", None),
        ("sk-first", None),
        ("Bearer sk-wrong", "invalid_api_key"),
        ("Bearer sk-firs", "invalid_api_key"),
        ("Bearer sk-first sk-second", "invalid_api_key"),
    ],
)
def test_refused(locked: Server, header: str | None, code: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with locked.client(headers=headers) as http:
        for response in (
            http.post("/v1/chat/completions", json=chat_body()),
            http.post("/v1/chat/completions", content=b"not json"),
            http.post("/v1/completions", json={}),
            http.get("/v1/models"),
            http.get("/models/x"),
        ):
            assert response.status_code == 401
            error = response.json()["error"]
            assert error["code"] == code and error["type"] == "invalid_request_error"
            assert "sk-first" not in response.text and "sk-second" not in response.text


@pytest.mark.parametrize("header", [f"Bearer {KEYS[0]}", f"bearer  {KEYS[1]}"])
def test_let_in(locked: Server, header: str) -> None:
    with locked.client(headers={"authorization": header}) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_host_header_and_odd_paths_open_nothing(locked: Server) -> None:
    with locked.client() as http:
        for path in ("/v1/models", "//v1/models", "/health/live/../../v1/models", "/%76%31/models"):
            request = httpx.Request("GET", locked.url + path, headers={"host": "x/health/live?"})
            assert http.send(request).status_code in (400, 401, 404), path


def test_health_and_metrics_are_open(locked: Server) -> None:
    with locked.client() as http:
        for path in OPEN_ROUTES:
            assert http.get(path).status_code == 200


def test_tenants_do_not_share_the_prefix_cache(locked: Server) -> None:
    cached = []
    for key in (*KEYS, KEYS[0]):
        with locked.client(headers={"authorization": f"Bearer {key}"}) as http:
            usage = http.post("/v1/chat/completions", json=chat_body("shared prompt " * 9)).json()["usage"]
            cached.append(usage["prompt_cache_hit_tokens"])
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_every_route_is_protected_unless_named_open(locked: Server) -> None:
    open_paths, all_paths = set(), set()
    with locked.client() as http:
        for router in (*PROTECTED, *OPEN):
            for route in router.routes:
                assert isinstance(route, APIRoute)
                all_paths.add(route.path)
                for method in route.methods:
                    if http.request(method, route.path.replace("{model:path}", "m")).status_code != 401:
                        open_paths.add(route.path)
    assert open_paths == set(OPEN_ROUTES)
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", *OPEN_ROUTES} <= all_paths


def test_keys_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\nfrom-file\n\n second \n")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "from-env")
    assert load_keys(["given"], file) == ("given", "from-file", "second", "from-env")
    monkeypatch.delenv("DEEPSEEK_API_KEY")
    assert load_keys([], None) == ()


def test_a_key_file_without_keys_does_not_open_the_server(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="holds no key"):
        load_keys([], file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_keys([], tmp_path / "absent")


def test_tenant_names_do_not_show_keys() -> None:
    keys = Keys(KEYS)
    names = {keys.identify(f"Bearer {key}") for key in KEYS}
    assert len(names) == 2 and not names & set(KEYS)
    with pytest.raises(ApiError):
        keys.identify("Bearer \u00fcmlaut")
