"""Another process that measures: one JSON object per line in, one out.

All measured engines, ours too, live in processes of their own, so that memory and thread pools are theirs alone. A
process is stopped by a signal while it is not asked: whatever its threads do while they wait, they cannot disturb the
one that is being measured.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepseek.errors import BenchmarkError

_CHUNK = 1 << 16
_LOG_LINES = 6


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_of(pid: int) -> int | None:
    """The same of another process, where the system tells it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


class WorkerProcess:
    """A worker that answers questions in turn.

    Args:
        title: what messages call it.
        command: the program and its arguments.
        environment: variables beside those of this process.
    """

    def __init__(self, title: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.title = title
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._buffer = b""
        self._stopped = False
        try:
            # A group of its own to be stopped as a whole, in this session: the kernel ends a stopped group that has
            # lost its parent, even if that was killed.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
                process_group=0,
                bufsize=0,
            )
        except OSError as error:
            self._log.close()
            raise BenchmarkError(f"{title} cannot be started: {error}.") from error

    def ask(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send one question and wait for its answer.

        Raises:
            BenchmarkError: the worker refused, died, said something else than JSON, or took longer than ``timeout``
                seconds (it is ended then).
        """
        self._signal(signal.SIGCONT)
        line = self._exchange(json.dumps(dict(message)).encode() + b"\n", timeout)
        self._signal(signal.SIGSTOP)
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise BenchmarkError(f"{self.title} answered {line[:200]!r} instead of JSON.") from error
        if not isinstance(reply, dict):
            raise BenchmarkError(f"{self.title} answered {line[:200]!r} instead of an object.")
        if "error" in reply:
            raise BenchmarkError(f"{self.title}: {reply['error']}")
        return reply

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            for end in (signal.SIGTERM, signal.SIGKILL):
                self._signal(end)
                try:
                    self._process.wait(5)
                    break
                except subprocess.TimeoutExpired:
                    continue
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None and not stream.closed:
                stream.close()

    def _exchange(self, data: bytes, timeout: float) -> bytes:
        assert self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + timeout
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except OSError as error:
            raise self._dead() from error
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise BenchmarkError(f"{self.title} did not answer within {timeout:.0f} seconds and was ended.")
            chunk = os.read(descriptor, _CHUNK)
            if not chunk:
                raise self._dead()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _dead(self) -> BenchmarkError:
        code = self._process.wait(10)
        self._log.seek(0)
        lines = self._log.read()[-4000:].decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        self.close()
        return BenchmarkError(f"{self.title} {ending(code)}: " + " | ".join(lines))

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"crashed with {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed with signal {-code}"


def run_program(title: str, command: Sequence[str | Path], timeout: float, *, both: bool = False) -> str:
    """Standard output of a program that ran well, followed by standard error for ``both``.

    Raises:
        BenchmarkError: it cannot be started, fails, or takes longer than ``timeout`` seconds (it is killed then).
    """
    try:
        result = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise BenchmarkError(f"{title} cannot be started: {error}.") from error
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{title} did not end within {timeout:.0f} seconds and was killed.") from error
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        raise BenchmarkError(f"{title} {ending(result.returncode)}: " + " | ".join(lines))
    printed = result.stdout + result.stderr if both else result.stdout
    return printed.decode(errors="replace")
