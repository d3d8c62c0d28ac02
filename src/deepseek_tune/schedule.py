"""The learning rate over a run, as a share of its highest."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant")


def rate(progress: float, schedule: str, warmup: float) -> float:
    """The share of the highest learning rate at ``progress`` (0 to 1, in tokens): it rises linearly during the first
    ``warmup`` of the run, then falls to 0 at its end as ``schedule`` says."""
    if progress < warmup:
        return progress / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case _:
            return 1.0
