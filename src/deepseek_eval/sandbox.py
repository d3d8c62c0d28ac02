"""Programs that a model wrote, run where they can do no harm.

A program gets a process, a folder and some seconds. It cannot open sockets, start processes, signal others, read files
other than Python's own, or write files outside of its folder, which is deleted afterwards. This needs Linux 6.2 with
Landlock and seccomp on x86_64 or aarch64, and no privileges. It protects the machine from the program; it does not
keep a program that looks for its tests from finding them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from deepseek.errors import ConfigurationError

CHILD = Path(__file__).with_name("sandbox_child.py")
MOST_OUTPUT = 65_536
"""Bytes of standard output and standard error together; more ends the program."""
MOST_FILE = 4 * 2**20
MOST_FOLDER = 16 * 2**20
"""Bytes of one file, and of all files of the folder."""
_LOOK = 0.05  # seconds between looks at the folder


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a program.

    Attributes:
        passed: it ran to its end without an exception.
        reason: why it did not: ``timeout``, ``too much output``, ``too many files``, ``killed by SIGSEGV``, or the
            exception with its message and line.
        stdout, stderr: what it wrote, at most :data:`MOST_OUTPUT` bytes together.
        seconds: wall clock, the start of Python included.
    """

    passed: bool
    reason: str = ""
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


def obstacle() -> str | None:
    """Why programs cannot be contained on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return f"generated programs run on Linux only, where they can be contained; this is {sys.platform}."
    from deepseek_eval.sandbox_child import MACHINES, NEEDED_LANDLOCK, landlock_version

    if os.uname().machine not in MACHINES:
        return f"generated programs can be contained on {' and '.join(MACHINES)}, and this is {os.uname().machine}."
    if landlock_version() < NEEDED_LANDLOCK:
        return (
            "generated programs cannot be contained: this kernel offers no Landlock that guards files (Linux 6.2, with "
            "'landlock' in /sys/kernel/security/lsm). Run these tasks in a virtual machine that has it."
        )
    return None


def run_program(source: str, *, timeout: float = 10.0, memory_bytes: int = 512 * 2**20) -> Outcome:
    """Run Python source with the standard library, contained.

    Args:
        source: the program with its tests; it passes if it ends without an exception.
        timeout: seconds of wall clock, and of processor time of all its threads together.
        memory_bytes: of address space.

    Raises:
        ConfigurationError: programs cannot be contained here (:func:`obstacle`), or the limits are none.
    """
    if (problem := obstacle()) is not None:
        raise ConfigurationError(problem)
    if timeout <= 0 or memory_bytes < 64 * 2**20:
        raise ConfigurationError("a program needs a timeout above 0 and 64 MiB of memory at least.")
    with tempfile.TemporaryDirectory(prefix="deepseek-eval-") as folder:
        return _run_in(folder, source, timeout, memory_bytes)


def _run_in(folder: str, source: str, timeout: float, memory_bytes: int) -> Outcome:
    readable, writable = os.pipe()
    limits = (memory_bytes, math.ceil(timeout), MOST_FILE, writable)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD), *map(str, limits)],
        cwd=folder,
        env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(writable,),
        start_new_session=True,
    )
    os.close(writable)
    with os.fdopen(readable, "rb") as verdict:
        try:
            written, ended = _watch(
                process, verdict, source.encode("utf-8", "replace"), Path(folder), started + timeout
            )
        finally:
            _kill(process)
    seconds = time.monotonic() - started
    out, error, told = (bytes(written[name]).decode("utf-8", "replace") for name in ("out", "error", "verdict"))
    result = _verdict(told)
    if (problem := result.get("setup")) is not None:
        raise ConfigurationError(f"a generated program could not be contained: {problem}.")
    reason = ended or str(result.get("reason", _death(process.returncode)))
    passed = not ended and result.get("passed") is True
    return Outcome(passed=passed, reason="" if passed else reason, stdout=out, stderr=error, seconds=seconds)


def _watch(
    process: subprocess.Popen[bytes], verdict: IO[bytes], source: bytes, folder: Path, deadline: float
) -> tuple[dict[str, bytearray], str]:
    """Feed and read the process until it ends. Returns what it wrote, and why it must end now ("" if it ended)."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    written = {"out": bytearray(), "error": bytearray(), "verdict": bytearray()}
    pending = memoryview(source)
    with selectors.DefaultSelector() as selector:
        for stream, name in ((process.stdout, "out"), (process.stderr, "error"), (verdict, "verdict")):
            selector.register(stream, selectors.EVENT_READ, name)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE, "in")
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return written, "timeout"
            for key, _ in selector.select(min(_LOOK, deadline - now)):
                if key.data == "in":
                    pending = _feed(process.stdin, pending)
                    if not pending:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, 65_536)
                written[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, written.values())) > MOST_OUTPUT:
                _cut(written)
                return written, "too much output"
            if _size(folder) > MOST_FOLDER:
                return written, "too many files"
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return written, "timeout"
    return written, ""


def _feed(stream: IO[bytes], pending: memoryview) -> memoryview:
    """What is left to be written; nothing when the other side is gone."""
    try:
        return pending[os.write(stream.fileno(), pending) :]
    except BrokenPipeError:
        return pending[len(pending) :]


def _cut(written: dict[str, bytearray]) -> None:
    for name, room in (("out", MOST_OUTPUT // 2), ("error", MOST_OUTPUT // 2)):
        del written[name][room:]


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; the program can make no folders in it."""
    total = 0
    for entry in folder.iterdir():
        try:
            total += entry.lstat().st_size
        except FileNotFoundError:  # gone meanwhile
            continue
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _verdict(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _death(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "timeout"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"left with exit code {code}"
