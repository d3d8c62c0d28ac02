"""The server's figures, on loopback: `python -m benchmarks.serving [SCENARIO ...] [--json FILE]`."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.serving import faults, scenarios
from benchmarks.serving.peers import CONTEXT, SERVERS
from benchmarks.serving.server import our_server
from deepseek.benchmark.engine import EngineProcess
from deepseek.benchmark.peers.base import PeerSettings
from deepseek.benchmark.scenarios import Scenario
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError
from deepseek.hub.cache import cache_dir
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.machine import describe_machine

PROMPT, OUTPUT = 64, 32
STREAMS = 1000
OFFERED = 3000
DISCONNECTS = 10_000
RUNNING = 256
"""Sequences in one step, for the server and the offline engine alike."""
KV_CACHE = 2 << 30
PEER_STREAMS, PEER_PROMPT, PEER_OUTPUT = 32, 128, 64


class Run:
    """One run: which model, how often, how large."""

    def __init__(self, model: str, dtype: str, rounds: int, scale: float) -> None:
        self.rounds = rounds
        self.scale = scale
        self.config = EngineConfig(
            model=model, dtype=dtype, max_running=RUNNING, kv_cache_bytes=KV_CACHE, speculation="off"
        )

    def count(self, number: int) -> int:
        return max(2, int(number * self.scale))

    @property
    def options(self) -> list[str]:
        config = self.config
        return ["--dtype", config.dtype, "--max-running", str(config.max_running), "--kv-cache-bytes", str(KV_CACHE),
                "--speculation", config.speculation, "--log-level", "warning"]  # fmt: skip


def streams(run: Run) -> dict[str, Any]:
    """Many streams at once, next to the offline engine with the same settings and prompts, in turn."""
    count = run.count(STREAMS)
    scenario = Scenario("streams", f"{count} requests of {PROMPT} + {OUTPUT}", count, PROMPT, OUTPUT, ("output_tok_s",))
    rounds = []
    with ExitStack() as stack:
        server = stack.enter_context(our_server(run.config.model, *run.options, "--max-sequences", str(count)))
        offline = EngineProcess("the offline engine", run.config)
        stack.callback(offline.close)
        vocab = int(offline.info["vocab_size"])
        for number in range(-1, run.rounds):  # the first, short, warms both up
            size = 16 if number < 0 else count
            given = scenarios.prompts(size, PROMPT, vocab, f"streams/{number}")
            timing = offline.time(scenario, given)
            found = scenarios.stream_round(server, given, OUTPUT)
            if number < 0:
                continue
            found["offline_tok_s"] = timing.tokens / timing.total
            found["share_of_offline"] = found["output_tok_s"] / found["offline_tok_s"]
            rounds.append(found)
            say(f"  {found['output_tok_s']:.0f} tok/s, offline {found['offline_tok_s']:.0f}")
    return {"streams": count, "rounds": rounds, "median": medians(rounds)}


def overload(run: Run) -> dict[str, Any]:
    """Three times as many streams as are admitted."""
    limit, offered = run.count(STREAMS), run.count(OFFERED)
    with our_server(run.config.model, *run.options, "--max-sequences", str(limit)) as server:
        given = scenarios.prompts(offered, PROMPT, vocab_of(run), "overload")
        return {"limit": limit, **scenarios.overload(server, given, OUTPUT)}


def newcomer(run: Run) -> dict[str, Any]:
    """A prompt that arrives while eight streams run."""
    rounds = []
    with our_server(run.config.model, *run.options) as server:
        for number in range(run.rounds):
            found = scenarios.newcomers(
                server, vocab_of(run), streams=8, arrivals=run.count(20), length=PROMPT, output=OUTPUT, seed=str(number)
            )
            rounds.append(found)
    return {"rounds": rounds, "median": medians(rounds)}


def peers(run: Run) -> dict[str, Any]:
    """Concurrent streams of our server and of others that are installed, in turn; the others' processes are stopped
    meanwhile."""
    settings = PeerSettings(
        model=resolve(run.config.model).path,
        threads=len(os.sched_getaffinity(0)),
        max_context=CONTEXT,
        max_requests=PEER_STREAMS,
        our_dtypes=(run.config.dtype,),
        features=frozenset(),
        cache=cache_dir() / "peers",
    )
    found: dict[str, list[dict[str, float]]] = {}
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(our_server(run.config.model, *run.options))]
        for name, start in SERVERS.items():
            servers[-1].pause()
            try:
                servers.append(stack.enter_context(start(settings, scenarios.MODEL_NAME)))
            except BenchmarkError as error:
                absent[name] = str(error)
                say(f"  without {name}: {error}")
                servers[-1].resume()
        for server in servers[:-1]:
            server.pause()
        for number in range(-1, run.rounds):  # the first, short, warms all up
            for server in servers:
                server.resume()
                size, output = (4, 8) if number < 0 else (PEER_STREAMS, PEER_OUTPUT)
                given = scenarios.prompts(size, PEER_PROMPT, vocab_of(run), f"peers/{number}")
                figures = scenarios.stream_round(server, given, output)
                server.pause()
                if number >= 0:
                    found.setdefault(server.title, []).append(figures)
                    say(f"  {server.title}: {figures['output_tok_s']:.0f} tok/s")
        for server in servers:
            server.resume()
    mine = found["deepseek"]
    return {
        "absent": absent,
        "rounds": found,
        "median": {name: medians(rounds) for name, rounds in found.items()},
        "ours_over_theirs": {
            name: medians([_ratios(ours, theirs) for ours, theirs in zip(mine, rounds, strict=True)])
            for name, rounds in found.items()
            if rounds is not mine
        },
    }


def disconnects(run: Run) -> dict[str, Any]:
    """Clients that leave at random moments."""
    with our_server(run.config.model, *run.options) as server:
        return faults.disconnects(server, vocab_of(run), run.count(DISCONNECTS), 4 * OUTPUT)


def broken(run: Run) -> dict[str, Any]:
    """A killed engine, and a frozen one."""
    found = {}
    with our_server(run.config.model, *run.options) as server:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            found[number.name] = faults.broken_engine(server, vocab_of(run), number, streams=8)
    return found


def slow(run: Run) -> dict[str, Any]:
    """Readers who do not read."""
    with our_server(run.config.model, *run.options) as server:
        return faults.slow_reader(server, vocab_of(run), readers=8, streams=8, output=8 * OUTPUT)


def disk(run: Run) -> dict[str, Any]:
    """A full disk under the store."""
    with (
        faults.small_disk(4 << 20) as folder,
        our_server(run.config.model, *run.options, data_dir=folder) as server,
    ):
        return faults.full_disk(server, vocab_of(run), folder)


def clock(run: Run) -> dict[str, Any]:
    """The wall clock is set; libfaketime stands between it and the server."""
    if not faults.FAKETIME.exists():
        return {"not_measured": "libfaketime is not installed (Debian: apt install libfaketime)"}
    with tempfile.TemporaryDirectory() as folder:
        offset = Path(folder) / "offset"
        offset.write_text("+0\n", encoding="ascii")
        environment = {
            "LD_PRELOAD": str(faults.FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        with our_server(run.config.model, *run.options, environment=environment) as server:
            return faults.set_clock(server, vocab_of(run), offset, streams=8, output=8 * OUTPUT)


def _ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    return {name: ours[name] / theirs[name] for name in ("output_tok_s", "first_token_p50_s", "first_token_p95_s")}


def vocab_of(run: Run) -> int:
    checkpoint = open_checkpoint(resolve(run.config.model).path)
    try:
        return int(checkpoint.config["vocab_size"])
    finally:
        checkpoint.close()


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def say(line: str) -> None:
    print(line, flush=True)


def show(figures: Mapping[str, Any], indent: str = "  ") -> None:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            say(f"{indent}{name}")
            show(value, indent + "  ")
        elif name != "rounds":
            say(f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}")


SCENARIOS: Mapping[str, Callable[[Run], dict[str, Any]]] = {
    "streams": streams,
    "overload": overload,
    "newcomer": newcomer,
    "peers": peers,
    "disconnects": disconnects,
    "broken": broken,
    "slow": slow,
    "disk": disk,
    "clock": clock,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="all by default")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the requests; 0.01 shows that it runs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    # Asked to end, end the servers that were started too: leave through their `finally`.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    uvloop.install()
    run = Run(arguments.model, arguments.dtype, arguments.rounds, arguments.scale)
    result: dict[str, Any] = {"machine": describe_machine(), "config": msgspec.to_builtins(run.config)}
    for name in arguments.scenario or SCENARIOS:
        say(f"{name} ...")
        result[name] = SCENARIOS[name](run)
        show(result[name])
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


if __name__ == "__main__":
    main()
