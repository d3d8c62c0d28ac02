"""Hugging Face repositories, through huggingface-hub itself, from a small hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepseek.errors import CheckpointError
from deepseek.hub.hugging_face import missing_shards, select_files

COMMIT = "a" * 40
REPOSITORIES = {
    "org/plain": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"no",
        "README.md": b"no",
    },
    "org/ggufs": {"m-Q4_K_M.gguf": b"q4", "m-Q8_0.gguf": b"q8", "mmproj-m.gguf": b"eyes"},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"no"},
}


class Hub(BaseHTTPRequestHandler):
    """The few requests that huggingface-hub makes for a snapshot."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        return

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        if repository == "org/gated":
            return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="accept the terms")
        if repository not in REPOSITORIES:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        files = REPOSITORIES[repository]
        if not api:
            content = files[rest[-1]]
            return self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        if rest[:1] == ["tree"]:
            listing = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            return self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        info = {"id": repository, "sha": COMMIT, "siblings": siblings}
        return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def resolve_in_process(endpoint: str, home: Path, name: str, offline: bool = False) -> tuple[str, str]:
    """huggingface-hub reads its settings when it is imported: a fresh process. (error type or "", path or message)."""
    code = (
        "import sys; from deepseek.errors import DeepSeekError; from deepseek.hub.resolve import resolve\n"
        f"try: files = resolve({name!r}, offline={offline}); print(''); print(files.name); print(files.path)\n"
        "except DeepSeekError as error: print(type(error).__name__); print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    first, *rest = result.stdout.splitlines()
    return first, rest[-1]


def test_safetensors_repository_and_its_cache(endpoint, tmp_path):
    error, path = resolve_in_process(endpoint, tmp_path, "org/plain")
    assert not error, path
    assert sorted(file.name for file in Path(path).iterdir()) == ["config.json", "model.safetensors"]
    assert (Path(path) / "model.safetensors").read_bytes() == b"weights"
    dead = "http://127.0.0.1:9"  # nothing listens there: the cache answers
    assert resolve_in_process(dead, tmp_path, "org/plain") == ("", path)
    assert resolve_in_process(dead, tmp_path, "org/plain", offline=True) == ("", path)
    error, message = resolve_in_process(dead, tmp_path, "org/ggufs")
    assert error == "DownloadError"
    assert "cannot be reached" in message
    (Path(path) / "model.safetensors").unlink()  # as after a download that was broken off
    error, message = resolve_in_process(dead, tmp_path, "org/plain")
    assert error == "DownloadError"
    assert "not complete" in message


def test_gguf_repository(endpoint, tmp_path):
    for name, content in (("org/ggufs", b"q4"), ("org/ggufs:q8_0", b"q8"), ("org/ggufs:m-Q8_0.gguf", b"q8")):
        error, path = resolve_in_process(endpoint, tmp_path, name)
        assert not error, path
        assert Path(path).read_bytes() == content


def test_refusals(endpoint, tmp_path):
    assert resolve_in_process(endpoint, tmp_path, "org/missing")[0] == "ModelNotFoundError"
    error, message = resolve_in_process(endpoint, tmp_path, "org/gated")
    assert error == "DownloadError"
    assert "HF_TOKEN" in message
    error, message = resolve_in_process(endpoint, tmp_path, "org/pickled")
    assert error == "CheckpointError"
    assert "safetensors" in message


def test_selection():
    shards = {"a-1.safetensors": 1, "a-2.safetensors": 1, "consolidated.safetensors": 2, "original/x.safetensors": 2}
    texts = {"config.json": 1, "tokenizer.json": 1, "chat_template.jinja": 1, "tokenizer.model": 1}
    wanted, gguf = select_files("o/m", shards | texts | {"x.bin": 1, "a.py": 1}, "")
    assert not gguf
    assert set(wanted) == {"a-1.safetensors", "a-2.safetensors", *texts}
    many = {"m.Q2_K.gguf": 1, "m.IQ4_XS.gguf": 1}
    with pytest.raises(CheckpointError, match="say which"):
        select_files("o/m", many, "")
    with pytest.raises(CheckpointError, match="no GGUF file 'q4_0'"):
        select_files("o/m", {"model.safetensors": 1}, "q4_0")
    assert select_files("o/m", many, "q2_k") == (["m.Q2_K.gguf"], "m.Q2_K.gguf")
    assert select_files("o/m", {"sub/only.gguf": 1}, "") == (["sub/only.gguf"], "sub/only.gguf")


def test_missing_shards(tmp_path):
    assert missing_shards(tmp_path) == []
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "1.safetensors").write_bytes(b"")
    assert missing_shards(tmp_path) == ["2.safetensors"]
