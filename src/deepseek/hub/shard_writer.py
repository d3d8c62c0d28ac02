"""Safetensors in shards, written while tensors come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deepseek.errors import CheckpointError, DiskSpaceError
from deepseek.hub.safetensors_checkpoint import INDEX, WEIGHTS

SHARD_BYTES = 4 * 10**9


class ShardWriter:
    """Writes tensors as they come, in shards of about 4 GB, so that no more than one shard is in memory.

    Raises DiskSpaceError where the disk is full, CheckpointError where writing fails otherwise.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self.bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors that belong together stay in one shard."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._pending and self._pending_bytes + size > self._limit:
            self._flush()
        self._pending.update(tensors)
        self._pending_bytes += size

    def finish(self) -> None:
        """Write what is left, and the index where there is more than one shard."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._path(0).rename(self._folder / WEIGHTS)
            return
        weight_map = {}
        for index, names in enumerate(self._shards):
            shard = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            self._path(index).rename(self._folder / shard)
            weight_map.update(dict.fromkeys(names, shard))
        content = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index}.safetensors"

    def _flush(self) -> None:
        path = self._path(len(self._shards))
        try:
            save_file({name: tensor.contiguous() for name, tensor in self._pending.items()}, path, {"format": "pt"})
        except SafetensorError as error:
            if "StorageFull" in str(error) or "code: 28" in str(error):
                raise DiskSpaceError(f"the disk of {self._folder.parent} is full; free some room.") from error
            raise CheckpointError(f"{path} cannot be written: {error}.") from error
        self._shards.append(list(self._pending))
        self.bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0
