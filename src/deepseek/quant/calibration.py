"""What a matrix's inputs look like on real text, and what quantizing it alone would cost.

Passes over a few windows of text through the unquantized model:

1. the mean square of every input column of every matrix. It weighs the errors of INT4 (as llama.cpp's importance
   matrix does): an error counts by what it is multiplied with.
2. each matrix's output error, in INT4, and in INT8 with activations in INT8 too, relative to its output.
3. for the few that matter, those nearest to a decision, the KL divergence of the model's predictions when that one
   alone is quantized. Everything before the changed matrix is the same in each run and is replayed.

A fourth takes the second moments of the inputs of those that are to be INT4 (:mod:`deepseek.quant.gptq`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.ops import Ops
from deepseek.models.base import Model
from deepseek.quant.plan import EMBEDDING, HEAD, fits_int4, is_matrix, unit_of
from deepseek.quant.schemes import GROUP, int8_group, quantize
from deepseek.quant.windows import forward

SENSITIVE_KL = 1e-3
"""Nats per token that a matrix in INT8 may cost by itself; above, it stays floating."""

MOMENTS_BYTES = 2 * 2**30
"""Memory for second moments."""

Linear = Callable[[str, Tensor, Tensor, Tensor | None], Tensor]
"""(unit, inputs [T, columns], weight, bias) -> outputs [T, rows]."""


@dataclass
class Calibration:
    """What was learned.

    Attributes:
        importance: unit -> mean square of each input column, fp32 [columns].
        error8, error4: unit -> squared output error over squared output, for W8A8 and for INT4 weights.
        kl8, kl4: unit -> KL divergence per token, in nats, where it was measured.
        moments: unit -> mean of x x^T over inputs x, fp32 [columns, columns], where it was measured.
        tokens: tokens that the means are over.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)
    error8: dict[str, float] = field(default_factory=dict)
    error4: dict[str, float] = field(default_factory=dict)
    kl8: dict[str, float] = field(default_factory=dict)
    kl4: dict[str, float] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0


class NamedCheckpoint:
    """A checkpoint that remembers what was read, so that :class:`CalibrationOps` can tell which matrix it is given."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.config: Mapping[str, Any] = checkpoint.config
        self.shapes: Mapping[str, tuple[int, ...]] = checkpoint.shapes
        self._read: list[str] = []

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        self._read.append(name)
        return self._checkpoint.load(name, dtype)

    def quantized(self, name: str) -> None:
        """Never: the unquantized model is wanted."""

    def close(self) -> None:
        self._checkpoint.close()

    def take_unit(self, shape: Sequence[int]) -> str | None:
        """The unit of the matrices read last that make up one of ``shape``; None where they do not."""
        rows = 0
        for name in reversed(self._read):
            its = self.shapes[name]
            if not is_matrix(name, its):
                continue
            rows += its[0]
            if its[1] != shape[1] or rows >= shape[0]:
                if its[1] == shape[1] and rows == shape[0] and name not in (EMBEDDING, HEAD):
                    self._read.clear()
                    return unit_of(name)
                break
        return None


class CalibrationOps(Ops):
    """Ops whose ``linear`` can be watched and replaced, with the unit's name."""

    def __init__(self, ops: Ops, checkpoint: NamedCheckpoint) -> None:
        super().__init__(ops.bindings)
        self._checkpoint = checkpoint
        self._units: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id stays its own
        self._handler: Linear | None = None

    @property
    def units(self) -> list[str]:
        """In the order in which they were loaded, which is the order of a forward."""
        return [unit for unit, _ in self._units.values()]

    def pack_linear(self, weight: Tensor) -> Tensor:
        unit = self._checkpoint.take_unit(weight.shape)
        packed = super().pack_linear(weight)
        if unit is not None:
            self._units[id(packed)] = (unit, packed)
        return packed

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        known = self._units.get(id(weight))
        if known is None or self._handler is None:
            return super().linear(x, weight, bias)
        return self._handler(known[0], x, weight, bias)

    @contextmanager
    def watched(self, handler: Linear) -> Iterator[None]:
        """Inside, ``handler`` computes every named projection."""
        self._handler = handler
        try:
            yield
        finally:
            self._handler = None


def measure_importance(model: Model, ops: CalibrationOps, windows: Sequence[Sequence[int]]) -> Calibration:
    """Pass 1."""
    sums: dict[str, Tensor] = {}

    def observe(unit: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        squares = x.float().square().sum(0)
        sums[unit] = sums[unit] + squares if unit in sums else squares
        return F.linear(x, weight, bias)

    with ops.watched(observe):
        for window in windows:
            forward(model, [window], torch.zeros(1, dtype=torch.int64))
    tokens = sum(map(len, windows))
    return Calibration({unit: total / tokens for unit, total in sums.items()}, tokens=tokens)


def measure_moments(
    model: Model, ops: CalibrationOps, found: Calibration, windows: Sequence[Sequence[int]], units: Sequence[str]
) -> None:
    """Fills ``found.moments`` for ``units``: those with twice as many tokens as columns, as far as memory
    is granted."""
    tokens, left = sum(map(len, windows)), MOMENTS_BYTES
    wanted = set()
    for unit in units:
        columns = len(found.importance[unit]) if unit in found.importance else tokens
        if 2 * columns <= tokens and 4 * columns**2 <= left:
            wanted.add(unit)
            left -= 4 * columns**2
    if not wanted:
        return

    def observe(unit: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if unit in wanted:
            products = x.T @ x / tokens
            found.moments[unit] = found.moments[unit] + products if unit in found.moments else products
        return F.linear(x, weight, bias)

    with ops.watched(observe):
        for window in windows:
            forward(model, [window], torch.zeros(1, dtype=torch.int64))


def measure_errors(model: Model, ops: CalibrationOps, found: Calibration, sample: Sequence[Sequence[int]]) -> None:
    """Pass 2: fills ``found.error8`` and ``found.error4``."""

    def observe(unit: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        exact = F.linear(x, weight)
        power = exact.square().sum().clamp_min(1e-30)
        found.error8[unit] = float((_int8_linear(x, weight) - exact).square().sum() / power)
        if fits_int4({unit: tuple(weight.shape)}, [unit]):
            found.error4[unit] = float((F.linear(x, _int4(unit, weight, found)) - exact).square().sum() / power)
        return exact if bias is None else exact + bias

    with ops.watched(observe):
        forward(model, sample, torch.zeros(1, dtype=torch.int64))


def measure_divergence(
    model: Model,
    ops: CalibrationOps,
    found: Calibration,
    sample: Sequence[Sequence[int]],
    *,
    int8: Sequence[str],
    int4: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Pass 3: fills ``found.kl8`` for the units ``int8`` and ``found.kl4`` for ``int4``."""
    outputs: list[tuple[str, Tensor]] = []

    def record(unit: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = F.linear(x, weight, bias)
        outputs.append((unit, result.clone()))
        return result

    with ops.watched(record):
        exact = forward(model, sample).log_softmax(-1)
    for bits, units, target in ((8, int8, found.kl8), (4, int4, found.kl4)):
        for unit in units:
            with ops.watched(_replay(outputs, unit, bits, found)):
                changed = forward(model, sample).log_softmax(-1)
            target[unit] = float(F.kl_div(changed, exact, reduction="batchmean", log_target=True))
            say(f"{unit} alone in INT{bits}: KL divergence {target[unit]:.2e}")


def _replay(outputs: Sequence[tuple[str, Tensor]], changed: str, bits: int, found: Calibration) -> Linear:
    """Gives recorded outputs up to ``changed``, computes that unit quantized and those behind it as they are."""
    remaining = iter(outputs)
    behind = False

    def linear(unit: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        nonlocal behind
        if behind:
            return F.linear(x, weight, bias)
        recorded, result = next(remaining)
        assert recorded == unit, "a forward took another way than the recorded one"
        if unit != changed:
            return result.clone()
        behind = True
        exact = _int8_linear(x, weight) if bits == 8 else F.linear(x, _int4(unit, weight, found))
        return exact if bias is None else exact + bias

    return linear


def _int4(unit: str, weight: Tensor, found: Calibration) -> Tensor:
    return quantize(weight, 4, found.importance.get(unit)).dequantize(weight.dtype)


def _int8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """INT8 weights and activations, these with one scale per row and 32 columns (per row where 32 does not divide)."""
    rows, columns = x.shape
    groups = x.view(rows, -1, GROUP if columns % GROUP == 0 else columns)
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 127
    rounded = (groups / scale).round_().mul_(scale).view(rows, columns)
    return F.linear(rounded, quantize(weight, 8, group=int8_group(columns)).dequantize(weight.dtype))
