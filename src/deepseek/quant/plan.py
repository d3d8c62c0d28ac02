"""Which matrix gets how many bits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepseek.errors import ConfigurationError
from deepseek.quant.schemes import GROUP, int8_group

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROUTER = ".mlp.gate.weight"
KINDS = ("int8", "int4")
SIZE_TARGET = 0.4985
"""Of the FP16 size: below a half with room for the header."""

Shapes = Mapping[str, tuple[int, ...]]

_EXPERT = re.compile(r"(.*\.experts)\.\d+\..*")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


@dataclass(frozen=True)
class Plan:
    """Attributes:
    kind: ``int8`` or ``int4``.
    bits: every matrix's name -> 4, 8, or 16 for one that stays floating because it is sensitive.
    floating: the names of all other tensors (norms, biases, routers), which stay floating.
    reasons: unit -> why it departs from the rule of its kind.
    """

    kind: str
    bits: Mapping[str, int]
    floating: tuple[str, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def summary(self, shapes: Shapes) -> dict[str, Any]:
        """Matrices and weights per precision, for the report."""
        counts: dict[str, Any] = {}
        for bits in (4, 8, 16):
            names = [name for name, its in self.bits.items() if its == bits]
            counts[f"{bits} bits"] = {"matrices": len(names), "weights": sum(math.prod(shapes[name]) for name in names)}
        return {**counts, "reasons": dict(self.reasons)}


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one that is quantized: a matrix, but no router."""
    return len(shape) == 2 and name.endswith(".weight") and not name.endswith(ROUTER)


def unit_of(name: str) -> str:
    """Matrices of one unit get the same precision: those that share an input are one matrix in memory, and all experts
    of a layer are one tensor."""
    expert = _EXPERT.fullmatch(name)
    if expert:
        return expert[1]
    parts = name.split(".")
    if len(parts) > 2:
        parts[-2] = _FUSED.get(parts[-2], parts[-2])
    return ".".join(parts[:-1])


def units_of(shapes: Shapes) -> dict[str, list[str]]:
    """unit -> its matrices, in the order of the checkpoint; embedding and head are no units: they are INT8 always."""
    units: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if is_matrix(name, shape) and name not in (EMBEDDING, HEAD):
            units.setdefault(unit_of(name), []).append(name)
    return units


def stored_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of a matrix with its scales, zero points and shape."""
    rows, columns = shape
    if bits == 16:
        return 2 * rows * columns
    if bits == 8:
        return rows * columns + scale_bytes(shape)
    groups = columns // GROUP
    return rows * columns // 2 + 2 * rows * groups + 4 * (-(-rows // 8)) * groups + 16


def scale_bytes(shape: Sequence[int]) -> int:
    """Bytes of an INT8 matrix's scales."""
    rows, columns = shape
    return 2 * rows * (columns // int8_group(columns))


def plan_size(plan: Plan, shapes: Shapes, *, tied: bool) -> int:
    """Bytes of the weights that ``plan`` gives, without file headers."""
    total = sum(stored_bytes(shapes[name], bits) for name, bits in plan.bits.items())
    total += sum(2 * math.prod(shapes[name]) for name in plan.floating)
    return total + (scale_bytes(shapes[EMBEDDING]) if tied and plan.bits.get(EMBEDDING) == 8 else 0)


def float_size(shapes: Shapes) -> int:
    """Bytes of the same weights in FP16."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def fits_int4(shapes: Shapes, names: Sequence[str]) -> bool:
    return all(shapes[name][1] % GROUP == 0 for name in names)


def make_plan(
    kind: str,
    shapes: Shapes,
    *,
    tied: bool,
    cheapest: Sequence[str] = (),
    sensitive: Mapping[str, str] | None = None,
    target: float = SIZE_TARGET,
) -> Plan:
    """The plan of ``kind``.

    ``int4``: units in INT4 where their width allows it, embedding and head in INT8. ``int8``: everything in INT8,
    ``sensitive`` units (with the reason) floating, and as many of ``cheapest`` (units, the least harmful in INT4
    first) in INT4 as it takes to bring the size to ``target`` of FP16.

    Raises ConfigurationError for an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"a model can be quantized to {' or '.join(KINDS)}, not to {kind!r}.")
    units, sensitive = units_of(shapes), dict(sensitive or {})
    bits = {name: 8 for name, shape in shapes.items() if is_matrix(name, shape)}
    floating = tuple(name for name in shapes if name not in bits)
    reasons = dict(sensitive)
    if kind == "int4":
        for names in units.values():
            if fits_int4(shapes, names):
                bits.update(dict.fromkeys(names, 4))
        return Plan(kind, bits, floating)
    for unit in sensitive:
        bits.update(dict.fromkeys(units[unit], 16))
    limit = target * float_size(shapes)
    size = plan_size(Plan(kind, bits, floating), shapes, tied=tied)
    for unit in cheapest:
        if size <= limit:
            break
        if unit in sensitive or not fits_int4(shapes, units[unit]):
            continue
        size -= sum(stored_bytes(shapes[name], 8) - stored_bytes(shapes[name], 4) for name in units[unit])
        bits.update(dict.fromkeys(units[unit], 4))
        reasons[unit] = "INT4 to bring the file below half of FP16: among the least sensitive"
    return Plan(kind, bits, floating, reasons)
