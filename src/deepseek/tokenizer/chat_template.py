"""Chat templates: a model's own Jinja2 program that turns messages into a prompt, rendered in a helper process.

The helper (``template_worker.py``) is started at the first use, compiles the template once, answers in well under a
millisecond, and ends with its parent. A rendering that loops or allocates without end costs the helper, not us.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import ChatTemplateError

_LENGTH = struct.Struct("<I")
_WORKER = Path(__file__).with_name("template_worker.py")


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What one rendering may use.

    Attributes:
        cpu_seconds: processor time.
        wall_seconds: time on the clock, for a machine so busy that processor time hardly passes.
        max_output: characters of the result.
        max_memory: bytes of address space of the helper process, everything included.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    max_output: int = 16 << 20
    max_memory: int = 768 << 20


class _WorkerGoneError(Exception):
    """The helper ended without an answer; ``status`` is its exit status (negative: the signal)."""

    def __init__(self, status: int | None) -> None:
        self.status = status


class ChatTemplate:
    """A compiled chat template. Safe to use from several threads (renderings take turns)."""

    def __init__(self, source: str, limits: TemplateLimits | None = None) -> None:
        self.source = source
        self._limits = limits or TemplateLimits()
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._cleanup: weakref.finalize[..., ChatTemplate] | None = None

    def render(self, context: Mapping[str, Any]) -> str:
        """The prompt for these variables (JSON values).

        Raises ChatTemplateError: the template is malformed (with its line), fails, calls ``raise_exception`` (with
        its message), runs too long or writes too much.
        """
        try:
            request = msgspec.json.encode(context)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(f"the messages cannot be given to the chat template: {error}.") from error
        with self._lock:
            try:
                answer = self._ask(request)
            except _WorkerGoneError as gone:
                self._stop()
                raise ChatTemplateError(self._verdict(gone.status)) from None
        if "text" in answer:
            return str(answer["text"])
        raise ChatTemplateError(_describe(answer))

    def close(self) -> None:
        """End the helper process; the next rendering starts another."""
        with self._lock:
            self._stop()

    def _verdict(self, status: int | None) -> str:
        limits = self._limits
        if status == -signal.SIGPROF:
            return (
                f"the model's chat template ran longer than {limits.cpu_seconds:g} s and was stopped; "
                "it probably loops. Use another template, or /v1/completions with a prompt of your own."
            )
        if status is None:
            return f"the model's chat template gave no answer within {limits.wall_seconds:g} s and was stopped."
        return (
            f"the process that renders the chat template ended (status {status}), probably for want of memory; "
            f"it may use {limits.max_memory >> 20} MiB."
        )

    def _ask(self, request: bytes) -> dict[str, Any]:
        """One rendering. A helper that was already dead (killed from outside while idle) is replaced once."""
        worker = self._worker
        if worker is None or worker.poll() is not None or self._owner != os.getpid():
            worker = self._start()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(_LENGTH.pack(len(request)) + request)
            worker.stdin.flush()
        except BrokenPipeError:
            raise _WorkerGoneError(worker.wait()) from None
        output = worker.stdout
        if not select.select([output], [], [], self._limits.wall_seconds)[0]:
            raise _WorkerGoneError(None)
        header = output.read(_LENGTH.size)
        data = output.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
        if not data:
            raise _WorkerGoneError(worker.wait())
        answer: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        # -P: the folder of the script, ours, stays out of the helper's import path.
        worker = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._cleanup = weakref.finalize(self, _end, worker, os.getpid())
        self._worker, self._owner = worker, os.getpid()
        limits = self._limits
        setup = msgspec.json.encode(
            {
                "template": self.source,
                "cpu_seconds": limits.cpu_seconds,
                "max_output": limits.max_output,
                "max_memory": limits.max_memory,
            }
        )
        assert worker.stdin is not None
        worker.stdin.write(_LENGTH.pack(len(setup)) + setup)
        return worker

    def _stop(self) -> None:
        if self._cleanup is not None:
            self._cleanup()
        self._cleanup = self._worker = None


def _end(worker: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # after a fork the helper stays the parent's
        return
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:  # unsent bytes of a request that will not be answered
                continue


def _describe(answer: Mapping[str, Any]) -> str:
    message, line = str(answer.get("message", "")), answer.get("line")
    place = f" at line {line}" if line else ""
    match answer.get("kind"):
        case "raised":
            return f"the model's chat template refuses these messages: {message}"
        case "malformed":
            return f"the model's chat template is malformed{place}: {message}"
        case "failed":
            return f"the model's chat template failed{place}: {message}"
        case _:
            return f"the model's chat template was stopped: {message}."
