"""Sizes of the pieces that a matrix product is cut into. Fixed per class of shapes: a search at run time would make the
first requests slow and results depend on how busy the machine was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton
import triton.language as tl

from deepseek.kernels.triton.support import Chip
from deepseek.kernels.triton.weights import Int4Weight, QuantizedWeight

FEW_ROWS = 16
"""Up to here a product waits for its weights, and one tile of the matrix unit holds all rows."""

UNPACKED_ROWS = 512
"""From here INT4 weights are made INT8 once for all rows: to write and read them takes less time than to unpack them
for each of four tiles of rows."""

PRESCALE_ROWS = 32
"""In larger tiles scales of weight-only products are applied to the weights: there are fewer of them than of sums."""

MOST_SPLIT_ROWS = 128
"""Up to here the depth may be cut: partial sums of more rows would cost more memory traffic than idle processors do."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes.

    Attributes:
        rows: rows of the input.
        outs: columns of the result.
        depth: columns of the input that are multiplied at once.
        warps: warps of a program.
        stages: tiles that are fetched ahead of the product.
    """

    rows: int
    outs: int
    depth: int
    warps: int
    stages: int

    def programs(self, rows: int, outs: int) -> int:
        count: int = triton.cdiv(rows, self.rows) * triton.cdiv(outs, self.outs)
        return count


BAND = 8
"""Tiles of rows that are computed for one tile of weights before the next is read, so that both stay in the L2
cache."""


def fitted(tile: Tile, stage: int, fixed: int, chip: Chip) -> Tile:
    """``tile`` with as many of its stages of ``stage`` bytes as go into the chip's shared memory beside ``fixed``
    ones."""
    room = (chip.shared_memory - fixed) // stage
    return replace(tile, stages=max(1, min(tile.stages, room)))


def int8_tile(rows: int, outs: int, chip: Chip) -> Tile:
    """For INT8 by INT8. Tiles are halved where whole ones would leave processors idle."""
    if rows <= 16:
        tile = Tile(16, 64, 256, warps=4, stages=4)
    elif rows <= 32:
        tile = Tile(32, 64, 256, warps=4, stages=4)
    elif rows <= 64:
        tile = Tile(64, 128, 128, warps=4, stages=4)
    else:
        tile = Tile(128, 256, 128, warps=8, stages=3)
        if tile.programs(rows, outs) < chip.processors:
            tile = Tile(128, 128, 128, warps=8, stages=4)
    return fitted(tile, (tile.rows + tile.outs) * tile.depth, 0, chip)


def weight_only_tile(rows: int, depth: int, bits: int, chip: Chip, itemsize: int = 2) -> Tile:
    """For inputs of ``itemsize`` bytes by weights that are made in registers. ``depth``, a step of the weights' layout,
    is given; narrow steps take more stages, so that enough bytes are on their way."""
    if rows <= 32:
        tile = Tile(16 if rows <= 16 else 32, 64, depth, warps=4, stages=8 if depth <= 32 else 5)
    elif rows <= 64:
        tile = Tile(64, 128, depth, warps=4, stages=4)
    else:
        tile = Tile(128, 128, depth, warps=8, stages=3)
    inputs = tile.rows * depth * itemsize * (8 // bits)
    return fitted(tile, inputs + tile.outs * depth, tile.outs * depth * itemsize, chip)


def int8_rows_tile(rows: int, outs: int, weight: QuantizedWeight, chip: Chip) -> Tile:
    """For ``rows`` INT8 rows by ``outs`` rows of ``weight``."""
    if isinstance(weight, Int4Weight):
        return weight_only_tile(rows, weight.width, 4, chip, itemsize=1)
    return int8_tile(rows, outs, chip)


def float_rows_tile(rows: int, weight: QuantizedWeight, chip: Chip) -> Tile:
    """For ``rows`` 16-bit rows by ``weight``."""
    if isinstance(weight, Int4Weight):
        return weight_only_tile(rows, weight.width, 4, chip)
    step = 128 if rows <= FEW_ROWS else 64
    if not weight.per_channel:
        step = min(step, weight.group & -weight.group)
    return weight_only_tile(rows, step, 8, chip)


def experts_tile(pairs: int, experts: int, itemsize: int, chip: Chip) -> Tile:
    """For products grouped by expert, two of them at once, by how many pairs of row and choice an expert has on
    average; ``itemsize`` bytes an element."""
    average = pairs // experts
    if average <= 16:
        tile = Tile(16, 64, 128, warps=4, stages=4)
    elif average <= 32:
        tile = Tile(32, 64, 128, warps=4, stages=3)
    elif average <= 64:
        tile = Tile(64, 128, 64, warps=4, stages=3)
    else:
        tile = Tile(128, 128, 64, warps=8, stages=3)
    if itemsize > 2:
        tile = replace(tile, depth=32)
    return fitted(tile, (tile.rows + 2 * tile.outs) * tile.depth * itemsize, 0, chip)


def splits_for(tile: Tile, rows: int, outs: int, depth: int, chip: Chip) -> int:
    """Into how many parts the depth of a product is cut, so that few rows give each processor four programs; at least
    eight tiles of depth remain for each, as filling the pipeline costs time."""
    wanted = triton.cdiv(4 * chip.processors, tile.programs(rows, outs)) if rows <= MOST_SPLIT_ROWS else 1
    return max(1, min(wanted, depth // (8 * tile.depth)))


@triton.jit
def place_of(program: tl.tensor, row_tiles: tl.tensor, out_tiles: tl.tensor, BAND: tl.constexpr) -> tl.tensor:
    """(row tile, out tile) of a program: bands of BAND row tiles, down the band first."""
    band = program // (BAND * out_tiles)
    first = band * BAND
    height = tl.minimum(row_tiles - first, BAND)
    inside = program % (BAND * out_tiles)
    return first + inside % height, inside // height
