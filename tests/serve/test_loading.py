"""Loading and unloading models beside one that is served."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepseek.errors import ConfigurationError
from deepseek_serve.auth import ApiKey, load_keys
from deepseek_serve.config import ServeConfig
from deepseek_serve.errors import ApiError
from deepseek_serve.sources import locate
from tests.serve.conftest import MODEL, Server, chat_body, events_of, running_server
from tests.serve.test_batches import begin, jsonl, sdk_of, wait
from tests.serve.test_replicas import Streams

CHAT = "/v1/chat/completions"
LOAD, UNLOAD = "/v1/models/load", "/v1/models/unload"
ADMIN, USER = "sk-admin", "sk-user"
KEYS = (ApiKey.of(ADMIN, name="ann", admin=True), ApiKey.of(USER, name="bob"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a file per script of the engine, and links and a secret that must not be reached."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.gguf").write_bytes(b"GGUF")
    models = tmp_path_factory.mktemp("models")
    for name in ("fine", "broken", "crash", "steps", "sleep60", "sub/deep"):
        (models / name).parent.mkdir(exist_ok=True)
        (models / f"{name}.gguf").write_bytes(b"GGUF")
    with (models / "huge.gguf").open("wb") as huge:
        huge.truncate(8 << 40)
    (models / "link.gguf").symlink_to(outside / "secret.gguf")
    (models / "out").symlink_to(outside)
    (models / "folder").mkdir()
    (models / "folder" / "model.gguf").symlink_to(outside / "secret.gguf")
    (models / "empty").mkdir()
    (models / "notes.txt").write_text("hello")
    (models / "circle.gguf").symlink_to(models / "circle.gguf")
    return models


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    options = {"max_failures": 2, "start_timeout": 30}
    with running_server(api_keys=KEYS, model_dir=str(folder), options=options, drain_timeout=3) as running:
        yield running


@pytest.fixture
def admin(server: Server) -> Iterator[httpx.Client]:
    """The administrator's client; what a test has loaded is unloaded after it."""
    with server.client(headers={"authorization": f"Bearer {ADMIN}"}) as client:
        yield client
        for card in client.get("/v1/models").json()["data"]:
            if card["id"] != MODEL:
                assert client.post(UNLOAD, json={"model": card["id"]}).status_code == 200
        assert len(server.engine_pids()) == 1


def wait_card(client: httpx.Client, name: str, status: str, seconds: float = 10.0) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (card := client.get(f"/v1/models/{name}").json()).get("status") != status:
        assert time.monotonic() < deadline, card
        time.sleep(0.02)
    return dict(card)


def load(client: httpx.Client, model: str = "fine.gguf", **fields: Any) -> httpx.Response:
    return client.post(LOAD, json={"model": model, **fields})


# -- who may -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [LOAD, UNLOAD, "/models/load", "/models/unload"])
def test_only_administrators(server: Server, path: str) -> None:
    with server.client() as http:
        assert http.post(path, json={"model": MODEL}).status_code == 401
        for body in ({"model": MODEL}, {"model": "fine.gguf"}, {"nonsense": 1}):
            refused = http.post(path, json=body, headers={"authorization": f"Bearer {USER}"})
            assert refused.status_code == 403
            error = refused.json()["error"]
            assert error["code"] == "insufficient_permissions" and set(error) == {"message", "type", "param", "code"}
    assert len(server.engine_pids()) == 1


def test_without_keys_nobody_may_unless_the_server_says_so() -> None:
    with running_server() as closed, closed.client() as http:
        refused = http.post(UNLOAD, json={"model": MODEL})
        assert refused.status_code == 403 and "--allow-model-loading" in refused.json()["error"]["message"]
        assert http.post(CHAT, json=chat_body()).status_code == 200
    with running_server(allow_model_loading=True) as opened, opened.client() as http:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # what another site's page can send
            answer = http.post(UNLOAD, content=json.dumps({"model": MODEL}), headers={"content-type": kind})
            assert answer.status_code == 415
        assert http.post(UNLOAD, json={"model": MODEL}).status_code == 200
        assert http.get("/health/ready").json()["status"] == "no_model"
        assert http.post(CHAT, json=chat_body()).json()["error"]["code"] == "model_not_found"
        assert opened.engine_pids() == []
        assert load(http, "org/again", name=MODEL).status_code == 200
        opened.wait_status("/health/ready", 200)
        assert http.post(CHAT, json=chat_body()).status_code == 200


def test_settings_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="admin = true"):
        ServeConfig(api_keys=("sk-1",), allow_model_loading=True)
    with pytest.raises(ConfigurationError, match="model_dir"):
        ServeConfig(model_dir=str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="name"):
        ServeConfig(also={MODEL: "x"})
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\nkey = "sk-1"\nadmin = true\n[[keys]]\nkey = "sk-2"\n')
    assert [key.admin for key in load_keys((), file)] == [True, False]
    file.write_text('[defaults]\nadmin = true\n[[keys]]\nkey = "sk-1"\n')
    with pytest.raises(ConfigurationError, match="admin"):
        load_keys((), file)


# -- loading and unloading -----------------------------------------------------------------------------------------


def test_load_use_and_unload_while_another_model_streams(server: Server, admin: httpx.Client) -> None:
    body = chat_body("[long][slow]", stream=True, max_tokens=150)
    with server.client(headers={"authorization": f"Bearer {USER}"}) as user, user.stream("POST", CHAT, json=body) as s:
        lines = s.iter_lines()
        next(lines)
        answer = load(admin, "fine.gguf", name="second", max_context=100, kv_cache_bytes=2**20)
        assert answer.status_code == 200
        assert answer.json()["id"] == "second" and answer.json()["status"] == "loading"
        card = wait_card(admin, "second", "ready")
        assert card["root"] == "fine" and card["max_model_len"] == 2048 and card["error"] is card["progress"] is None
        assert [c["id"] for c in admin.get("/v1/models").json()["data"]] == [MODEL, "second"]
        for name in ("second", "fine"):
            assert admin.post(CHAT, json=chat_body() | {"model": name}).json()["model"] == name
        assert len(server.engine_pids()) == 2
        assert server.metric('deepseek_engine_state{model="second",replica="0",state="ready"}') == 1
        assert server.metric('deepseek_answers_total{finish_reason="stop",model="second"}') == 2
        gone = admin.post(UNLOAD, json={"model": "fine"})
        assert gone.json() == {"id": "second", "status": "unloaded", "object": "model"}
        assert len(server.engine_pids()) == 1
        assert admin.post(CHAT, json=chat_body() | {"model": "second"}).status_code == 404
        assert 'model="second"' not in admin.get("/metrics").text
        rest = list(lines)
    assert '"finish_reason":"length"' in rest[-4] and rest[-2] == "data: [DONE]"


def test_unloading_waits_for_the_models_answers_and_then_ends_them(server: Server, admin: httpx.Client) -> None:
    load(admin)
    wait_card(admin, "fine", "ready")
    with server.client(headers={"authorization": f"Bearer {USER}"}) as user:
        short = chat_body("[long][slow]", stream=True, max_tokens=40) | {"model": "fine"}
        endless = chat_body("[long][slow]", stream=True) | {"model": "fine"}
        with user.stream("POST", CHAT, json=short) as one, user.stream("POST", CHAT, json=endless) as other:
            first, second = one.iter_lines(), other.iter_lines()
            next(first)
            next(second)
            with server.client(headers={"authorization": f"Bearer {ADMIN}"}) as hasty:
                with pytest.raises(httpx.ReadTimeout):  # who asked goes away; it is unloaded nevertheless
                    hasty.post(UNLOAD, json={"model": "fine"}, timeout=0.3)
                assert wait_card(hasty, "fine", "unloading")
                again = hasty.post(UNLOAD, json={"model": "fine"})
                assert again.status_code == 409 and again.json()["error"]["code"] == "model_unloading"
                refused = hasty.post(CHAT, json=chat_body() | {"model": "fine"})
                assert refused.status_code == 503 and "unloaded" in refused.json()["error"]["message"]
                assert refused.headers["retry-after"]
                assert hasty.get("/health/ready").status_code == 200
                assert load(hasty).status_code == 409
            assert "data: [DONE]" in list(first)
            assert "being unloaded" in list(second)[-2]
    deadline = time.monotonic() + 5
    while admin.get("/v1/models/fine").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert admin.post(UNLOAD, json={"model": "fine"}).status_code == 404


@pytest.mark.parametrize(
    ("model", "reason"),
    [("broken.gguf", "truncated"), ("crash.gguf", "exit code 3"), ("gone/model", "cannot be reached")],
)
def test_what_cannot_be_loaded_is_in_the_list_with_the_reason(admin: httpx.Client, model: str, reason: str) -> None:
    assert load(admin, model, name="bad").status_code == 200
    card = wait_card(admin, "bad", "failed")
    assert reason in card["error"]
    refused = admin.post(CHAT, json=chat_body() | {"model": "bad"})
    assert refused.status_code == 503 and reason in refused.json()["error"]["message"]
    assert admin.get("/health/ready").status_code == 200
    assert admin.post(CHAT, json=chat_body()).status_code == 200
    assert load(admin, "fine.gguf", name="bad").status_code == 200, "a failed one may be replaced"
    wait_card(admin, "bad", "ready")


def test_a_model_that_is_being_loaded_can_be_unloaded(server: Server, admin: httpx.Client) -> None:
    for model in ("sleep60.gguf", "slow/model"):
        load(admin, model, name="slow")
        wait_card(admin, "slow", "loading")
        begun = time.monotonic()
        assert admin.post(UNLOAD, json={"model": "slow"}).status_code == 200
        assert time.monotonic() - begun < 3
        assert len(server.engine_pids()) == 1


def test_progress_of_download_and_loading(admin: httpx.Client) -> None:
    load(admin, "slow/model", name="slow")
    deadline, seen = time.monotonic() + 10, []
    while (card := admin.get("/v1/models/slow").json())["status"] == "loading" and time.monotonic() < deadline:
        seen.append(card["progress"])
        refused = admin.post(CHAT, json=chat_body() | {"model": "slow"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        time.sleep(0.1)
    bytes_here = [p["done"] for p in seen if p["phase"] == "downloading" and p["total"] == 2000]
    assert len(set(bytes_here)) > 5 and bytes_here == sorted(bytes_here)
    wait_card(admin, "slow", "ready")


def test_progress_as_a_stream(admin: httpx.Client) -> None:
    response = load(admin, "steps.gguf", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *cards, done = events_of(response)
    assert done == "[DONE]"
    found = [json.loads(card) for card in cards]
    assert {card["id"] for card in found} == {"steps"}
    percents = [card["progress"]["percent"] for card in found[:-1]]
    assert percents == sorted(percents) and len(set(percents)) > 5
    assert found[-1]["status"] == "ready" and found[-1]["progress"] is None
    assert admin.post(CHAT, json=chat_body() | {"model": "steps"}).status_code == 200
    failing = [json.loads(card) for card in events_of(load(admin, "broken.gguf", stream=True))[:-1]]
    assert failing[-1]["status"] == "failed" and "truncated" in failing[-1]["error"]


def test_who_watches_may_go_away(admin: httpx.Client) -> None:
    with admin.stream("POST", LOAD, json={"model": "steps.gguf", "stream": True}) as response:
        next(response.iter_lines())
    wait_card(admin, "steps", "ready")


def test_replicas_of_a_loaded_model(server: Server, admin: httpx.Client) -> None:
    load(admin, name="pair", replicas=2, kv_cache_bytes=2**21)
    wait_card(admin, "pair", "ready")
    server.wait_metric('deepseek_engine_state{model="pair",replica="1",state="ready"}', 1)
    with pytest.raises(AssertionError, match="no metric"):
        server.metric('deepseek_engine_state{model="pair",replica="2",state="ready"}')
    assert len(server.engine_pids()) == 3


def test_the_engine_of_a_loaded_model_is_restarted(server: Server, admin: httpx.Client) -> None:
    load(admin)
    wait_card(admin, "fine", "ready")
    os.kill(server.engine_pids()[-1], 9)
    server.wait_metric('deepseek_engine_restarts_total{model="fine",replica="0"}', 1)
    wait_card(admin, "fine", "ready")
    assert admin.post(CHAT, json=chat_body() | {"model": "fine"}).status_code == 200


def test_a_batch_waits_for_its_model(admin: httpx.Client, server: Server) -> None:
    load(admin, "steps.gguf", name="night")
    with sdk_of(server, ADMIN) as sdk:
        batch = begin(sdk, jsonl([chat_body(f"[slow] {i}") | {"model": "night"} for i in range(30)]))
        wait(sdk, batch.id, "in_progress", done=3)
        assert admin.post(UNLOAD, json={"model": "night"}).status_code == 200
        time.sleep(0.5)
        batch = sdk.batches.retrieve(batch.id)
        assert batch.status == "in_progress" and batch.request_counts is not None
        assert batch.request_counts.completed < 30 and batch.request_counts.failed == 0
        assert load(admin, "fine.gguf", name="night").status_code == 200
        batch = wait(sdk, batch.id)
        assert batch.status == "completed" and batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (30, 0)


# -- what is refused -----------------------------------------------------------------------------------------------


HOSTILE = [
    "../outside/secret.gguf", "/etc/passwd", "/etc/hostname.gguf", "~/x.gguf", "link.gguf", "out/secret.gguf", "folder",
    "out", "sub/../../models/../outside0/secret.gguf", "circle.gguf", ".", "./", "", " ", "fine.gguf\0", "x" * 900,
    "a/b/c", "file:///etc/passwd", "http://127.0.0.1/x.gguf", "-rf", "$(id)", "%2e%2e/secret.gguf", "none.gguf",
    "\\\\host\\share", "deepseek", "org/../../etc", "org/name:../../x", "．．/secret.gguf",
]  # fmt: skip


@pytest.mark.parametrize("model", HOSTILE)
def test_hostile_names(server: Server, admin: httpx.Client, model: str) -> None:
    answer = load(admin, model, name="bad")
    if answer.status_code == 200:  # of the form of an id on Hugging Face: never a path
        assert model in ("org/name:../../x",)
        return
    assert answer.status_code in (400, 404), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert [card["id"] for card in admin.get("/v1/models").json()["data"]] == [MODEL]


def test_what_is_there_and_what_is_not_cannot_be_told_apart(admin: httpx.Client, folder: Path) -> None:
    outside = next(folder.parent.glob("outside*")) / "secret.gguf"
    answers = [load(admin, str(path)).json()["error"] for path in (outside, outside.with_name("nothing.gguf"))]
    assert answers[0]["code"] == answers[1]["code"] == "model_not_found"
    assert answers[0]["message"].replace("secret", "nothing") == answers[1]["message"]


def test_paths_inside_are_found(folder: Path) -> None:
    assert locate("sub/deep.gguf", folder).model == str(folder / "sub/deep.gguf")
    assert locate(str(folder / "fine.gguf"), folder).name == "fine"
    assert locate("./fine.gguf", folder).weights_bytes == 4
    assert locate("smollm2-135m-instruct", folder).published
    assert locate("org/name:Q8_0", None).published
    with pytest.raises(ApiError):
        locate("fine.gguf", None)
    for name, code in (("empty", "invalid_model"), ("notes.txt", "invalid_model")):
        with pytest.raises(ApiError) as info:
            locate(name, folder)
        assert info.value.body.code == code


def test_an_id_is_never_taken_for_a_path_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert locate("org/name", None).published


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dtype": "fp7"}, "dtype"),
        ({"threads": 0}, "threads"),
        ({"threads": 10**9}, "threads"),
        ({"max_context": "long"}, "max_context"),
        ({"max_running": 10**30}, "max_running"),
        ({"max_batch_tokens": 1}, "max_batch_tokens"),
        ({"speculation": "draft"}, "speculation"),
        ({"attention": "quick"}, "attention"),
        ({"attention_error": 0.6}, "attention_error"),
        ({"rope_scaling": "ntk"}, "rope_scaling"),
        ({"question_tokens": -1}, "question_tokens"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 2, "threads": 1}, "replicas"),
        ({"name": ""}, "name"),
        ({"name": 'x"y\n'}, "name"),
        ({"offline": False}, "offline"),
        ({"draft_model": "/etc/passwd"}, "draft_model"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_settings_that_cannot_be(admin: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = load(admin, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert len(admin.get("/v1/models").json()["data"]) == 1


@pytest.mark.parametrize("fields", [{"model": "huge.gguf"}, {"kv_cache_bytes": 8 << 40}, {"replicas": 4}])
def test_what_does_not_fit_is_refused_before_any_work(admin: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": "huge.gguf" if "replicas" in fields else "fine.gguf"} | fields
    answer = admin.post(LOAD, json=body)
    assert answer.status_code == 507 and answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["code"] == "insufficient_memory" and "GiB" in error["message"]
    assert len(admin.get("/v1/models").json()["data"]) == 1


@pytest.mark.parametrize("name", [MODEL, "tiny-fake-1b", "fine"])
def test_names_that_are_taken(admin: httpx.Client, name: str) -> None:
    load(admin)
    answer = load(admin, "sub/deep.gguf", name=name)
    assert answer.status_code == 409 and answer.json()["error"]["code"] == "model_already_loaded"


def test_what_the_server_starts_with_cannot_be_unloaded_meanwhile() -> None:
    with running_server(
        wait=False, api_keys=KEYS, environment={"DEEPSEEK_FAKE_LOAD": "sleep2"}, drain_timeout=1
    ) as starting:
        starting.wait_status("/health/live", 200)
        with starting.client(headers={"authorization": f"Bearer {ADMIN}"}) as http:
            answer = http.post(UNLOAD, json={"model": MODEL})
            assert answer.status_code == 409 and answer.json()["error"]["code"] == "model_starting"
        starting.wait_status("/health/ready", 200)


# -- further models from the start, and the end --------------------------------------------------------------------


def test_further_models_from_the_start(folder: Path) -> None:
    also = {"two": str(folder / "fine.gguf"), "bad": str(folder / "broken.gguf"), "huge": str(folder / "huge.gguf")}
    with running_server(also=also) as server, server.client() as http:
        wait_card(http, "two", "ready")
        assert http.post(CHAT, json=chat_body() | {"model": "two"}).status_code == 200
        assert "truncated" in wait_card(http, "bad", "failed")["error"]
        assert "GiB" in wait_card(http, "huge", "failed")["error"]
        streams = Streams(server, 2, "[long][slow]", max_tokens=30)
        server.wait_metric("deepseek_engine_running", 2)
        pids = server.engine_pids()
        assert len(pids) == 2
        server.process.terminate()
        assert all(text.rstrip().endswith("[DONE]") for text in streams.wait())
        assert server.wait_exit() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_server_ends_in_the_middle_of_a_download() -> None:
    with running_server(also={"slow": "slow/model"}) as server, server.client() as http:
        wait_card(http, "slow", "loading")
        server.process.terminate()
        assert server.wait_exit(5) == 0
