"""A helper process for work on untrusted input: it may loop, allocate or crash, and costs nobody but itself.

Frames on its standard input and output are a little-endian 32-bit length and that many bytes of JSON.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")


class HelperGoneError(Exception):
    """The helper ended without an answer, or gave none in time.

    Attributes:
        status: its exit status (negative: the signal); None if it was too slow.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class Helper:
    """A Python program that is started at the first question, answers one after the other, and ends with its parent.
    Safe to use from several threads, which take turns.

    Args:
        program: arguments of the interpreter: a script, or ``-m`` and a module.
        setup: the first frame it gets, encoded.
        wall_seconds: how long an answer may take on the clock.
    """

    def __init__(self, program: Sequence[str], setup: bytes, wall_seconds: float) -> None:
        self._program = program
        self._setup = setup
        self._wall_seconds = wall_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._cleanup: weakref.finalize[..., Helper] | None = None

    def ask(self, question: bytes) -> dict[str, Any]:
        """The answer to an encoded question. Raises :class:`HelperGoneError`; the next question starts another."""
        with self._lock:
            try:
                return self._ask(question)
            except HelperGoneError:
                self._stop()
                raise

    def close(self) -> None:
        """End the process; the next question starts another."""
        with self._lock:
            self._stop()

    def _ask(self, question: bytes) -> dict[str, Any]:
        """One answer. A helper that was already dead (killed from outside while idle) is replaced once."""
        process = self._process
        if process is None or process.poll() is not None or self._owner != os.getpid():
            process = self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(_LENGTH.pack(len(question)) + question)
            process.stdin.flush()
        except BrokenPipeError:
            raise HelperGoneError(process.wait()) from None
        output = process.stdout
        if not select.select([output], [], [], self._wall_seconds)[0]:
            raise HelperGoneError(None)
        header = output.read(_LENGTH.size)
        data = output.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
        if not data:
            raise HelperGoneError(process.wait())
        answer: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        # -P: the folder of a script, ours, stays out of the helper's import path.
        process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", *self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._cleanup = weakref.finalize(self, _end, process, os.getpid())
        self._process, self._owner = process, os.getpid()
        assert process.stdin is not None
        process.stdin.write(_LENGTH.pack(len(self._setup)) + self._setup)
        return process

    def _stop(self) -> None:
        if self._cleanup is not None:
            self._cleanup()
        self._cleanup = self._process = None


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # after a fork the helper stays the parent's
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:  # unsent bytes of a question that will not be answered
                continue
