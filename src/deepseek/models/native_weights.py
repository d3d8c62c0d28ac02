"""Weights in the native kernels' layout: a quantized checkpoint's own integers where possible."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix, RawTensor
from deepseek.kernels.cpu.extension import native
from deepseek.models.weights import LoadProgress, WeightSource
from deepseek.quant.schemes import quantize

logger = logging.getLogger(__name__)

_BITS = {"int8": 8, "int4": 4}


class NativeWeights(WeightSource):
    """Norms and biases come as fp32 tensors, matrices as lists of ``_native.Matrix``, one per stored format.

    ``scheme`` says what a matrix becomes:

    - ``auto``: integers of the checkpoint as they are, if there is a layout that holds them exactly; of other integers
      the nearest int8; floats as fp16.
    - ``int8``, ``int4``: integers of that many bits as they are, anything else quantized to it. The embedding and the
      output matrix are int8 in either case: every token passes through them.
    - ``fp16``, ``bf16``: floats.

    What was quantized again although the checkpoint held integers is in ``requantized`` and in the log.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: str, progress: LoadProgress | None = None) -> None:
        super().__init__(checkpoint, torch.float32, torch.device("cpu"), lambda weight: weight, progress)
        self._native = native()
        self._scheme = scheme
        self.requantized: list[str] = []
        self._pool = self._native.Pool()

    def matrix(self, names: Sequence[str], rows: Sequence[int], columns: int, *, gated: bool = False) -> list[Any]:
        parts = [self._part(name, (count, columns)) for name, count in zip(names, rows, strict=True)]
        if gated:
            return [self._gated(names, parts, columns)]
        matrices: list[Any] = []
        start = 0
        while start < len(parts):
            stop = start + 1
            while stop < len(parts) and self._format(parts[stop]) == self._format(parts[start]):
                stop += 1
            group = parts[start:stop]
            offsets = list(accumulate((part.shape[0] for part in group), initial=0))
            matrix = self._new(self._format(parts[start]), offsets[-1], columns)
            for name, part, offset in zip(names[start:stop], group, offsets, strict=False):
                self._put(matrix, name, part, offset, alternate=False)
            matrices.append(matrix)
            start = stop
        return matrices

    def stacked(self, names: Iterable[Sequence[str]], rows: int, columns: int) -> list[Any]:
        """Per expert one matrix, in memory that they share."""
        matrices = []
        for group in names:
            parts = [self._part(name, (rows, columns)) for name in group]
            if len(parts) > 1:
                matrices.append(self._gated(group, parts, columns, self._pool))
                continue
            matrix = self._new(self._format(parts[0]), rows, columns, self._pool)
            self._put(matrix, group[0], parts[0], 0, alternate=False)
            matrices.append(matrix)
        return matrices

    def latent_up(self, name: str, heads: int, nope: int, value_dim: int, rank: int) -> tuple[list[Any], list[Any]]:
        """fp16 in any scheme, per head: keys transposed, [rank, nope], as they take queries into latent space."""
        up = self._load(name, (heads * (nope + value_dim), rank), torch.float32).view(heads, nope + value_dim, rank)
        keys, values = [], []
        for head in up:
            keys.append(self._new("fp16", rank, nope, self._pool))
            self._put(keys[-1], name, head[:nope].T, 0, alternate=False)
            values.append(self._new("fp16", value_dim, rank, self._pool))
            self._put(values[-1], name, head[nope:], 0, alternate=False)
        return keys, values

    def embedding(self, name: str, vocab: int, hidden: int) -> Any:
        (matrix,) = self._table(name, vocab, hidden)
        return matrix

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> list[Any]:
        return self._table("lm_head.weight", vocab, hidden) if embedding is None else [embedding]

    def finish(self, ignore: Any = ()) -> None:
        super().finish(ignore)
        if self.requantized:
            reason = (
                "no native layout holds their blocks" if self._scheme == "auto" else f"{self._scheme} was asked for"
            )
            tensors = ", ".join(
                f"{name} ({count})" if count > 1 else name for name, count in _by_kind(self.requantized)
            )
            logger.log(
                logging.WARNING if self._scheme == "auto" else logging.INFO,
                "%d tensors were quantized again, as %s: %s",
                len(self.requantized),
                reason,
                tensors,
            )

    def _table(self, name: str, vocab: int, hidden: int) -> list[Any]:
        part = self._part(name, (vocab, hidden), table=True)
        matrix = self._new(self._format(part), vocab, hidden)
        self._put(matrix, name, part, 0, alternate=False)
        return [matrix]

    def _gated(
        self,
        names: Sequence[str],
        parts: list[RawTensor | QuantizedMatrix | Tensor],
        columns: int,
        pool: Any | None = None,
    ) -> Any:
        """Gate and up in turns of 32 rows, in one format: where the checkpoint has two, both become int8."""
        if len({self._format(part) for part in parts}) > 1:
            parts = [self._quantized_again(name, part) for name, part in zip(names, parts, strict=True)]
        inner = parts[0].shape[0]
        matrix = self._new(self._format(parts[0]), 2 * (-(-inner // 32) * 32), columns, pool)
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            self._put(matrix, name, part, 32 * index, alternate=True)
        return matrix

    def _new(self, format: str | None, rows: int, columns: int, pool: Any | None = None) -> Any:
        assert format is not None, "parts without a native format were quantized"
        matrix = self._native.Matrix(format, rows, columns, pool)
        self.bytes += matrix.nbytes
        return matrix

    def _part(self, name: str, shape: tuple[int, int], *, table: bool = False) -> RawTensor | QuantizedMatrix | Tensor:
        """What ``name`` is stored as natively: blocks, integers, or fp32 values that become 16-bit floats."""
        self._check(name, shape)
        scheme = "int8" if table and self._scheme == "int4" else self._scheme
        stored = self._checkpoint.quantized(name)
        if scheme in ("fp16", "bf16") or (scheme == "auto" and stored is None):
            return self._load(name, shape, torch.float32)
        if stored is not None and self._keeps(stored, scheme):
            return stored
        if stored is not None:
            self.requantized.append(name)
        return self._quantize(self._load(name, shape, torch.float32), _BITS.get(scheme, 8))

    def _keeps(self, stored: RawTensor | QuantizedMatrix, scheme: str) -> bool:
        format = self._format(stored)
        if format is None or scheme == "auto":
            return format is not None
        return (4 if format in ("int4", "q4_k") else 8 if format.startswith("int8") else None) == _BITS[scheme]

    def _quantized_again(self, name: str, part: RawTensor | QuantizedMatrix | Tensor) -> QuantizedMatrix:
        if not isinstance(part, Tensor):
            self.requantized.append(name)
            part = self._checkpoint.load(name, torch.float32)
        return self._quantize(part, 8)

    def _quantize(self, weight: Tensor, bits: int) -> QuantizedMatrix:
        return quantize(weight, 8 if weight.shape[1] % 32 else bits)

    def _format(self, part: RawTensor | QuantizedMatrix | Tensor) -> str | None:
        """The native format that holds ``part`` exactly; None for GGUF types without one."""
        if isinstance(part, Tensor):
            return "bf16" if self._scheme == "bf16" else "fp16"
        if isinstance(part, RawTensor):
            name: str | None = self._native.format_of_gguf(part.type)
            return name
        if part.bits == 8:
            return "int8_channel" if part.group == part.shape[1] else "int8"
        return "int4"

    def _put(
        self, matrix: Any, name: str, part: RawTensor | QuantizedMatrix | Tensor, start: int, *, alternate: bool
    ) -> None:
        if isinstance(part, RawTensor):
            bad = matrix.put_gguf(part.type, part.data.contiguous().numpy(), start, alternate)
            self._loaded(name)
        elif isinstance(part, Tensor):
            bad = matrix.put_float(part.contiguous().numpy(), start, alternate)
        else:
            scale = part.scale.contiguous().numpy()
            q = part.q.contiguous().numpy()
            if part.bits == 8:
                bad = matrix.put_int8(q, scale, part.group, start, alternate)
            else:
                minimum = None if part.minimum is None else part.minimum.contiguous().numpy()
                bad = matrix.put_int4(q, scale, minimum, part.group, start, alternate)
            self._loaded(name)
        if bad >= 0:
            raise CheckpointError(
                f"tensor {name!r} holds NaN or infinity, or a value beyond fp16, in row {bad}; a damaged file or too "
                "narrow a dtype."
            )


def _by_kind(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names with the layer's number left out, and how many there are of each."""
    return list(Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names).items())


def native_bytes(checkpoint: Checkpoint, scheme: str) -> int:
    """About the bytes that the checkpoint's tensors will take under ``scheme``."""
    total = 0.0
    for name, shape in checkpoint.shapes.items():
        elements = math.prod(shape)
        stored = checkpoint.quantized(name) if scheme in ("auto", "int4", "int8") else None
        if len(shape) < 2:
            total += 4 * elements
        elif scheme == "auto" and isinstance(stored, RawTensor):
            total += stored.data.nbytes
        else:
            kept = stored.bits if isinstance(stored, QuantizedMatrix) else 16
            bits = {"auto": kept, "int8": 8, "int4": 4.5}.get(scheme, 16)
            total += elements * bits / 8
    return int(total)
