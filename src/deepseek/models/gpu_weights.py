"""Quantized matrices in the layout of the GPU's kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix
from deepseek.kernels.triton.weights import INT4_GROUPS, QuantizedExperts, QuantizedWeight, pack_quantized
from deepseek.models.weights import LoadProgress, WeightSource
from deepseek.quant.schemes import quantize

HEAD_BITS = 8
"""Of the output matrix, which every token passes through."""


class QuantizedWeights(WeightSource):
    """Matrices of dense layers and experts are INT8, with one scale per row, or INT4; the rest is as in
    :class:`WeightSource`: the embedding, routers, and what expands MLA's latents.

    A checkpoint's own integers are kept where the kernels have them; anything else is rounded on the device, matrix by
    matrix and expert by expert, so that memory never holds the floats of more than one.
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
        packed = self._kept(names, stored) if _in_one_format(stored) else self._rounded(names, shapes)
        self.bytes += packed.nbytes
        return packed

    def stacked(self, names: Iterable[Sequence[str]], rows: int, columns: int) -> QuantizedExperts:
        """See :meth:`WeightSource.stacked`. Experts that the checkpoint has in several formats are all rounded anew."""
        groups, shape = list(names), (rows, columns)
        keep = _in_one_format(self._stored(name, shape) for group in groups for name in group)
        result: QuantizedExperts | None = None
        for expert, group in enumerate(groups):
            if keep:
                packed = self._kept(group, [self._stored(name, shape) for name in group])
            else:
                packed = self._rounded(group, [shape] * len(group))
            if result is None:
                result = QuantizedExperts.like(packed, len(groups))
            result.put(expert, packed)
        assert result is not None, "a layer of experts has at least one"
        self.bytes += result.matrix.nbytes
        return result

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> Any:
        if embedding is None:
            embedding = self._load("lm_head.weight", (vocab, hidden), self.dtype).to(self.device)
        packed = pack_quantized(quantize(embedding, HEAD_BITS), self.device)
        self.bytes += packed.nbytes
        return packed

    def _kept(self, names: Sequence[str], stored: Sequence[QuantizedMatrix | None]) -> QuantizedWeight:
        """Matrices of the same input on top of each other, as the checkpoint has them."""
        for name in names:
            self._loaded(name)
        return pack_quantized(_joined([part for part in stored if part is not None]), self.device)

    def _rounded(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> QuantizedWeight:
        """The same of floats, rounded on the device."""
        parts = [
            quantize(self._load(name, shape, self.dtype).to(self.device), self._bits)
            for name, shape in zip(names, shapes, strict=True)
        ]
        return pack_quantized(_joined(parts), self.device)

    def _stored(self, name: str, shape: tuple[int, int]) -> QuantizedMatrix | None:
        """The checkpoint's integers, if there is a kernel for them."""
        self._check(name, shape)
        found = self._checkpoint.quantized(name)
        if not isinstance(found, QuantizedMatrix) or found.bits != self._bits:
            return None
        fits = found.group in INT4_GROUPS if found.bits == 4 else found.minimum is None and not found.group % 16
        return found if fits else None


def _in_one_format(stored: Iterable[QuantizedMatrix | None]) -> bool:
    """Whether there are integers of all of them, with the same groups."""
    formats = set()
    for part in stored:
        formats.add(None if part is None else (part.group, part.minimum is None))
        if part is None or len(formats) > 1:
            return False
    return True


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
