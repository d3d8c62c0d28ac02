"""Hugging Face transformers on the same card, shape and prompts, in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch

from deepseek.benchmark.peers import PEERS
from deepseek.benchmark.peers.base import PeerSettings
from deepseek.benchmark.peers.python_peer import PythonPeer
from deepseek.benchmark.scenarios import Scenario, random_prompts
from deepseek.engine.computation import Compute, Launcher, Outputs
from deepseek.errors import BenchmarkError
from deepseek.hub.resolve import resolve

_VOCAB = 32_000  # no shape has fewer


class Kept(Protocol):
    """Where figures go."""

    values: dict[str, Any]

    def put(self, name: str, value: float, unit: str) -> None: ...


class Waiting:
    """A launcher that counts the seconds for which the host waits for outputs."""

    def __init__(self, own: Launcher) -> None:
        self.own = own
        self.seconds = 0.0

    @property
    def device(self) -> torch.device | None:
        return self.own.device

    def start(self, compute: Compute) -> Compute:
        wait = self.own.start(compute)

        def timed() -> Outputs:
            began = time.perf_counter()
            outputs = wait()
            self.seconds += time.perf_counter() - began
            return outputs

        return timed


def measure_peer(figures: Kept, shape: str, device: str, streams: int, prompt: int, output: int) -> None:
    """Its output and decode rates, and ours over them; why there are none where it cannot run. It compiles in a first
    run of the same shape, which is not counted."""
    peer = PEERS["transformers"]
    assert isinstance(peer, PythonPeer)
    settings = PeerSettings(
        model=resolve(f"shape:{shape}").path,
        threads=torch.get_num_threads(),
        max_context=prompt + output,
        max_requests=streams,
        our_dtypes=(),
        features=frozenset(),
        cache=Path(),
        device=device,
    )
    name = f"{shape}: {streams} streams, {prompt} + {output}"
    work = Scenario("batch", name, streams, prompt, output, ("output", "decode"))
    try:
        if (reason := peer.available()) is not None:
            raise BenchmarkError(reason)
        contender = peer.open("bf16", settings)
        try:
            contender.run(work, random_prompts(work, _VOCAB, 1))
            rates = contender.run(work, random_prompts(work, _VOCAB, 2))
        finally:
            contender.close()
    except BenchmarkError as error:
        figures.values["transformers"] = str(error)
        print(f"transformers was not measured: {error}", flush=True)
        return
    figures.values["transformers"] = f"{contender.version}: {contender.flags(work)}"
    for kind, rate in rates.items():
        figures.put(f"transformers {name}, {kind}", rate, "tok/s")
        for dtype in ("bf16", "fp16"):
            ours = figures.values.get(f"{shape} {dtype}: {streams} streams, {prompt} + {output}, {kind}")
            if ours:
                figures.put(f"ours over transformers, {name}, {kind}", ours / rate, "")
