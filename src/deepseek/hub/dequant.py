"""GGUF blocks to floating point, equal bit for bit to ggml's own arithmetic in fp32.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0 ... block_q6_K). A decoder gets
``blocks`` uint8 [n, bytes per block] and fills ``out`` fp32 [n, values per block]. Multiplication and addition stay
apart (no fused multiply-add), since ggml rounds after each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek.hub.gguf_file import BlockType

CHUNK = 1 << 18
"""Values decoded at a time on a CPU: the fp32 scratch and its temporaries stay in the cache of a core or two."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(data: Tensor, block: BlockType, dtype: torch.dtype) -> Tensor:
    """``data`` uint8 [rows, row bytes] of whole blocks -> ``dtype`` [rows, values], in fresh memory; a float type that
    is asked for as it is stored comes back as a view."""
    rows = data.shape[0]
    if block.name in _PLAIN:
        return data.view(_PLAIN[block.name]).to(dtype)
    blocks = data.reshape(-1, block.size)
    decode = _DECODERS[block.name]
    out = torch.empty(blocks.shape[0], block.elements, dtype=dtype, device=data.device)
    step = max(1, blocks.shape[0]) if data.is_cuda else CHUNK // block.elements
    scratch = torch.empty(0 if dtype == torch.float32 else step, block.elements, device=data.device)
    for start in range(0, blocks.shape[0], step):
        chunk = blocks[start : start + step]
        target = out[start : start + step]
        if dtype == torch.float32:
            decode(chunk, target)
        else:
            decode(chunk, scratch[: chunk.shape[0]])
            target.copy_(scratch[: chunk.shape[0]])
    return out.view(rows, -1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The fp16 number at byte ``start`` of each block, fp32 [n, 1]."""
    return blocks[:, start : start + 2].view(torch.float16).float()


def _nibbles(packed: Tensor, out: Tensor) -> None:
    """``packed`` [n, groups, width] -> ``out`` [n, groups * 2 * width]: low halves of a group, then its high ones."""
    n, groups, width = packed.shape
    pairs = out.view(n, groups, 2, width)
    pairs[:, :, 0] = packed & 15
    pairs[:, :, 1] = packed >> 4


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """Bit i of the 32-bit word at byte ``start``, times 16: uint8 [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    bits = blocks[:, start : start + 4, None] >> shifts & 1
    return bits.view(-1, 32) << 4


def _five_bits(blocks: Tensor, high: int, low: int, out: Tensor) -> None:
    packed = blocks[:, low : low + 16]
    values = torch.cat((packed & 15, packed >> 4), dim=1)
    values |= _fifth_bits(blocks, high)
    out.copy_(values)


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, None, 2:18], out)
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, None, 4:20], out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    _five_bits(blocks, 2, 6, out)
    out.sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    _five_bits(blocks, 4, 8, out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:34].view(torch.int8))
    out.mul_(_half(blocks, 0))


def _scale_groups(out: Tensor, groups: int, scales: Tensor, minima: Tensor | None = None) -> None:
    """``out`` [n, 256] in equal groups, times its scale [n, groups], minus its minimum [n, groups]."""
    grouped = out.view(-1, groups, 256 // groups)
    grouped.mul_(scales[..., None])
    if minima is not None:
        grouped.sub_(minima[..., None])


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes [n, 12] that hold 8 scales and 8 minima of 6 bits in Q4_K and Q5_K; both fp32 [n, 8]."""
    first, second, mixed = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((first & 63, (mixed & 15) | (first >> 2 & 48)), dim=1)
    minima = torch.cat((second & 63, (mixed >> 4) | (second >> 2 & 48)), dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    _nibbles(blocks[:, 16:144].view(-1, 4, 32), out)
    _scale_groups(out, 8, scales.mul_(_half(blocks, 0)), minima.mul_(_half(blocks, 2)))


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    high = blocks[:, 16:48]
    packed = blocks[:, 48:176].view(-1, 4, 32)
    groups = out.view(-1, 8, 32)
    for pair in range(4):
        low = packed[:, pair]
        groups[:, 2 * pair] = (low & 15) | (high >> 2 * pair & 1) << 4
        groups[:, 2 * pair + 1] = low >> 4 | (high >> 2 * pair + 1 & 1) << 4
    _scale_groups(out, 8, scales.mul_(_half(blocks, 0)), minima.mul_(_half(blocks, 2)))


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    low = blocks[:, 0:128].view(-1, 2, 2, 32)
    high = blocks[:, 128:192].view(-1, 2, 32)
    values = out.view(-1, 2, 4, 32)
    values[:, :, 0:2] = low & 15
    values[:, :, 2:4] = low >> 4
    for part in range(4):
        values[:, :, part] += (high >> 2 * part & 3) << 4
    out.sub_(32)
    scales = blocks[:, 192:208].view(torch.int8).float()
    _scale_groups(out, 16, scales.mul_(_half(blocks, 208)))


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    scales = blocks[:, 0:16]
    packed = blocks[:, 16:80].view(-1, 2, 32)
    values = out.view(-1, 2, 4, 32)
    for part in range(4):
        values[:, :, part] = packed >> 2 * part & 3
    minima = (scales >> 4).float().mul_(_half(blocks, 82))
    _scale_groups(out, 16, (scales & 15).float().mul_(_half(blocks, 80)), minima)


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    low_scales, high_scales = blocks[:, 96:104], blocks[:, 104:108]
    upper = torch.cat([high_scales >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    scales = (torch.cat((low_scales & 15, low_scales >> 4), dim=1) | upper << 4).float().sub_(32)
    packed = blocks[:, 32:96].view(-1, 2, 32)
    present = blocks[:, 0:32]
    values = out.view(-1, 2, 4, 32)
    for part in range(4):
        values[:, :, part] = packed >> 2 * part & 3
    for group in range(8):  # the third bit says "do not subtract 4"
        values[:, group // 4, group % 4] -= (present >> group & 1 ^ 1) << 2
    _scale_groups(out, 16, scales.mul_(_half(blocks, 108)))


_DECODERS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
