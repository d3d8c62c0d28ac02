"""One protocol over the weight formats: safetensors and GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A matrix as a GGUF file stores it, for kernels that compute on quantized blocks.

    Attributes:
        type: the GGUF type's name (``Q4_K``).
        shape: the Hugging Face shape (rows, columns).
        data: uint8 [rows, bytes per row], rows in Hugging Face order, mapped where the file has that order.
    """

    type: str
    shape: tuple[int, ...]
    data: Tensor


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix of small integers: ``value[r, c] = scale[r, c // group] * q[r, c] - minimum[r, c // group]``.

    Attributes:
        bits: 8 or 4.
        group: columns that share a scale; the number of columns for one scale per row.
        q: int8 [rows, columns] for 8 bits (-128 to 127), uint8 [rows, columns] for 4 bits (0 to 15, one per byte).
        scale: fp32 [rows, columns / group].
        minimum: fp32 like ``scale``, or None for zero.
    """

    bits: int
    group: int
    q: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.q.shape
        return rows, columns

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The values [rows, columns], computed in fp32."""
        rows, columns = self.q.shape
        values = self.q.float().view(rows, -1, self.group) * self.scale[:, :, None]
        if self.minimum is not None:
            values = values - self.minimum[:, :, None]
        return values.view(rows, columns).to(dtype)


class Checkpoint(Protocol):
    """A model's config and weights under Hugging Face names, whatever the file format.

    Attributes:
        config: the keys of a Hugging Face ``config.json`` (GGUF metadata is translated to it).
        shapes: tensor name (``model.layers.0.self_attn.q_proj.weight``) -> shape.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in row-major Hugging Face layout, dequantized and converted to ``dtype``, in fresh or mapped
        memory. Raises CheckpointError for a missing name."""
        ...

    def quantized(self, name: str) -> RawTensor | QuantizedMatrix | None:
        """The stored integers of ``name``, for kernels that compute on them; None where it is stored as floats, or in
        an order other than Hugging Face's. Raises CheckpointError for a missing name."""
        ...

    def close(self) -> None:
        """Release the mapping."""
        ...
