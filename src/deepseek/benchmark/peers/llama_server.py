"""llama.cpp's server for one measurement: code editing with and without its n-gram speculation, or a long context."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.benchmark.peers.llama_build import Timings, parse_completion
from deepseek.benchmark.process import ending, peak_memory_of
from deepseek.errors import BenchmarkError

START_TIMEOUT = 300.0
ANSWER_TIMEOUT = 600.0

SPECULATION: dict[str, tuple[str, ...]] = {
    "none": (),
    "ngram-simple": ("--spec-type", "ngram-simple"),
    "ngram-simple 4/8": (
        "--spec-type",
        "ngram-simple",
        "--spec-ngram-simple-size-n",
        "4",
        "--spec-ngram-simple-size-m",
        "8",
    ),
    "ngram-map-k": ("--spec-type", "ngram-map-k"),
    "ngram-mod": ("--spec-type", "ngram-mod"),
    "ngram-cache": ("--spec-type", "ngram-cache"),
}
"""Label -> options. All are tried; the best in a round counts as llama.cpp's."""


def decode_rate(command: Sequence[str], prompts: Sequence[Sequence[int]], output: int) -> float:
    """Tokens per second of decoding ``prompts`` one after the other, by the server's own clock, after one unmeasured
    answer. Raises BenchmarkError."""
    with _server(command) as server:
        _complete(server.url, prompts[0], 4)
        tokens, seconds = 0, 0.0
        for prompt in prompts:
            timings = parse_completion(_complete(server.url, prompt, output))
            tokens, seconds = tokens + timings.tokens, seconds + timings.seconds
    if tokens <= len(prompts) or seconds <= 0:
        raise BenchmarkError("llama-server's answers ended after one token; nothing was measured.")
    return tokens / seconds


def long_context(
    command: Sequence[str], prompt: Sequence[int], output: int, timeout: float
) -> tuple[Timings, int | None]:
    """Times of one long prompt and ``output`` tokens behind it, and the server's peak memory in bytes.

    Raises BenchmarkError, also when it takes longer than ``timeout`` seconds.
    """
    with _server(command) as server:
        timings = parse_completion(_complete(server.url, prompt, output, timeout=timeout, ignore_eos=True))
        peak = peak_memory_of(server.pid)
    if timings.prompt_tokens != len(prompt) or timings.tokens != output:
        raise BenchmarkError(
            f"llama-server took {timings.prompt_tokens} tokens of {len(prompt)} and answered with {timings.tokens} of "
            f"{output}: nothing was measured."
        )
    return timings, peak


@dataclass(frozen=True)
class _Server:
    url: str
    pid: int


@contextmanager
def _server(command: Sequence[str]) -> Iterator[_Server]:
    """Run the server until the block ends."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise BenchmarkError(f"llama-server cannot be started: {error}.") from error
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield _Server(f"http://127.0.0.1:{port}", process.pid)
        except BenchmarkError as error:
            _say_how_it_ended(process, log, error)
            raise
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _dead(process, log)
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not listening, or still loading (503)
            time.sleep(0.2)
    raise BenchmarkError(f"llama-server was not ready within {START_TIMEOUT:.0f} seconds.")


def _say_how_it_ended(process: subprocess.Popen[bytes], log: Any, error: BenchmarkError) -> None:
    """Raises BenchmarkError where an answer failed because the server died."""
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        return
    raise _dead(process, log) from error


def _dead(process: subprocess.Popen[bytes], log: Any) -> BenchmarkError:
    log.seek(0)
    lines = log.read()[-2000:].decode(errors="replace").strip().splitlines()[-4:]
    return BenchmarkError(f"llama-server {ending(process.returncode)}: " + " | ".join(lines))


def _complete(
    url: str, prompt: Sequence[int], output: int, *, timeout: float = ANSWER_TIMEOUT, ignore_eos: bool = False
) -> dict[str, Any]:
    body = {
        "prompt": list(prompt),
        "n_predict": output,
        "temperature": 0,
        "top_k": 1,
        "cache_prompt": False,
        "ignore_eos": ignore_eos,
    }
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            reply: dict[str, Any] = json.load(answer)
            return reply
    except urllib.error.HTTPError as error:
        raise BenchmarkError(f"llama-server answered {error.code}: {error.read()[:300]!r}") from error
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"llama-server failed to answer: {error}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_program(build: Path) -> Path | None:
    """The program, if the build has it."""
    path = build / "llama-server"
    return path if path.is_file() else None
