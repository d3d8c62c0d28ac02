"""Run in a mount namespace: a server whose data directory is a file system that becomes full, and is emptied again."""

from __future__ import annotations

import ctypes
import io
import sys
import tempfile
from pathlib import Path

import openai

from tests.serve.conftest import chat_body, running_server
from tests.serve.test_batches import sdk_of

ROOM = 1 << 20


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={ROOM}".encode()):
            print("cannot mount tmpfs", file=sys.stderr)
            return 1
        try:
            check(Path(folder))
        finally:
            libc.umount(folder.encode())
    return 0


def check(folder: Path) -> None:
    with running_server(data_dir=str(folder)) as server, server.client() as http, sdk_of(server) as sdk:
        kept = sdk.files.create(file=io.BytesIO(b"x" * 100_000), purpose="user_data")
        try:
            sdk.files.create(file=io.BytesIO(b"x" * 2 * ROOM), purpose="user_data")
        except openai.APIStatusError as error:
            assert error.status_code == 507, error
        else:
            raise AssertionError("it fits")
        assert [file.id for file in sdk.files.list()] == [kept.id]
        batch_input = sdk.files.create(file=io.BytesIO(b"not JSON"), purpose="batch")
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as stream:
            try:
                while stream.write(b"x" * 512):
                    pass
            except OSError:
                pass
        body: dict[str, object] = {
            "input_file_id": batch_input.id,
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        body["metadata"] = {f"key {i}": "x" * 512 for i in range(16)}
        for _ in range(500):  # the database has room for some of them
            response = http.post("/v1/batches", json=body)
            if response.status_code != 200:
                break
        assert response.status_code == 507, response.text
        assert response.json()["error"]["code"] == "insufficient_storage" and "retry-after" not in response.headers
        for _ in range(5):
            assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
        assert server.metric("deepseek_usage_rows_waiting") >= 1
        filler.unlink()
        server.wait_metric("deepseek_usage_rows_waiting", 0, seconds=10)
        sdk.files.create(file=io.BytesIO(b"x" * 100_000), purpose="user_data")
        assert "Traceback" not in server.output, server.output


if __name__ == "__main__":
    sys.exit(main())
