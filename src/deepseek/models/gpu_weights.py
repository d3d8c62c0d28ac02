"""Quantized matrices in the layout of the GPU's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix
from deepseek.kernels.triton.weights import INT4_GROUPS, Int8Weight, QuantizedWeight, pack_quantized
from deepseek.models.weights import LoadProgress, WeightSource
from deepseek.quant.schemes import quantize

HEAD_BITS = 8
"""Of the output matrix, which every token passes through."""


class QuantizedWeights(WeightSource):
    """Dense layers' matrices are INT8, with one scale per row, or INT4; the rest is as in :class:`WeightSource`: the
    embedding, experts, and what expands MLA's latents.

    A checkpoint's own integers are kept where the kernels have them; anything else is rounded on the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        bits: int,
        progress: LoadProgress | None = None,
    ) -> None:
        super().__init__(checkpoint, dtype, device, lambda weight: weight.contiguous(), progress)
        self._bits = bits

    def matrix(self, names: Sequence[str], rows: Sequence[int], columns: int, *, gated: bool = False) -> Any:
        shapes = [(count, columns) for count in rows]
        stored = [self._stored(name, shape) for name, shape in zip(names, shapes, strict=True)]
        parts = [part for part in stored if part is not None]
        if len(parts) < len(names) or len({(part.group, part.minimum is None) for part in parts}) > 1:
            parts = [self._rounded(name, shape) for name, shape in zip(names, shapes, strict=True)]
        else:
            for name in names:
                self._loaded(name)
        return self._put(_joined(parts))

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> Any:
        if embedding is None:
            embedding = self._load("lm_head.weight", (vocab, hidden), self.dtype).to(self.device)
        return self._put(quantize(embedding, HEAD_BITS))

    def _stored(self, name: str, shape: tuple[int, int]) -> QuantizedMatrix | None:
        """The checkpoint's integers, if there is a kernel for them."""
        self._check(name, shape)
        found = self._checkpoint.quantized(name)
        if not isinstance(found, QuantizedMatrix) or found.bits != self._bits:
            return None
        fits = found.group in INT4_GROUPS if found.bits == 4 else found.minimum is None and not found.group % 16
        return found if fits else None

    def _rounded(self, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
        return quantize(self._load(name, shape, self.dtype).to(self.device), self._bits)

    def _put(self, matrix: QuantizedMatrix) -> QuantizedWeight:
        packed = pack_quantized(matrix, self.device)
        minimum = None if isinstance(packed, Int8Weight) else packed.minimum
        self.bytes += packed.q.nbytes + packed.scale.nbytes + (0 if minimum is None else minimum.nbytes)
        return packed


def _joined(parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of the same input on top of each other."""
    minima: list[Tensor] = [part.minimum for part in parts if part.minimum is not None]
    return QuantizedMatrix(
        parts[0].bits,
        parts[0].group,
        torch.cat([part.q for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(minima) if minima else None,
    )
