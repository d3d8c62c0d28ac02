"""A server process per module, and clients for it. Everything started here is stopped here, by its process id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from deepseek_serve.config import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
MODEL = "deepseek-v2.1"


class Server:
    """A running server process."""

    def __init__(self, config: ServeConfig, options: dict[str, Any], environment: dict[str, str]) -> None:
        arguments = [msgspec.json.encode(config).decode(), msgspec.json.encode(options).decode()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serve.run_server", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = config.port

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)

    def wait_status(self, path: str, status: int, seconds: float = 15.0) -> httpx.Response:
        """The first response with this status."""
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    response = client.get(path)
                    if response.status_code == status:
                        return response
                assert self.process.poll() is None, self.output
                assert time.monotonic() < deadline, f"{path} did not answer {status}\n{self.output}"
                time.sleep(0.02)

    def metric(self, name: str) -> float:
        """The sum of all samples of this name."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        found = [float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{"))]
        assert found, f"no metric {name}"
        return sum(found)

    def wait_metric(self, name: str, value: float, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.05)

    def engine_pids(self) -> list[int]:
        """Of all engine processes, in the order of their starts."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = sorted(int(pid) for pid in " ".join(path.read_text() for path in children).split())
        return [pid for pid in pids if b"deepseek.runtime.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def engine_pid(self) -> int:
        pids = self.engine_pids()
        assert pids, "the server has no engine process"
        return pids[0]

    def wait_exit(self, seconds: float = 10.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(
    *,
    options: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    wait: bool = True,
    **config: Any,
) -> Iterator[Server]:
    """A server with the scripted engine, ready if ``wait``."""
    with tempfile.TemporaryDirectory(prefix="deepseek-data-") as data_dir:
        settings = ServeConfig(**({"port": free_port(), "data_dir": data_dir} | config))
        server = Server(settings, options or {}, environment or {})
        try:
            if wait:
                server.wait_status("/health/ready", 200)
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def chat_body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def events_of(response: httpx.Response) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
