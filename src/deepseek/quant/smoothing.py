"""Moving scale from a matrix's input columns into whatever produces them, so that both round well.

Language models have a few input columns ten to three hundred times as large as the others. In 8-bit activations they
drown their group; in the weights the columns beside them waste the steps. Dividing column j of the input by ``s[j]``
and multiplying column j of the weights by it changes nothing but the rounding, and costs nothing where the division
goes into what comes before: the weights of a norm, or the rows of another matrix (SmoothQuant, arXiv:2211.10438; with
the scales of AWQ, arXiv:2306.00978, for INT4). Here ``s[j] = sqrt(rms(input[:, j]) / rms(weight[:, j]))``, rounded to
a power of two: floating weights stay exactly what they were, in any dtype.

=========================  ==============================  ============================================
input of                   divided                         left alone where
=========================  ==============================  ============================================
query, key, value          the norm before them            there is latent attention
gate and up                the norm before them            there are experts, whose router shares it
down                       the rows of up                  it belongs to an expert
attention's output         the rows of value               there is latent attention
=========================  ==============================  ============================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import Checkpoint
from deepseek.quant.plan import unit_of

_LIMIT = 6
"""Scales are within 2**-6 ... 2**6 of their geometric mean."""

_LAYER = re.compile(r"(model\.layers\.\d+)\.input_layernorm\.weight")


@dataclass
class Scaling:
    """What a tensor is multiplied with: fp32 [rows] (of a vector, its elements) and [columns]; powers of two.

    ``offset`` is added to a norm's weight before it is used, so that ``weight + offset`` is what is scaled.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    offset: float = 0.0

    def apply(self, value: Tensor) -> Tensor:
        if self.rows is not None:
            rows = self.rows if value.dim() == 1 else self.rows[:, None]
            value = (value + self.offset) * rows - self.offset
        return value if self.columns is None else value * self.columns


class SmoothedCheckpoint:
    """``checkpoint`` with its tensors scaled: another set of weights of the same function."""

    def __init__(self, checkpoint: Checkpoint, scalings: Mapping[str, Scaling]) -> None:
        self._checkpoint = checkpoint
        self.scalings = scalings
        self.config: Mapping[str, Any] = checkpoint.config
        self.shapes: Mapping[str, tuple[int, ...]] = checkpoint.shapes

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        scaling = self.scalings.get(name)
        if scaling is None:
            return self._checkpoint.load(name, dtype)
        return scaling.apply(self._checkpoint.load(name, torch.float32)).to(dtype)

    def quantized(self, name: str) -> None:
        """Never: stored integers are those of the unscaled weights."""

    def close(self) -> None:
        self._checkpoint.close()


def smooth(checkpoint: Checkpoint, importance: dict[str, Tensor], *, norm_offset: float = 0.0) -> SmoothedCheckpoint:
    """``checkpoint`` scaled for inputs whose mean squares per column are ``importance`` (unit -> fp32 [columns]), which
    are updated to those of the scaled inputs. ``norm_offset`` is what the family adds to the weights of its norms."""
    scalings: dict[str, Scaling] = {}
    shapes = checkpoint.shapes
    for prefix in [found[1] for name in checkpoint.shapes if (found := _LAYER.fullmatch(name))]:
        norms = [f"{prefix}.{name}_layernorm.weight" for name in ("pre_feedforward", "post_attention")]
        norm = norms[0] if norms[0] in shapes else norms[1]
        attention = [f"{prefix}.self_attn.{part}_proj.weight" for part in "qkv"]
        gate, up, down = (f"{prefix}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        output = f"{prefix}.self_attn.o_proj.weight"
        for producer, consumers, repeated in (
            (f"{prefix}.input_layernorm.weight", attention, 1),
            (norm, [gate, up], 1),
            (up, [down], 1),
            (attention[2], [output], shapes[output][1] // shapes.get(attention[2], shapes[output][::-1])[0]),
        ):
            names = [producer, *consumers]
            if all(name in shapes for name in names) and unit_of(consumers[0]) in importance:
                head_dim = shapes[output][1] // checkpoint.config["num_attention_heads"] if repeated > 1 else 1
                _scale(checkpoint, scalings, importance, names, repeated, head_dim, norm_offset)
    return SmoothedCheckpoint(checkpoint, scalings)


def _scale(
    checkpoint: Checkpoint,
    scalings: dict[str, Scaling],
    importance: dict[str, Tensor],
    names: list[str],
    repeated: int,
    head_dim: int,
    offset: float,
) -> None:
    """``names``: the producer and its consumers. Each ``head_dim`` outputs of it are ``repeated`` times among their
    inputs (query heads that share a value head)."""
    producer, *consumers = names
    unit = unit_of(consumers[0])
    weights = [checkpoint.load(name, torch.float32).square().mean(0) for name in consumers]
    ratio = importance[unit].clamp_min(1e-20) / torch.stack(weights).amax(0).clamp_min(1e-20)
    exponent = ratio.log2() / 4  # a square root of squares, and the square root of their ratio
    shared = exponent.view(-1, repeated, head_dim).amax(1).flatten()
    shared = (shared - shared.mean()).round().clamp(-_LIMIT, _LIMIT)
    columns = torch.exp2(shared).view(-1, 1, head_dim).expand(-1, repeated, head_dim).flatten()
    _entry(scalings, producer).rows = torch.exp2(-shared)
    if (bias := producer.removesuffix("weight") + "bias") in checkpoint.shapes:
        _entry(scalings, bias).rows = torch.exp2(-shared)
    if len(checkpoint.shapes[producer]) == 1:
        _entry(scalings, producer).offset = offset
    for name in consumers:
        _entry(scalings, name).columns = columns
    importance[unit] = importance[unit] / columns.square()


def _entry(scalings: dict[str, Scaling], name: str) -> Scaling:
    return scalings.setdefault(name, Scaling())
