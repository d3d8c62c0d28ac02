"""Sizes of the pieces that a matrix product is cut into. Fixed per class of shapes: a search at run time would make the
first requests slow and results depend on how busy the machine was."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

FEW_ROWS = 16
"""Up to here a product waits for its weights, and one tile of the matrix unit holds all rows."""


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
        return triton.cdiv(rows, self.rows) * triton.cdiv(outs, self.outs)


BAND = 8
"""Tiles of rows that are computed for one tile of weights before the next is read, so that both stay in the L2
cache."""


def int8_tile(rows: int, outs: int, processors: int) -> Tile:
    """For INT8 by INT8. Tiles are halved where whole ones would leave processors idle."""
    if rows <= 16:
        return Tile(16, 64, 256, warps=4, stages=4)
    if rows <= 32:
        return Tile(32, 64, 256, warps=4, stages=4)
    if rows <= 64:
        return Tile(64, 128, 128, warps=4, stages=4)
    wide = Tile(128, 256, 128, warps=8, stages=3)
    return wide if wide.programs(rows, outs) >= processors else Tile(128, 128, 128, warps=8, stages=4)


def weight_only_tile(rows: int, depth: int) -> Tile:
    """For 16-bit inputs by quantized weights; ``depth`` follows from the weights' layout."""
    if rows <= 16:
        return Tile(16, 64, depth, warps=4, stages=5)
    if rows <= 32:
        return Tile(32, 64, depth, warps=4, stages=4)
    if rows <= 64:
        return Tile(64, 128, depth, warps=4, stages=4)
    return Tile(128, 128, depth, warps=8, stages=3)


def splits_for(tile: Tile, rows: int, outs: int, depth: int, processors: int) -> int:
    """Into how many parts the depth of a product is cut, so that few rows occupy all processors twice; at least eight
    tiles of depth remain for each, as filling the pipeline costs time."""
    wanted = triton.cdiv(2 * processors, tile.programs(rows, outs))
    return max(1, min(wanted, depth // (8 * tile.depth)))


@triton.jit
def place_of(program: tl.tensor, row_tiles: tl.tensor, out_tiles: tl.tensor, BAND: tl.constexpr) -> tl.tensor:
    """(row tile, out tile) of a program: bands of BAND row tiles, down the band first."""
    band = program // (BAND * out_tiles)
    first = band * BAND
    height = tl.minimum(row_tiles - first, BAND)
    inside = program % (BAND * out_tiles)
    return first + inside % height, inside // height
