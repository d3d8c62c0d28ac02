"""What a server does when clients leave, its engine dies or freezes, its disk is full, its clock is set."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.load import Answer, exchange, percentile, request_bytes
from benchmarks.serving.scenarios import TIMEOUT, check_complete, completion, probing, prompts
from benchmarks.serving.server import HOST, ServerProcess
from deepseek.errors import BenchmarkError

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
SETTLE = 30.0  # seconds within which everything must be back to what it was
LEAVERS = 64  # clients at a time


def engine_pid(server: ServerProcess) -> int:
    """The engine's process. Raises BenchmarkError when there is none."""
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "deepseek.runtime.worker" in child.cmdline():
                return child.pid
    raise BenchmarkError("the server has no engine process")


def holdings(server: ServerProcess) -> dict[str, float]:
    """What requests may leave behind, in the server and in its engine."""
    metrics = server.metrics()
    return {
        "answers": metrics["deepseek_admitted_answers"],
        "running": metrics["deepseek_engine_running"],
        "pages_held": metrics["deepseek_engine_kv_pages"] - metrics["deepseek_engine_kv_pages_free"],
        "tasks": metrics["deepseek_tasks"],
        "server_fds": metrics["process_open_fds"],
        "engine_fds": metrics["deepseek_engine_process_open_fds"],
    }


def megabytes(server: ServerProcess) -> dict[str, float]:
    metrics = server.metrics()
    return {
        "server": metrics["process_resident_memory_bytes"] / 1e6,
        "engine": metrics["deepseek_engine_process_resident_memory_bytes"] / 1e6,
    }


def settled(server: ServerProcess, wanted: dict[str, float]) -> tuple[dict[str, float], float]:
    """Wait until nothing is held beyond ``wanted``; returns what is held then, and the seconds it took."""
    started = time.perf_counter()
    while True:
        now = holdings(server)
        if all(now[name] <= wanted[name] for name in wanted) or time.perf_counter() - started > SETTLE:
            return now, time.perf_counter() - started
        time.sleep(0.1)


async def _leave(port: int, request: bytes, seconds: float) -> bool:
    """Send a request and close the connection after so long; True if the answer was over by then."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        async with asyncio.timeout(seconds):
            return b'"usage"' in await reader.read()
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()  # a reset, as a process that dies sends


def disconnects(server: ServerProcess, vocab: int, count: int, output: int) -> dict[str, Any]:
    """Clients that leave at random moments, before, between and behind their tokens, streaming or not."""
    source = random.Random("disconnects")
    requests = [
        completion(prompt, output, stream=bool(source.getrandbits(1)))
        for prompt in prompts(min(count, 256), 64, vocab, "disconnects")
    ]

    async def leave(number: int) -> int:
        gate = asyncio.Semaphore(LEAVERS)

        async def one(i: int) -> bool:
            async with gate:
                patience = source.expovariate(1 / 0.15) if i % 20 else 30.0  # some stay to the end
                return await _leave(server.port, requests[i % len(requests)], patience)

        return sum(await asyncio.gather(*(one(i) for i in range(number))))

    asyncio.run(leave(count // 5))  # every page of the KV cache is touched, pools and caches reach their size
    before, _ = settled(server, {"answers": 0, "running": 0})
    memory = megabytes(server)
    finished = asyncio.run(leave(count))
    after, seconds = settled(server, before)
    grown = megabytes(server)
    return {
        "disconnects": count - finished,
        "answered_before": finished,
        "held_before": before,
        "held_after": after,
        "back_to_baseline": all(after[name] <= before[name] for name in before),
        "settled_in_s": seconds,
        "memory_growth_mb": {name: grown[name] - memory[name] for name in memory},
        "memory_mb": grown,
    }


def broken_engine(server: ServerProcess, vocab: int, number: signal.Signals, *, streams: int) -> dict[str, Any]:
    """The engine gets a signal while ``streams`` answers run: when they are told, when it is back."""
    probe: dict[str, Any] = {}
    with probing(server.port, "/health/live", probe):
        found = asyncio.run(_broken_engine(server, vocab, number, streams))
    return found | {"live_p99_ms": percentile(probe["milliseconds"], 0.99), "live_failures": len(probe["failures"])}


async def _broken_engine(server: ServerProcess, vocab: int, number: signal.Signals, streams: int) -> dict[str, Any]:
    given = prompts(streams, 64, vocab, f"broken/{number}")
    running = [asyncio.create_task(exchange(HOST, server.port, completion(p, 2000), TIMEOUT)) for p in given]
    await asyncio.sleep(2.0)
    os.kill(engine_pid(server), number)
    hit = time.perf_counter()
    unready = await _until(server, "/health/ready", None, ready=False) - hit
    answers = await asyncio.gather(*running)
    told = [answer.ended - hit for answer in answers if answer.failure is None]
    back = await _until(server, "/v1/completions", completion(given[0], 1), ready=True) - hit
    return {
        "streams": streams,
        "streams_told_the_reason": sum(b'"error"' in answer.events[-1] for answer in answers if answer.events),
        "told_after_s": max(told, default=float("nan")),
        "not_ready_after_s": unready,
        "serves_again_after_s": back,
    }


async def _until(server: ServerProcess, path: str, request: bytes | None, *, ready: bool) -> float:
    """Ask until the status is 200, or is not; returns when that was."""
    ask = request or request_bytes(HOST, path, None)
    deadline = time.perf_counter() + 120
    while time.perf_counter() < deadline:
        answer = await exchange(HOST, server.port, ask, 10.0)
        failed = any(b'"error"' in event for event in answer.events)
        if (answer.status == 200 and not failed) == ready:
            return time.perf_counter()
        await asyncio.sleep(0.02)
    raise BenchmarkError(f"{path} did not {'recover' if ready else 'fail'} within two minutes")


def slow_reader(server: ServerProcess, vocab: int, *, readers: int, streams: int, output: int) -> dict[str, Any]:
    """Clients who ask for long streams and read nothing: what the others notice."""

    async def others(seed: str) -> list[Answer]:
        given = prompts(streams, 64, vocab, seed)
        answers = await asyncio.gather(*(exchange(HOST, server.port, completion(p, output), TIMEOUT) for p in given))
        check_complete(answers, output)
        return list(answers)

    alone = asyncio.run(others("alone"))
    memory = megabytes(server)
    sockets = []
    try:
        for prompt in prompts(readers, 64, vocab, "slow"):
            sockets.append(_deaf_socket(server.port, completion(prompt, 4000, logprobs=5)))
        time.sleep(1.0)
        beside = asyncio.run(others("beside"))
        grown = megabytes(server)["server"] - memory["server"]
    finally:
        for stuck in sockets:
            stuck.close()
    left, seconds = settled(server, {"answers": 0, "running": 0})
    return {
        "slow_readers": readers,
        "gap_p95_ms_without": 1e3 * percentile([gap for answer in alone for gap in answer.gaps], 0.95),
        "gap_p95_ms_with": 1e3 * percentile([gap for answer in beside for gap in answer.gaps], 0.95),
        "server_memory_growth_mb": grown,
        "answers_left": left["answers"],
        "settled_in_s": seconds,
    }


def _deaf_socket(port: int, request: bytes) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((HOST, port))
    connection.sendall(request)
    return connection


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of so many bytes. Raises BenchmarkError where it cannot be mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="deepseek-small-") as folder:
        if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()):
            raise BenchmarkError("a small file system cannot be mounted here; run as root")
        try:
            yield Path(folder)
        finally:
            libc.umount2(folder.encode(), 2)  # MNT_DETACH: the server may still be ending


def full_disk(server: ServerProcess, vocab: int, folder: Path) -> dict[str, Any]:
    """The data directory's disk is full: chats go on, uploads are told, and all is well when there is room again."""
    upload = _upload(b"x" * 100_000)
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"x" * 4096):
            pass
    statuses: Counter[int] = Counter()

    async def ask() -> tuple[int, list[float]]:
        uploaded = await exchange(HOST, server.port, upload, 30.0)
        times = []
        for prompt in prompts(20, 64, vocab, "full"):
            answer = await exchange(HOST, server.port, completion(prompt, 8), 60.0)
            statuses[answer.status] += 1
            times.append(answer.ended - answer.sent)
        return uploaded.status, times

    refused, times = asyncio.run(ask())
    filler.unlink()
    freed = time.perf_counter()
    while asyncio.run(exchange(HOST, server.port, upload, 30.0)).status != 200:
        if time.perf_counter() - freed > SETTLE:
            raise BenchmarkError("uploads fail though the disk has room again")
        time.sleep(0.05)
    return {
        "upload_when_full": refused,
        "answers_when_full": {str(status): count for status, count in statuses.items()},
        "answer_p50_s": statistics.median(times),
        "uploads_again_after_s": time.perf_counter() - freed,
    }


def _upload(content: bytes) -> bytes:
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f.txt"\r\n\r\n' + content
    body = head + part + b"\r\n--b--\r\n"
    lines = ["POST /v1/files HTTP/1.1", f"host: {HOST}", "connection: close", f"content-length: {len(body)}"]
    return ("\r\n".join([*lines, "content-type: multipart/form-data; boundary=b"]) + "\r\n\r\n").encode() + body


def set_clock(server: ServerProcess, vocab: int, offset: Path, *, streams: int, output: int) -> dict[str, Any]:
    """The wall clock is set by a year, forward and back, while answers stream."""

    async def stream_through() -> list[Answer]:
        given = prompts(streams, 64, vocab, "clock")
        tasks = [asyncio.create_task(exchange(HOST, server.port, completion(p, output), TIMEOUT)) for p in given]
        for step in ("+365d", "-365d", "+0"):
            await asyncio.sleep(0.5)
            offset.write_text(step + "\n", encoding="ascii")
        return list(await asyncio.gather(*tasks))

    answers = asyncio.run(stream_through())
    check_complete(answers, output)
    return {
        "streams": streams,
        "complete": len(answers),
        "gap_p95_ms": 1e3 * percentile([gap for answer in answers for gap in answer.gaps], 0.95),
        "ready": asyncio.run(exchange(HOST, server.port, request_bytes(HOST, "/health/ready", None), 10.0)).status,
    }
