"""Our decoders against the `gguf` package's numpy ones, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from deepseek.hub import dequant
from deepseek.hub.dequant import dequantize
from deepseek.hub.gguf_file import BLOCK_TYPES

QUANTIZED = [block for block in BLOCK_TYPES.values() if block.elements > 1]


def reference(data: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def random_blocks(rng: np.random.Generator, block, count: int) -> np.ndarray:
    """Random bytes, with all-zero, all-one and sign-bit blocks; scales that are NaN or infinite come by themselves."""
    data = rng.integers(0, 256, (count, block.size), dtype=np.uint8)
    data[0], data[1], data[2], data[3] = 0, 255, 128, 127
    return data


def same(ours: torch.Tensor, theirs: np.ndarray) -> None:
    ours_np = ours.numpy()
    np.testing.assert_array_equal(np.isnan(ours_np), np.isnan(theirs))
    keep = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours_np[keep].view(np.uint32), theirs[keep].view(np.uint32))


@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
def test_bits_equal_reference(block):
    rng = np.random.default_rng(1)
    per_chunk = dequant.CHUNK // block.elements
    for count in (4, per_chunk - 1, per_chunk, per_chunk + 1):
        data = random_blocks(rng, block, count)
        same(dequantize(torch.from_numpy(data), block, torch.float32), reference(data, block.name))


@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_round_the_fp32_result(block, dtype):
    data = torch.from_numpy(random_blocks(np.random.default_rng(2), block, 300))
    wide = dequantize(data, block, torch.float32)
    torch.testing.assert_close(dequantize(data, block, dtype), wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
def test_rows_and_blocks_keep_their_order(block):
    data = random_blocks(np.random.default_rng(3), block, 12)
    rows = data.reshape(4, 3 * block.size)
    ours = dequantize(torch.from_numpy(rows), block, torch.float32)
    assert ours.shape == (4, 3 * block.elements)
    same(ours, reference(rows, block.name))


@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_types(name, dtype):
    block = next(b for b in BLOCK_TYPES.values() if b.name == name)
    values = torch.tensor([[1.5, -0.0], [65504.0, 1e-7]], dtype=dtype)
    data = values.view(torch.uint8)
    assert torch.equal(dequantize(data, block, dtype), values)
    assert torch.equal(dequantize(data, block, torch.float32), values.float())
