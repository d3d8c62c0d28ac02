"""What is measured of a server: many streams, more than it takes, a newcomer among streams, its own cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.serving.load import Answer, exchange, percentile, request_bytes, together
from benchmarks.serving.server import HOST, ServerProcess
from deepseek.errors import BenchmarkError

MODEL_NAME = "deepseek-v2.1"
TIMEOUT = 900.0


def prompts(count: int, length: int, vocab: int, seed: str) -> list[list[int]]:
    """Random token ids; another seed shares no prefix worth caching."""
    source = random.Random(seed)
    return [[source.randrange(vocab) for _ in range(length)] for _ in range(count)]


def completion(
    prompt: Sequence[int], output: int, *, model: str = MODEL_NAME, stream: bool = True, **fields: Any
) -> bytes:
    """A greedy completion of exactly ``output`` tokens, as a request."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return request_bytes(HOST, "/v1/completions", body)


def check_complete(answers: Sequence[Answer], output: int) -> None:
    """Every answer whole, exactly once. Raises BenchmarkError with what was found instead."""
    problems: Counter[str] = Counter()
    for answer in answers:
        if answer.failure:
            problems[answer.failure] += 1
        elif answer.status != 200:
            problems[f"status {answer.status}: {answer.events[:1]}"] += 1
        elif not answer.done:
            problems["the stream did not end with [DONE]"] += 1
        elif answer.completion_tokens != output:
            problems[f"{answer.completion_tokens} tokens instead of {output}"] += 1
    identities = Counter(answer.documents[0]["id"] for answer in answers if answer.status == 200 and answer.events)
    repeated = sum(count - 1 for count in identities.values())
    if repeated:
        problems["answers that came twice"] += repeated
    if problems:
        raise BenchmarkError(f"of {len(answers)} streams: " + "; ".join(f"{n} x {why}" for why, n in problems.items()))


def stream_round(server: ServerProcess, given: Sequence[Sequence[int]], output: int) -> dict[str, float]:
    """All prompts at once. Tokens per second, time to first token, and what the API process spent per token."""
    requests = [completion(prompt, output) for prompt in given]
    before = server.cpu_seconds()
    answers = asyncio.run(together(HOST, server.port, requests, TIMEOUT))
    spent = server.cpu_seconds() - before
    check_complete(answers, output)
    tokens = len(answers) * output
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    firsts = [answer.first_token for answer in answers]
    return {
        "output_tok_s": tokens / seconds,
        "first_token_p50_s": statistics.median(firsts),
        "first_token_p95_s": percentile(firsts, 0.95),
        "gap_p95_s": percentile([gap for answer in answers for gap in answer.gaps], 0.95),
        "api_cpu_us_per_token": spent / tokens * 1e6,
    }


@contextlib.contextmanager
def probing(port: int, path: str, result: dict[str, Any]) -> Iterator[None]:
    """Ask for ``path`` from another process while the block runs; leaves its findings in ``result``."""
    command = [sys.executable, "-m", "benchmarks.serving.probe", HOST, str(port), path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield
        printed, _ = process.communicate(timeout=60)
        result.update(json.loads(printed))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def overload(server: ServerProcess, given: Sequence[Sequence[int]], output: int) -> dict[str, Any]:
    """More streams than the server takes: who is answered how, and how the liveness probe fares meanwhile."""
    requests = [completion(prompt, output) for prompt in given]
    probe: dict[str, Any] = {}
    with probing(server.port, "/health/live", probe):
        time.sleep(1.0)
        answers = asyncio.run(together(HOST, server.port, requests, TIMEOUT))
        time.sleep(1.0)
    failures = Counter(answer.failure for answer in answers if answer.failure)
    statuses = Counter(answer.status for answer in answers)
    served = [answer for answer in answers if answer.status == 200]
    check_complete(served, output)
    refused = [answer for answer in answers if answer.status in (429, 503)]
    waits = [answer.ended - answer.sent for answer in refused]
    return {
        "offered": len(answers),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "unanswered": {str(why): count for why, count in failures.items()},
        "refused_without_retry_after": sum("retry-after" not in answer.headers for answer in refused),
        "refusal_p99_s": percentile(waits, 0.99) if waits else 0.0,
        "live_p50_ms": statistics.median(probe["milliseconds"]),
        "live_p99_ms": percentile(probe["milliseconds"], 0.99),
        "live_max_ms": max(probe["milliseconds"]),
        "live_probes": len(probe["milliseconds"]),
        "live_failures": len(probe["failures"]),
    }


def newcomers(
    server: ServerProcess, vocab: int, *, streams: int, arrivals: int, length: int, output: int, seed: str
) -> dict[str, float]:
    """While ``streams`` answers run, prompts arrive one after the other; their first tokens, and everybody's gaps."""
    return asyncio.run(_newcomers(server.port, vocab, streams, arrivals, length, output, seed))


async def _newcomers(
    port: int, vocab: int, streams: int, arrivals: int, length: int, output: int, seed: str
) -> dict[str, float]:
    stop = asyncio.Event()
    old: list[Answer] = []
    count = 0

    async def keep_one_running(lane: int) -> None:
        """One answer after the other, so that there are always ``streams`` of them."""
        nonlocal count
        while not stop.is_set():
            count += 1
            prompt = prompts(1, length, vocab, f"{seed}/lane {lane}/{count}")[0]
            answer = await exchange(HOST, port, completion(prompt, 4 * output), TIMEOUT)
            check_complete([answer], 4 * output)
            old.append(answer)

    lanes = [asyncio.create_task(keep_one_running(lane)) for lane in range(streams)]
    await asyncio.sleep(1.0)
    new = []
    for arrival in range(arrivals):
        prompt = prompts(1, length, vocab, f"{seed}/new/{arrival}")[0]
        new.append(await exchange(HOST, port, completion(prompt, output), TIMEOUT))
    stop.set()
    await asyncio.gather(*lanes)
    check_complete(new, output)
    firsts = [answer.first_token for answer in new]
    return {
        "first_token_p50_s": statistics.median(firsts),
        "first_token_p95_s": percentile(firsts, 0.95),
        "new_gap_p95_s": percentile([gap for answer in new for gap in answer.gaps], 0.95),
        "old_gap_p95_s": percentile([gap for answer in old for gap in answer.gaps], 0.95),
    }
