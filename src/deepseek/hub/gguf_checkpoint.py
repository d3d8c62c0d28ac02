"""A GGUF file as a checkpoint under Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import CheckpointError, DeepSeekError
from deepseek.hub.checkpoint import RawTensor
from deepseek.hub.dequant import dequantize
from deepseek.hub.gguf_config import translate_config
from deepseek.hub.gguf_file import GGUFFile, GGUFTensor
from deepseek.hub.gguf_names import Source, locate

_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


class GGUFCheckpoint:
    """Implements :class:`deepseek.hub.checkpoint.Checkpoint`.

    Norm weights come as Hugging Face stores them (for Gemma: without the one that is added when they are used), query
    and key rows in the order of rotary halves, experts one by one.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = GGUFFile(path)
        try:
            self.config: Mapping[str, Any] = translate_config(self._file)
            self._sources = locate(self._file, self.config)
        except DeepSeekError:
            self._file.close()
            raise
        self.shapes: Mapping[str, tuple[int, ...]] = {name: source.shape for name, source in self._sources.items()}

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        source = self._source(name)
        block = source.tensor.type
        if source.value_up is not None:
            return self._load_split_kv_b(source.tensor, source.value_up, source.shape, dtype)
        if source.plus_one:
            return (dequantize(self._rows(source), block, torch.float32) - 1.0).to(dtype).view(source.shape)
        return dequantize(self._rows(source), block, dtype).view(source.shape)

    def quantized(self, name: str) -> RawTensor | None:
        """The stored blocks of ``name``, or None for floats, and where the file's layout or values differ from
        Hugging Face's by more than the order of rows. Raises CheckpointError for a missing name."""
        source = self._source(name)
        if source.value_up is not None or source.plus_one or source.tensor.type.name in _FLOATS:
            return None
        return RawTensor(source.tensor.type.name, source.shape, self._rows(source))

    def close(self) -> None:
        self._file.close()

    def _source(self, name: str) -> Source:
        source = self._sources.get(name)
        if source is None:
            raise CheckpointError(f"{self._file.path} has no tensor for {name!r}: the file is not complete.")
        return source

    def _tensor_rows(self, tensor: GGUFTensor) -> Tensor:
        data = torch.frombuffer(self._file.data(tensor), dtype=torch.uint8)
        columns = tensor.shape[-1] // tensor.type.elements * tensor.type.size
        return data.view(-1, columns)

    def _rows(self, source: Source) -> Tensor:
        """uint8 [rows, bytes per row] (a vector is one row, unless its elements were permuted)."""
        rows = self._tensor_rows(source.tensor)
        if source.expert is not None:
            count = source.shape[0]
            return rows[source.expert * count : (source.expert + 1) * count]
        if source.rope_heads:
            if len(source.shape) == 1:  # a bias: its elements are the rows
                rows = rows.view(source.shape[0], -1)
            return rows.view(source.rope_heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        return rows

    def _load_split_kv_b(
        self, key_up: GGUFTensor, value_up: GGUFTensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        keys = dequantize(self._tensor_rows(key_up), key_up.type, dtype).view(key_up.shape)
        values = dequantize(self._tensor_rows(value_up), value_up.type, dtype).view(value_up.shape)
        return torch.cat((keys.transpose(1, 2), values), dim=1).reshape(shape)
