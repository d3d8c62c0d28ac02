"""The engines of one model: how they divide its threads, its memory and the machine's processors."""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek.runtime.client import EngineClient
from deepseek.runtime.supervisor import RuntimeOptions


def engine_clients(config: EngineConfig, options: RuntimeOptions, count: int) -> list[EngineClient]:
    """Clients of ``count`` engines, not started. Raises as :func:`divide`."""
    if count == 1:
        return [EngineClient(config, options)]
    each, cpus = divide(config, count), divide_cpus(count)
    return [EngineClient(each, replace(options, cpus=cpus[i] if cpus else None)) for i in range(count)]


def divide(config: EngineConfig, count: int) -> EngineConfig:
    """Settings of each of ``count`` engines: ``threads`` and the bytes of caches are the model's and are
    divided.

    Raises :class:`ConfigurationError` if there are fewer threads or bytes than engines.
    """
    shared: dict[str, int | None] = {}
    for name in ("threads", "kv_cache_bytes", "kv_spill_bytes"):
        value = getattr(config, name)
        if value is not None and value < count:
            raise ConfigurationError(f"{name} ({value}) must be at least the number of replicas ({count}).")
        shared[name] = None if value is None else value // count
    if count > 1 and shared["threads"] is None and not divide_cpus(count):
        shared["threads"] = 1
    return msgspec.structs.replace(config, **shared)


def divide_cpus(count: int) -> list[tuple[int, ...]]:
    """The processors that this process may use, side by side for each of ``count`` engines; [] if there are too few."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        return []
    all_of_them = sorted(os.sched_getaffinity(0))
    if len(all_of_them) < count:
        return []
    bounds = [i * len(all_of_them) // count for i in range(count + 1)]
    return [tuple(all_of_them[bounds[i] : bounds[i + 1]]) for i in range(count)]
