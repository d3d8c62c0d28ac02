"""What a benchmark's reader must know of the machine it ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def describe_machine() -> dict[str, str | int | list[str]]:
    """Processor, cores in use, instruction sets, memory and versions. Nothing that names the host."""
    model, features = _processor()
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "features": features,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "deepseek": _version("deepseek-platform"),
    }


def measure_bandwidth(size: int = 2**30, repeats: int = 5) -> float:
    """Median bytes per second at which all cores read memory (a sum over a buffer larger than the caches share)."""
    import torch

    buffer = torch.ones(size // 4, dtype=torch.int32)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        buffer.max()
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> tuple[str, list[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), [name for name in _FEATURES if name in flags]
