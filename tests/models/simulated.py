"""What native kernels should compute, in torch: weights unpacked exactly, activations rounded as kernels round them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels import reference
from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import KVScales
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.native_weights import NativeWeights
from deepseek.models.registry import FAMILIES, architecture_of


@dataclass(frozen=True)
class Unpacked:
    """A packed matrix' values, and whether its inputs are rounded."""

    values: Tensor
    integers: bool

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __call__(self, x: Tensor) -> Tensor:
        return (rounded(x) if self.integers else x) @ self.values.T


def rounded(x: Tensor) -> Tensor:
    """As narrow rows are: to 16 bits in two parts, one scale per 32 columns."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).view(len(x), -1, 32)
    largest = padded.abs().amax(-1, keepdim=True)
    q = (padded * torch.where(largest == 0, 0.0, 127 * 256 / largest)).round()
    high = (q / 256).round()
    q = 256 * high + (q - 256 * high).clamp(-127, 127)
    return (q * (largest * (1 / (127 * 256)))).view(len(x), -1)[:, : x.shape[-1]]


def unpacked(matrix: Any) -> Unpacked:
    return Unpacked(torch.from_numpy(matrix.dequantize()), matrix.format not in ("fp16", "bf16"))


def separated(matrix: Any, inner: int) -> Unpacked:
    """Gate and up, of which 32 rows each alternate, one after the other."""
    whole = unpacked(matrix)
    halves = whole.values.view(-1, 2, 32, whole.values.shape[1]).transpose(0, 1).flatten(1, 2)[:, :inner]
    return Unpacked(halves.flatten(0, 1), whole.integers)


class SimulatedWeights(NativeWeights):
    """Packs like its base and hands out what it packed, unpacked."""

    def matrix(self, names: Sequence[str], rows: Sequence[int], columns: int, *, gated: bool = False) -> list[Any]:
        packed = super().matrix(names, rows, columns, gated=gated)
        return [separated(packed[0], rows[0])] if gated else [unpacked(matrix) for matrix in packed]

    def stacked(self, names: Iterable[Sequence[str]], rows: int, columns: int) -> list[Any]:
        groups = list(names)
        packed = super().stacked(groups, rows, columns)
        return [unpacked(m) if len(g) == 1 else separated(m, rows) for m, g in zip(packed, groups, strict=True)]

    def latent_up(self, name: str, heads: int, nope: int, value_dim: int, rank: int) -> tuple[Any, Any]:
        keys, values = super().latent_up(name, heads, nope, value_dim, rank)
        return (
            torch.stack([unpacked(matrix).values.T for matrix in keys]),
            torch.stack([unpacked(matrix).values for matrix in values]),
        )

    def embedding(self, name: str, vocab: int, hidden: int) -> Any:
        self._packed_embedding = super().embedding(name, vocab, hidden)
        return unpacked(self._packed_embedding).values

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> list[Any]:
        tied = None if embedding is None else self._packed_embedding
        return [unpacked(matrix) for matrix in super().head(tied, vocab, hidden)]


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, Tensor):  # a router
        return reference.linear(x, weight, bias)
    result = torch.cat([part(x) for part in weight], dim=1)
    return result if bias is None else result + bias


def _moe(x: Tensor, gate_up: Any, down: Any, ids: Tensor, weights: Tensor, kind: str) -> Tensor:
    result = torch.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(ids[row].tolist(), weights[row], strict=True):
            inner = reference.gated_activation(gate_up[expert](x[row : row + 1]), kind)
            result[row] += weight * down[expert](inner)[0]
    return result


def _rotary_write_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    interleaved: bool = False,
    scales: KVScales | None = None,
) -> Tensor:
    turned = reference.rotary(key, cos, sin, interleaved)
    reference.write_kv(turned.half(), value.half(), key_cache, value_cache, slots, scales)
    return reference.rotary(query, cos, sin, interleaved)


def simulated(checkpoint: Checkpoint, scheme: str) -> Decoder:
    """The checkpoint's model as native kernels compute narrow rows under ``scheme``, with an fp16 cache."""
    bindings = dict(bind("cpu", "reference").bindings)
    for name, function in (("linear", _linear), ("moe", _moe), ("rotary_write_kv", _rotary_write_kv)):
        bindings[name] = replace(bindings[name], function=function)
    family = FAMILIES[architecture_of(checkpoint.config)]
    return family.build(family.parse(checkpoint.config), SimulatedWeights(checkpoint, scheme), Ops(bindings))
