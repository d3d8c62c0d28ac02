"""Servers to measure, ours and others', each a process group of its own that is always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from deepseek.benchmark.process import ending
from deepseek.errors import BenchmarkError

HOST = "127.0.0.1"
START_TIMEOUT = 600.0


class ServerProcess:
    """A running server.

    Attributes:
        title: what tables call it.
        port: where it listens, on loopback.
        process: the first process of its group.
    """

    def __init__(self, title: str, command: Sequence[str], port: int, environment: Mapping[str, str] | None) -> None:
        self.title = title
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )
        except OSError as error:
            self._log.close()
            raise BenchmarkError(f"{title} cannot be started: {error}.") from error

    def wait_ready(self, path: str) -> None:
        """Wait until ``path`` answers 200. Raises BenchmarkError with the end of the log."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchmarkError(f"{self.title} {ending(self.process.returncode)}: {self.log_tail()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=5):
                return
            time.sleep(0.2)
        raise BenchmarkError(f"{self.title} was not ready within {START_TIMEOUT:.0f} seconds: {self.log_tail()}")

    def log_tail(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read()[-4000:].decode(errors="replace").strip().splitlines()[-6:])

    def cpu_seconds(self) -> float:
        """Processor time of the first process, its threads included, its children not."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def metrics(self) -> dict[str, float]:
        """Sums of the samples of ``/metrics`` by name."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        sums: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name = line.partition(" ")[0].partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(line.rpartition(" ")[2])
        return sums

    def pause(self) -> None:
        """Stop the whole group, so that it cannot disturb what else is measured."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the group. Safe to call twice."""
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGCONT)
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # children that outlived it
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    title: str, command: Sequence[str], port: int, *, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server until the block ends, ready at its beginning."""
    server = ServerProcess(title, command, port, environment)
    try:
        server.wait_ready(ready)
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def our_server(
    model: str | Path, *options: str, data_dir: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """`deepseek serve` with these options; its data are in ``data_dir``, or go with it."""
    port = free_port()
    command = [sys.executable, "-m", "deepseek_cli.main", "serve", str(model), "--port", str(port), *options]
    with (
        tempfile.TemporaryDirectory(prefix="deepseek-data-") as own,
        running(
            "deepseek",
            command,
            port,
            ready="/health/ready",
            environment={"DEEPSEEK_DATA": str(data_dir or own), **(environment or {})},
        ) as server,
    ):
        yield server
