"""Quantized weights in the layouts that the kernels of :mod:`deepseek.kernels.triton.linear` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix

INT4_GROUPS = (32, 64, 128)
_WIDEST_PANEL = 64


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """``scale[c // group, r] * q[r, c]``.

    Attributes:
        q: int8 [out, in].
        scale: fp32 [in / group, out]; neighbouring outputs lie together, as a program reads many of them at once.
        group: columns that share a scale; ``in`` for one scale per output.
    """

    q: Tensor
    scale: Tensor
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        outs, columns = self.q.shape
        return outs, columns

    @property
    def per_channel(self) -> bool:
        return self.group == self.q.shape[1]

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes

    def dequantize(self) -> Tensor:
        """fp32 [out, in]."""
        outs, columns = self.q.shape
        return (self.q.float().view(outs, -1, self.group) * self.scale.t()[:, :, None]).view(outs, columns)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """``scale[c // group, r] * q[r, c] - minimum[c // group, r]`` with q in 0 ... 15, two to a byte.

    The columns stand in panels of ``2 * width``. Byte b of row r in panel p holds column ``2 * p * width + b`` in its
    low half and column ``2 * p * width + width + b`` in its high half, so that unpacking gives two tiles of
    neighbouring columns without a shuffle, and a tile of rows of one panel is one stretch of memory. Padding behind the
    last column has the scale 0.

    Attributes:
        q: uint8 [panels, out, width].
        scale: fp16 [2 * panels * width / group, out].
        minimum: fp16 like ``scale``, or None for zero.
        group: columns that share a scale.
        steps: fp32 [out], of the INT8 values that a row's weights are rounded to beside INT8 inputs: its largest
            possible magnitude divided by 127.
        columns: the true number of columns.
    """

    q: Tensor
    scale: Tensor
    minimum: Tensor | None
    steps: Tensor
    group: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[1], self.columns

    @property
    def width(self) -> int:
        return self.q.shape[2]

    @property
    def nbytes(self) -> int:
        minimum = 0 if self.minimum is None else self.minimum.nbytes
        return self.q.nbytes + self.scale.nbytes + minimum + self.steps.nbytes

    def dequantize(self) -> Tensor:
        """fp32 [out, in]."""
        halves = torch.stack([self.q & 15, self.q >> 4], dim=2).permute(1, 0, 2, 3)
        q = halves.reshape(self.q.shape[1], -1, self.group).float()
        values = q * self.scale.t().float()[:, :, None]
        if self.minimum is not None:
            values -= self.minimum.t().float()[:, :, None]
        return values.flatten(1)[:, : self.columns]


QuantizedWeight = Int8Weight | Int4Weight


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """The matrices of all experts, on top of each other in one.

    Attributes:
        matrix: its rows ``e * out ... (e + 1) * out - 1`` are those of expert e.
        count: how many experts.
    """

    matrix: QuantizedWeight
    count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, columns = self.matrix.shape
        return self.count, rows // self.count, columns

    @classmethod
    def like(cls, first: QuantizedWeight, count: int) -> QuantizedExperts:
        """Room for ``count`` matrices of the format of ``first``, to be filled by :meth:`put`."""
        own = first.shape[0] * count

        def room(values: Tensor, axis: int) -> Tensor:
            shape = list(values.shape)
            shape[axis] = own
            return torch.empty(shape, dtype=values.dtype, device=values.device)

        if isinstance(first, Int8Weight):
            return cls(Int8Weight(room(first.q, 0), room(first.scale, 1), first.group), count)
        minimum = None if first.minimum is None else room(first.minimum, 1)
        parts = room(first.q, 1), room(first.scale, 1), minimum, room(first.steps, 0)
        return cls(Int4Weight(*parts, first.group, first.columns), count)

    def put(self, expert: int, weight: QuantizedWeight) -> None:
        """Copy ``weight``, of the same format, to its place."""
        outs = weight.shape[0]
        own = slice(expert * outs, (expert + 1) * outs)
        to = self.matrix
        to.scale[:, own] = weight.scale
        if isinstance(to, Int8Weight):
            to.q[own] = weight.q
            return
        assert isinstance(weight, Int4Weight)
        to.q[:, own] = weight.q
        to.steps[own] = weight.steps
        if to.minimum is not None and weight.minimum is not None:
            to.minimum[:, own] = weight.minimum


class Parts(NamedTuple):
    """A quantized weight as kernels take it; ``group`` 0 is one scale per output, and ``steps`` are the scales of INT8
    values beside INT8 inputs."""

    q: Tensor
    scale: Tensor
    minimum: Tensor | None
    steps: Tensor
    bits: int
    group: int


def parts_of(weight: QuantizedWeight) -> Parts:
    if isinstance(weight, Int4Weight):
        return Parts(weight.q, weight.scale, weight.minimum, weight.steps, 4, weight.group)
    return Parts(weight.q, weight.scale, None, weight.scale, 8, 0 if weight.per_channel else weight.group)


def takes_int8_rows(weight: QuantizedWeight) -> bool:
    """Whether it can be multiplied with INT8 rows: 8 bits with one scale per output, or 4 bits."""
    return isinstance(weight, Int4Weight) or weight.per_channel


def pack_quantized(matrix: QuantizedMatrix, device: torch.device | str) -> QuantizedWeight:
    """``matrix`` on ``device`` in the layout of its number of bits. INT4 scales and minima are rounded to fp16, which
    changes a value by less than a hundredth of its step unless they are below 1e-5.

    Raises ConfigurationError for INT4 in groups other than 32, 64 or 128 columns, for INT8 in groups that are no
    multiple of 16, and for INT8 with minima.
    """
    if matrix.bits == 4:
        return _pack_int4(matrix, device)
    if matrix.minimum is not None:
        raise ConfigurationError("INT8 weights with zero points have no GPU kernel; use symmetric INT8.")
    if matrix.group % 16 and matrix.group != matrix.shape[1]:
        raise ConfigurationError(
            f"INT8 weights in groups of {matrix.group} columns have no GPU kernel; use a multiple of 16, or whole rows."
        )
    return Int8Weight(matrix.q.to(device).contiguous(), matrix.scale.to(device).t().contiguous(), matrix.group)


def _pack_int4(matrix: QuantizedMatrix, device: torch.device | str) -> Int4Weight:
    if matrix.group not in INT4_GROUPS:
        raise ConfigurationError(
            f"INT4 weights in groups of {matrix.group} columns have no GPU kernel; use 32, 64 or 128."
        )
    outs, columns = matrix.shape
    width = min(matrix.group, _WIDEST_PANEL)
    panels = -(-columns // (2 * width))
    groups = 2 * panels * width // matrix.group
    q = F.pad(matrix.q.to(device), (0, 2 * panels * width - columns)).view(outs, panels, 2, width)
    packed = (q[:, :, 0] | (q[:, :, 1] << 4)).transpose(0, 1).contiguous()
    scale = _by_group(matrix.scale, groups, device)
    minimum = None if matrix.minimum is None else _by_group(matrix.minimum, groups, device)
    return Int4Weight(packed, scale, minimum, _steps(scale, minimum), matrix.group, columns)


def _steps(scale: Tensor, minimum: Tensor | None) -> Tensor:
    """See :class:`Int4Weight`, from the values of 0 and 15 in each group."""
    highest = 15.0 * scale.float()
    if minimum is not None:
        highest = torch.maximum((highest - minimum.float()).abs(), minimum.float().abs())
    return highest.abs().amax(dim=0) / 127.0


def _by_group(values: Tensor, groups: int, device: torch.device | str) -> Tensor:
    """fp32 [out, few groups] -> fp16 [groups, out], zeros behind."""
    return F.pad(values.to(device), (0, groups - values.shape[1])).t().to(torch.float16).contiguous()
