"""A store that is full, away or slow: live requests go on, and everything recovers by itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deepseek_serve.store.store import DATABASE_FILE
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import ROOT, Server, chat_body, running_server
from tests.serve.postgres import running_postgres
from tests.serve.test_batches import begin as begin_batch
from tests.serve.test_batches import check_complete, jsonl, sdk_of, wait
from tests.serve.test_usage import used

CHAT = "/v1/chat/completions"
UP = "deepseek_store_up"
WAITING = "deepseek_usage_rows_waiting"


def chat(http: httpx.Client) -> None:
    response = http.post(CHAT, json=chat_body())
    assert response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == ANSWER


@contextlib.contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the server's process can grow beyond a few bytes: the kernel refuses as it does on a full disk."""
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def test_full_disk() -> None:
    with running_server() as server, server.client() as http, sdk_of(server) as sdk:
        kept = sdk.files.create(file=io.BytesIO(b"kept"), purpose="user_data")
        batch = begin_batch(sdk, jsonl([chat_body("[seed][slow]", seed=i) for i in range(40)]))
        wait(sdk, batch.id, "in_progress", done=5)
        with full_disk(server):
            for _ in range(5):
                chat(http)
            deadline = time.monotonic() + 10
            while "usage cannot be written" not in server.output:
                assert time.monotonic() < deadline, server.output
                time.sleep(0.05)
            assert server.metric(UP) == 0
            with pytest.raises(openai.APIStatusError) as upload:
                sdk.files.create(file=io.BytesIO(b"x" * 200_000), purpose="user_data")
            assert upload.value.status_code == 507
            assert upload.value.code == "insufficient_storage"  # type: ignore[attr-defined]
            with pytest.raises(openai.APIStatusError) as create:
                sdk.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
            assert create.value.status_code in (503, 507)
            assert sdk.files.content(kept.id).content == b"kept"  # what needs no room works
            assert server.wait_status("/health/ready", 200)
            assert server.metric(WAITING) >= 1 and used(http)["requests"] >= 5
        check_complete(sdk, wait(sdk, batch.id), 40)
        server.wait_metric(WAITING, 0)
        server.wait_metric(UP, 1)
        assert used(http)["requests"] >= 45
        assert "Traceback" not in server.output


def test_small_file_system() -> None:
    """A real file system without room: tmpfs of a megabyte, in a mount namespace of the test's own."""
    unshare = shutil.which("unshare")
    script = Path(__file__).with_name("small_disk.py")
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([unshare, *flags, "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    command = [unshare, *flags, sys.executable, "-m", "tests.serve.small_disk"]
    assert script.exists()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if "cannot mount" in result.stderr:
        pytest.skip("tmpfs cannot be mounted here")
    assert result.returncode == 0, result.stdout + result.stderr


def test_locked_database() -> None:
    """Another program sits on the SQLite file."""
    with running_server() as server, server.client() as http:
        chat(http)
        path = _data_dir(server) / DATABASE_FILE
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        for _ in range(10):
            chat(http)
        assert time.monotonic() - started < 5  # far below the patience of one transaction
        response = http.post("/v1/batches", json={"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h"})
        assert response.status_code == 503 and response.headers["retry-after"] == "5"
        assert response.json()["error"]["code"] == "store_unavailable" and "locked" not in response.text
        other.execute("ROLLBACK")
        other.close()
        server.wait_metric(WAITING, 0, seconds=15)
        assert used(http)["requests"] == 11


def test_postgresql_away() -> None:
    with running_postgres() as postgres:
        url = postgres.new_database()
        with running_server(database_url=url) as server, server.client() as http, sdk_of(server) as sdk:
            batch = begin_batch(sdk, jsonl([chat_body("[seed][slow]", seed=i) for i in range(60)]))
            wait(sdk, batch.id, "in_progress", done=5)
            postgres.stop()
            for _ in range(5):
                chat(http)
            response = http.get("/v1/files")
            assert response.status_code == 503 and response.json()["error"]["code"] == "store_unavailable"
            assert "127.0.0.1" not in response.text and "deepseek" not in response.json()["error"]["message"]
            server.wait_metric(UP, 0)
            assert server.wait_status("/health/ready", 200)
            postgres.start()
            check_complete(sdk, wait(sdk, batch.id), 60)
            server.wait_metric(WAITING, 0, seconds=10)
            assert used(http)["requests"] >= 65


def test_server_starts_without_its_database() -> None:
    with running_postgres() as postgres:
        url = postgres.new_database()
        postgres.stop()
        with running_server(database_url=url) as server, server.client() as http:
            chat(http)
            assert http.get("/v1/batches").status_code == 503
            postgres.start()
            server.wait_metric(UP, 1, seconds=20)
            assert http.get("/v1/batches").json()["data"] == []
            server.wait_metric(WAITING, 0, seconds=10)
            assert used(http)["requests"] == 1


def test_database_of_a_newer_release_ends_the_server(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database, database:
        database.execute("UPDATE deepseek_schema SET version = 99")
    with running_server(data_dir=str(tmp_path), wait=False) as server:
        assert server.wait_exit(15) == 1
        assert "version 99" in server.output and "Traceback" not in server.output


def test_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running_server(data_dir=str(tmp_path / "file" / "x")) as server, server.client() as http:
        chat(http)
        assert http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"}).status_code == 503
        assert "Not a directory" in server.output


def _data_dir(server: Server) -> Path:
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
    return Path(json.loads(arguments[3])["data_dir"])
