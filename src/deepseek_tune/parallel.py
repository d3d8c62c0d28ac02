"""Several processes that train one adapter: each takes some rows of every step, and their gradients are added.

Started by ``torchrun --nproc-per-node N script.py``, ``accelerate launch`` or Ray Train, each of which says in the
environment who is who. Since a gradient is a sum over answer tokens divided by those of all processes, the result is
that of one process but for the order of additions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deepseek.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run. ``rank`` is this one of ``size``; the first writes the files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Those of ``items`` that this process computes."""
        return items[self.rank :: self.size]

    def add(self, *values: float) -> list[float]:
        """The sums of each value over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        sums = sums.to(_device())
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by the sum of all processes'."""
        if self.size == 1:
            return
        weights = list(parameters)
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for weight, part in zip(weights, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            weight.grad = part.view_as(weight).clone()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, by rank; all have the same shape."""
        if self.size == 1:
            return [tensor]
        device = _device()
        found = [torch.empty_like(tensor, device=device) for _ in range(self.size)]
        dist.all_gather(found, tensor.to(device))
        return [one.cpu() for one in found]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(wanted: str = "auto") -> World:
    """The world that the environment (RANK, WORLD_SIZE and MASTER_ADDR) tells of; a lonely one if it tells of none.

    Args:
        wanted: the setting ``device``. On GPUs each process takes that of its LOCAL_RANK.

    Raises ConfigurationError: the environment tells half of it, or the processes do not find each other.
    """
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return World()
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigurationError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start the processes with torchrun, or unset "
            "WORLD_SIZE for one."
        )
    on_gpu = wanted != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(f"the {size} processes of this run do not find each other: {error}") from error
    return World(dist.get_rank(), dist.get_world_size())


def _device() -> torch.device:
    """Where the processes' messages lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
