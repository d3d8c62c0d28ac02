"""The installed command, serving a real model in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KEY = "sk-end-to-end"
START_SECONDS = 180


class RealServer:
    """`deepseek serve` on a free loopback port."""

    def __init__(self, model: str, *options: str) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        command = [
            sys.executable,
            "-m",
            "deepseek_cli.main",
            "serve",
            model,
            "--port",
            "0",
            "--dtype",
            "fp32",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, text=True)
        self.url = self._wait()

    @property
    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _wait(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"DeepSeek V2\.1 at (http://\S+)/v1", self.output):
                return found[1]
            time.sleep(0.1)
        self.stop()
        raise AssertionError(f"the server did not come up:\n{self.output}")

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture(scope="session")
def server(test_model: Path) -> Iterator[RealServer]:
    running = RealServer(str(test_model), "--api-key", KEY, "--kv-cache-bytes", "512MiB", "--tool-parser", "hermes")
    try:
        yield running
    finally:
        running.stop()
