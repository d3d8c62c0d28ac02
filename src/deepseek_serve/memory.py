"""How much memory one more model may take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from deepseek.config import EngineConfig
from deepseek.engine.memory import available_memory
from deepseek.errors import ConfigurationError
from deepseek_serve.models import ServedModel

KV_SHARE = 0.5  # of what is left beside the weights; as much as an engine takes by itself


def stored_bytes(path: Path) -> int:
    """Size of the weights of a model folder or file, as they are stored."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def free_memory(models: Iterable[ServedModel]) -> int:
    """Bytes that are available, less what engines have been promised and have not touched yet: caches fill slowly."""
    promised = 0
    for replica in (replica for model in models for replica in model.replicas):
        if replica.info is None or replica.pid is None:
            continue
        try:
            touched = psutil.Process(replica.pid).memory_info().rss
        except psutil.Error:  # it has just ended
            continue
        promised += max(0, replica.info.weights_bytes + replica.info.kv_cache_bytes - touched)
    return available_memory() - promised


def budget(config: EngineConfig, weights: int, replicas: int, free: int) -> EngineConfig:
    """The settings with ``kv_cache_bytes`` for all replicas: what they say, or a share of what is free.

    Args:
        weights: bytes of one replica's, as they are stored; the engine itself checks what its dtype makes of them.
        free: bytes of memory for this model.

    Raises :class:`ConfigurationError` if that does not fit.
    """
    left = free - weights * replicas
    wanted = config.kv_cache_bytes or 0
    if left <= wanted:
        copies = f"{replicas} times " if replicas > 1 else ""
        cache = f" and {wanted / 2**30:.2f} GiB for keys and values" if wanted else ""
        raise ConfigurationError(
            f"The model needs {copies}{weights / 2**30:.2f} GiB for its weights{cache}, and {max(free, 0) / 2**30:.2f} "
            "GiB of memory are free. Unload a model, or choose a smaller one or a smaller cache."
        )
    return msgspec.structs.replace(config, kv_cache_bytes=wanted or max(int(left * KV_SHARE), 1))
