"""What a GPU can do: the rates that measured kernels are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

_REPEATS = 20


def copy_bandwidth(device: str, size: int = 2**31) -> float:
    """Median bytes per second, read and written together, of copies of ``size`` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def matrix_rate(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """Median operations per second of products of square matrices: bf16 or fp16, or int8 with int32 sums."""
    if dtype == torch.int8:
        a, b = (torch.randint(-127, 128, (size, size), dtype=dtype, device=device) for _ in range(2))
        b = b.t().contiguous().t()
        seconds = median_seconds(lambda: torch._int_mm(a, b), device)
    else:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = median_seconds(lambda: a @ b, device)
    return 2 * size**3 / seconds


def median_seconds(work: Callable[[], object], device: str, repeats: int = _REPEATS) -> float:
    """Of one run on the GPU, by its own clock, after three that are not counted."""
    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        span = Span(device)
        work()
        seconds.append(span.end().seconds())
    return statistics.median(seconds)


class Span:
    """From its making to its end, by the GPU's clock."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._start.record(self._stream)

    def end(self) -> Span:
        self._end.record(self._stream)
        return self

    def seconds(self) -> float:
        """Waits for its end."""
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000
