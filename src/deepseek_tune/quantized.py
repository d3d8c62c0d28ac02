"""Frozen linear layers whose matrices stay small integers (QLoRA: Dettmers et al., 2023, arXiv:2305.14314).

A matrix becomes floats when it is multiplied by, in the forward pass and once more in the backward pass, and is
forgotten again: one matrix lives as floats at a time. Adapters and activations are floats as ever.

Embedding and output matrix stay floats: ids pick single rows of the one, and the loss reads the other once per chunk
of answers, which would unpack it each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix, RawTensor
from deepseek.hub.dequant import dequantize
from deepseek.hub.gguf_file import BLOCK_TYPES
from deepseek.quant.plan import EMBEDDING, HEAD, is_matrix
from deepseek.quant.schemes import GROUP, int8_group, quantize

CHUNK = 1 << 18
"""Weights unpacked at a time on a CPU: what is between integers and floats stays in the cache."""

_BITS = {"int8": 8, "int4": 4}
_BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}


class Integers(torch.nn.Module):
    """A matrix [rows, columns] of ``(q - zero) * scale``, in fp32; scale and zero belong to groups of columns.

    Buffers: ``q`` int8 [rows, columns], or for 4 bits uint8 [rows, columns / 2], where a byte holds column ``c`` in its
    low half and ``c + columns / 2`` in its high half; ``scale`` [rows, groups], in 16 bits where these hold it exactly;
    ``zero`` like ``scale`` in the type of ``q``, or None.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, matrix: QuantizedMatrix) -> None:
        super().__init__()
        self.bits, self.group, self.shape = matrix.bits, matrix.group, matrix.shape
        self.register_buffer("q", _packed(matrix.q) if matrix.bits == 4 else matrix.q.clone(), persistent=False)
        self.register_buffer("scale", _narrowed(matrix.scale), persistent=False)
        zero = None
        if matrix.minimum is not None:  # a whole number of steps, in every layout that is read
            steps = (matrix.minimum / matrix.scale).nan_to_num_(0.0, 0.0, 0.0)
            zero = steps.round_().to(matrix.q.dtype)
        self.register_buffer("zero", zero, persistent=False)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The values [rows, columns], in fresh memory."""
        rows, columns = self.shape
        out = torch.empty(rows, columns, dtype=dtype, device=self.q.device)
        step = rows if self.q.is_cuda else min(rows, max(1, CHUNK // columns))
        scratch = None if dtype == torch.float32 else torch.empty(step, columns, device=self.q.device)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            values = out[part] if scratch is None else scratch[: len(out[part])]
            self._unpack(part, values)
            if scratch is not None:
                out[part] = values
        return out

    def _unpack(self, part: slice, values: Tensor) -> None:
        """Fill ``values`` fp32 [rows, columns] with a part of the rows."""
        q = self.q[part]
        if self.bits == 4:
            half = q.shape[1]
            values[:, :half] = q & 15
            values[:, half:] = q >> 4
        else:
            values.copy_(q)
        grouped = values.view(len(values), -1, self.group)
        if self.zero is not None:
            grouped.sub_(self.zero[part, :, None])
        grouped.mul_(self.scale[part, :, None])


class Blocks(torch.nn.Module):
    """A matrix [rows, columns] as a GGUF file stores it. Buffer: ``data`` uint8 [rows, bytes per row]."""

    data: Tensor

    def __init__(self, raw: RawTensor) -> None:
        super().__init__()
        self.shape = raw.shape
        self._block = _BLOCKS[raw.type]
        self.register_buffer("data", raw.data.clone(), persistent=False)  # the file may change or go

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The values [rows, columns], in fresh memory."""
        return dequantize(self.data, self._block, dtype)


class QuantizedLinear(torch.nn.Linear):
    """A frozen linear layer over integers. ``weight`` is its matrix as floats, made anew whenever it is asked for.

    Args:
        matrix: [outputs, inputs].
        bias: [outputs], or None.
        dtype: of ``weight``.
    """

    def __init__(self, matrix: Integers | Blocks, bias: torch.nn.Parameter | None, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)  # Linear's own makes a weight of floats
        self.out_features, self.in_features = matrix.shape
        self.matrix, self._dtype = matrix, dtype
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.matrix.dequantize(self._dtype)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _FrozenLinear.apply(input, self)  # type: ignore[no-untyped-call]
        return out


class _FrozenLinear(torch.autograd.Function):
    """x W^T + bias. The layer is kept for the backward pass, and no floats of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight, layer.bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.weight, None


def is_kept(name: str, shape: tuple[int, ...]) -> bool:
    """Whether integers may take the place of a checkpoint's tensor: a matrix that is neither the embedding, nor the
    output matrix, nor a router."""
    return is_matrix(name, shape) and name not in (EMBEDDING, HEAD)


def frozen_matrix(checkpoint: Checkpoint, name: str, kind: str) -> Integers | Blocks:
    """The integers of the matrix ``name``.

    Args:
        kind: ``stored``: as the checkpoint stores it, which must be integers. ``int8`` or ``int4``: likewise where it
            has as many bits, else rounded to them in the schemes of :mod:`deepseek.quant.schemes`; rows that are no
            multiple of 32 columns get 8 bits.

    Raises CheckpointError for a missing name.
    """
    stored = checkpoint.quantized(name)
    if stored is not None and (kind == "stored" or _bits(stored) == _BITS[kind]):
        return Blocks(stored) if isinstance(stored, RawTensor) else Integers(stored)
    weight = checkpoint.load(name, torch.float32)
    columns = weight.shape[1]
    if _BITS[kind] == 4 and columns % GROUP == 0:
        return Integers(quantize(weight, 4))
    return Integers(quantize(weight, 8, group=int8_group(columns)))


def parameter_count(model: torch.nn.Module) -> int:
    """Of the model, the weights of its quantized layers among them."""
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    hidden = sum(module.out_features * module.in_features for module in quantized)
    return hidden + sum(weight.numel() for weight in model.parameters())


def resident_bytes(model: torch.nn.Module) -> int:
    """Of the model's parameters and buffers."""
    return sum(tensor.nbytes for group in (model.parameters(), model.buffers()) for tensor in group)


def _bits(stored: RawTensor | QuantizedMatrix) -> int:
    """Of an integer, scales aside."""
    return int(stored.type[1]) if isinstance(stored, RawTensor) else stored.bits  # Q4_K


def _packed(q: Tensor) -> Tensor:
    """uint8 [rows, columns] of 0 to 15 -> uint8 [rows, columns / 2]."""
    half = q.shape[1] // 2
    return q[:, :half] | (q[:, half:] << 4)


def _narrowed(scale: Tensor) -> Tensor:
    """``scale`` in the first 16-bit type that holds all of it, else in fp32."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = scale.to(dtype)
        if torch.equal(narrow.float(), scale):
            return narrow
    return scale.clone()
