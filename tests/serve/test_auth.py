from __future__ import annotations

import contextlib
import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.routing import BaseRoute

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek.runtime.client import EngineClient
from deepseek_serve.app import OPEN_ROUTES, create_app
from deepseek_serve.auth import ApiKey, Keys, load_keys
from deepseek_serve.config import ServeConfig
from deepseek_serve.errors import ApiError
from deepseek_serve.models import ServedModel
from deepseek_serve.playground.assets import page
from deepseek_serve.state import ServerState
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
        for path in (path for path in OPEN_ROUTES if "{" not in path):
            assert http.get(path).status_code == 200


def test_tenants_do_not_share_the_prefix_cache(locked: Server) -> None:
    cached = []
    for key in (*KEYS, KEYS[0]):
        with locked.client(headers={"authorization": f"Bearer {key}"}) as http:
            usage = http.post("/v1/chat/completions", json=chat_body("shared prompt " * 9)).json()["usage"]
            cached.append(usage["prompt_cache_hit_tokens"])
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_users_of_one_key_do_not_share_the_prefix_cache_either(locked: Server) -> None:
    """What a prompt costs must not tell what another user asked (DeepSeek's ``user_id``)."""
    cached = []
    with locked.client(headers={"authorization": f"Bearer {KEYS[0]}"}) as http:
        for user in ("ann", "bob", None, "ann"):
            body = chat_body("one more shared prompt " * 9, user_id=user)
            cached.append(http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_cache_hit_tokens"])
    assert cached[:3] == [0, 0, 0] and cached[3] > 0


@pytest.fixture(scope="module")
def app_routes() -> list[tuple[str, str]]:
    """Method and path of everything that the application answers, however it was added."""
    engine = EngineConfig(model="fake")
    state = ServerState(ServeConfig(api_keys=KEYS), ServedModel(("fake",), "fake", engine, EngineClient(engine)))

    def walk(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in routes:
            path = prefix + getattr(route, "path", "")
            nested = getattr(getattr(route, "original_router", route), "routes", None)
            if nested:
                yield from walk(nested, path)
            else:
                yield from ((method, path) for method in sorted(getattr(route, "methods", None) or {"GET"}))

    found = list(walk(create_app(state).routes))
    assert len(found) > 10
    return found


def test_every_route_is_protected_unless_named_open(locked: Server, app_routes: list[tuple[str, str]]) -> None:
    """Deny by default, whatever the Host header says."""
    open_paths = set()
    for headers in (
        {},
        {"host": "x/health/live"},
        {"host": "localhost#/health/ready?"},
        {"x-forwarded-host": "/metrics"},
    ):
        with locked.client(headers=headers) as http:
            for method, path in app_routes:
                of_page = path.replace("{version}", page().version).replace("{path:path}", "js/app.js")
                of_page = of_page.replace("/docs/{name}", "/docs/start.js")
                address = of_page if path.startswith("/playground/") else re.sub(r"{[^}]*}", "x", of_page)
                response = http.request(method, address)
                if response.status_code != 401:
                    open_paths.add(path)
                    no_such_file = path.startswith("/playground/") and response.status_code == 404
                    assert response.status_code < 300 or no_such_file, (method, path)
    assert open_paths == set(OPEN_ROUTES)
    paths = {path for _, path in app_routes}
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/models",
        "/v1/files",
        "/v1/batches",
        *OPEN_ROUTES,
    } <= paths


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr("deepseek_serve.auth.hmac", SimpleNamespace(compare_digest=compare))
    keys = Keys([f"sk-{i}" for i in range(5)])
    for given in ("sk-0", "sk-4", "sk-wrong"):
        with contextlib.suppress(ApiError):
            keys.identify(f"Bearer {given}")
    assert len(compared) == 15
    assert all(len(a) == len(b) == 64 for a, b in compared), "digests, not keys"


def test_keys_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\nfrom-file\n\n second \n")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "from-env")
    expected = ("given", "from-file", "second", "from-env")
    assert load_keys(["given"], file) == tuple(ApiKey.of(key) for key in expected)
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
    names = {keys.identify(f"Bearer {key}").tenant for key in KEYS}
    assert len(names) == 2 and not names & set(KEYS)
    with pytest.raises(ApiError):
        keys.identify("Bearer \u00fcmlaut")


def test_a_toml_file_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    file = tmp_path / "keys.toml"
    digest = ApiKey.of("sk-hidden").sha256
    file.write_text(
        f"""
        [defaults]
        requests_per_minute = 60
        [[keys]]
        key = "sk-team"
        name = "team"
        weight = 2
        tokens_per_minute = 1000
        [[keys]]
        sha256 = "{digest}"
        requests_per_minute = 5
        priority = -3
        """
    )
    team, hidden, given = load_keys(["sk-given"], file)[1:] + load_keys(["sk-given"], file)[:1]
    assert team == ApiKey.of("sk-team", name="team", weight=2.0, tokens_per_minute=1000, requests_per_minute=60)
    assert hidden == ApiKey(sha256=digest, requests_per_minute=5, priority=-3)
    assert given.requests_per_minute == 60, "defaults hold for all keys"
    assert "sk-" not in repr((team, hidden, given))
    keys = Keys([team, hidden])
    assert keys.identify("Bearer sk-team").tenant == "team"
    assert keys.identify("Bearer sk-hidden").tenant == digest[:16]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[keys]]\nname = 'x'", "either key or sha256"),
        ("[[keys]]\nkey = 'a'\nsha256 = 'b'", "either key or sha256"),
        ("[[keys]]\nsha256 = ''", "either key or sha256"),
        ("[[keys]]\nkey = 'a'\nwieght = 2", "wieght"),
        ("[[keys]]\nkey = 'a'\nweight = 0", "weight must be"),
        ("[[keys]]\nkey = 'a'\nweight = nan", "weight must be"),
        ("[[keys]]\nkey = 'a'\nweight = 'much'", "weight"),
        ("[[keys]]\nkey = 'a'\nrequests_per_minute = 0", "at least 1"),
        ("[[keys]]\nkey = 'a'\nmax_priority = 1000", "max_priority must be"),
        ("[[keys]]\nkey = 'a'\nname = 'a/b'", "a name has"),
        ("[[keys]]\nkey = ''", "non-empty ASCII"),
        ("[[keys]]\nkey = 'a'\nname = 'x'\n[[keys]]\nkey = 'b'\nname = 'x'", "two API keys"),
        ("[[keys]]\nsha256 = 'abc'", "64 hexadecimal"),
        ("[defaults]\nname = 'x'\n[[keys]]\nkey = 'a'", "belong to one key"),
        ("[limits]\nx = 1", "'limits' is not known"),
        ("keys = 5", "one table"),
        ("[[keys]", "cannot be read"),
        ("", "holds no key"),
    ],
)
def test_files_of_keys_that_are_wrong(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        load_keys([], file)
