"""Devices that compute by themselves, without a GPU: steps run in the order in which they were started, but later."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from deepseek.engine.computation import Compute, Launcher, Outputs


class Late:
    """Computes a step as late as can be: when somebody waits for it, or for one behind it."""

    device: torch.device | None = torch.device("cpu")

    def __init__(self) -> None:
        self.most_under_way = 0
        self._started: deque[tuple[Compute, list[Outputs]]] = deque()

    def start(self, compute: Compute) -> Compute:
        outputs: list[Outputs] = []
        self._started.append((compute, outputs))
        self.most_under_way = max(self.most_under_way, len(self._started))

        def wait() -> Outputs:
            while not outputs:
                first, place = self._started.popleft()
                place.append(first())
            return outputs[0]

        return wait


class Threaded:
    """Computes steps in a thread of their own."""

    device: torch.device | None = torch.device("cpu")

    def __init__(self, worker: ThreadPoolExecutor) -> None:
        self._worker = worker

    def start(self, compute: Compute) -> Compute:
        return self._worker.submit(compute).result


@contextmanager
def launcher_of(kind: str) -> Iterator[Launcher]:
    with ThreadPoolExecutor(1) as worker:
        yield Late() if kind == "late" else Threaded(worker)
