"""Packed matrices: exact unpacking, products against numpy, and the same bits whatever computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from deepseek.kernels.cpu.extension import native, obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

Array = np.ndarray[Any, Any]
GGUF = {"Q8_0": "int8", "Q5_0": "int8", "Q4_0": "int4", "Q4_1": "int4", "Q4_K": "q4_k", "Q6_K": "q6_k"}
ISAS: list[str] = native().available_isas() if obstacle() is None else []
FORMATS = [*GGUF, "int8_channel", "int8_g64", "int4_g64", "fp16", "bf16"]


def blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> Array:
    """Stored blocks of a GGUF type, with every bit of quants and small scales at random."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    where = {"Q6_K": [208]}.get(kind, [0, 2] if kind in ("Q4_1", "Q4_K") else [0])
    for offset in where:
        scale = (rng.standard_normal((rows, columns // elements)) * 0.01).astype(np.float16)
        data[:, :, offset : offset + 2] = scale.view(np.uint8).reshape(rows, -1, 2)
    return data.reshape(rows, -1)


def make(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[Any, Array]:
    """(packed matrix, its exact values)."""
    rng = np.random.default_rng(seed)
    module = native()
    if kind in GGUF:
        data = blocks(kind, rows, columns, rng)
        matrix = module.Matrix(GGUF[kind], rows, columns)
        assert matrix.put_gguf(kind, data) == -1
        return matrix, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    if kind in ("fp16", "bf16"):
        values = rng.integers(-128, 129, (rows, columns)).astype(np.float32) / 64  # exact in both
        matrix = module.Matrix(kind, rows, columns)
        assert matrix.put_float(values) == -1
        return matrix, values
    group = columns if kind == "int8_channel" else 64
    groups = -(-columns // group)
    scale = rng.random((rows, groups)).astype(np.float16).astype(np.float32)
    spread = np.repeat(scale, group, axis=1)[:, :columns]
    if kind == "int4_g64":
        q = rng.integers(0, 16, (rows, columns), dtype=np.uint8)
        minimum = (8 * scale).astype(np.float16).astype(np.float32)
        matrix = module.Matrix("int4", rows, columns)
        assert matrix.put_int4(q, scale, minimum, group) == -1
        return matrix, spread * q - np.repeat(minimum, group, axis=1)[:, :columns]
    q8 = rng.integers(-128, 128, (rows, columns), dtype=np.int8)
    matrix = module.Matrix("int8" if kind == "int8_g64" else kind, rows, columns)
    assert matrix.put_int8(q8, scale, group) == -1
    return matrix, spread * q8


def quantized(x: Array) -> Array:
    """Wide rows without a matrix unit: int8 per group of 32 columns."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    scale = np.abs(padded).max(axis=2, keepdims=True) / 127
    q = np.rint(padded / np.where(scale == 0, 1, scale))
    return (q * scale).reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 48])
def test_values_are_kept_exactly(kind: str, rows: int) -> None:
    matrix, values = make(kind, rows, 512)
    np.testing.assert_array_equal(matrix.dequantize(), values.astype(np.float32))
    assert matrix.shape == (rows, 512)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
def test_products(kind: str, tokens: int, isa: str) -> None:
    matrix, values = make(kind, 67, 512)
    x = np.random.default_rng(1).standard_normal((tokens, 512)).astype(np.float32)
    expected = x.astype(np.float64) @ values.astype(np.float64).T
    actual = matrix.multiply(x, isa)
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_bits_for_any_rows_threads_and_instructions(kind: str) -> None:
    matrix, _ = make(kind, 67, 512)
    x = np.random.default_rng(2).standard_normal((37, 512)).astype(np.float32)
    expected = np.concatenate([matrix.multiply(x[i : i + 1], "avx2", 1) for i in range(len(x))])
    for isa in ISAS:
        for threads in (1, 2, 3):
            for tokens in (1, 2, 3, 5, 8, 13, 16, 37):
                np.testing.assert_array_equal(matrix.multiply(x[:tokens], isa, threads), expected[:tokens])


def bf16(x: Array) -> Array:
    return torch.from_numpy(x).to(torch.bfloat16).double().numpy()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "amx"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [1, 8, 33])
def test_wide_products_without_a_matrix_unit(kind: str, tokens: int, isa: str) -> None:
    matrix, values = make(kind, 67, 512)
    x = np.random.default_rng(1).standard_normal((tokens, 512)).astype(np.float32)
    expected = (x if kind in ("fp16", "bf16") else quantized(x)).astype(np.float64) @ values.astype(np.float64).T
    actual = matrix.multiply(x, isa, narrow=0)
    assert np.abs(actual - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.skipif("amx" not in ISAS, reason="no matrix unit")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("columns", [256, 512, 1792])
@pytest.mark.parametrize("tokens", [1, 16, 17, 32, 33, 100])
def test_wide_products(kind: str, columns: int, tokens: int) -> None:
    """Operands rounded to bf16, sums in fp32 (fp16 weights have no wide form and are not rounded)."""
    matrix, values = make(kind, 67, columns)
    x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    rounded = exact if kind == "fp16" else bf16(x) @ bf16(values.astype(np.float32)).T
    actual = matrix.multiply(x, "amx", 2, narrow=0)
    assert np.abs(actual - rounded).max() < 2e-5 * np.abs(exact).max()
    assert np.linalg.norm(actual - exact) < 5e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
def test_wide_rows_depend_on_nothing_around_them(kind: str, isa: str) -> None:
    matrix, _ = make(kind, 67, 1792)
    x = np.random.default_rng(2).standard_normal((70, 1792)).astype(np.float32)
    narrow = matrix.multiply(x, isa)
    wide = np.concatenate([matrix.multiply(x[i : i + 1], isa, narrow=0) for i in range(len(x))])
    for threads in (1, 2, 3):
        for first in (0, 1, 5, 16, 37, 70):
            for tokens in (first, first + 1, 38, 70):
                expected = np.concatenate([narrow[:first], wide[first:]])[:tokens]
                actual = matrix.multiply(x[:tokens], isa, threads, narrow=min(first, tokens))
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("columns", [1, 31, 33, 40])
def test_columns_that_fill_no_group(columns: int) -> None:
    q = np.full((3, columns), -128, dtype=np.int8)
    matrix = native().Matrix("int8_channel", 3, columns)
    assert matrix.put_int8(q, np.ones((3, 1), np.float32), columns) == -1
    x = np.full((6, columns), 127, dtype=np.float32)
    np.testing.assert_allclose(matrix.multiply(x), np.full((6, 3), -128 * 127 * columns), rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight", [-128, -127, 127, 0, 1])
@pytest.mark.parametrize("activation", [-127.0, 127.0, 1.0])
def test_extremes_do_not_saturate(weight: int, activation: float, isa: str) -> None:
    """vpmaddubsw saturates at int16: every product at its largest, in both signs."""
    matrix = native().Matrix("int8_channel", 16, 256)
    matrix.put_int8(np.full((16, 256), weight, np.int8), np.ones((16, 1), np.float32), 256)
    x = np.full((5, 256), activation, np.float32)
    x[:, ::32] = 127.0  # the scale of every group is 1
    np.testing.assert_array_equal(matrix.multiply(x, isa), np.repeat(x.sum(1, keepdims=True) * weight, 16, axis=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_extremes_of_nibbles(kind: str, byte: int, isa: str) -> None:
    data = blocks(kind, 16, 256, np.random.default_rng(0))
    header = {"Q4_1": slice(4, 20), "Q4_K": slice(16, 144), "Q6_K": slice(0, 192)}[kind]
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    data.reshape(16, -1, size)[:, :, header] = byte
    matrix = native().Matrix(GGUF[kind], 16, 256)
    assert matrix.put_gguf(kind, data) == -1
    for sign in (-1, 1):
        x = np.full((5, 256), 127.0 * sign, np.float32)
        expected = x.astype(np.float64) @ gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).T
        np.testing.assert_allclose(matrix.multiply(x, isa), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_row_harms_no_other(kind: str, bad: float) -> None:
    matrix, _ = make(kind, 32, 256)
    x = np.random.default_rng(3).standard_normal((20, 256)).astype(np.float32)
    expected = matrix.multiply(x)
    x[7, 100] = bad
    actual = matrix.multiply(x)
    assert not np.isfinite(actual[7]).any()
    np.testing.assert_array_equal(np.delete(actual, 7, axis=0), np.delete(expected, 7, axis=0))


@pytest.mark.parametrize("magnitude", [0.0, 1e-40, 1e-30, 1e30])
def test_tiny_and_huge_activations(magnitude: float) -> None:
    matrix, values = make("Q8_0", 16, 64)
    x = np.full((2, 64), magnitude, np.float32)
    actual = matrix.multiply(x)
    expected = x.astype(np.float64) @ values.T
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-35)


def _nan_scale(kind: str) -> Callable[[], int]:
    def put() -> int:
        data = blocks(kind, 20, 256, np.random.default_rng(0))
        offset = 208 if kind == "Q6_K" else 0
        data[13, offset : offset + 2] = np.array([np.nan], np.float16).view(np.uint8)
        return int(native().Matrix(GGUF[kind], 20, 256).put_gguf(kind, data))

    return put


@pytest.mark.parametrize("kind", list(GGUF))
def test_a_scale_that_is_not_finite_is_found(kind: str) -> None:
    assert _nan_scale(kind)() == 13


def test_rows_in_turns() -> None:
    """Gate and up of 40 rows each: 32 of one, 32 of the other, and so on."""
    gate, up = (np.arange(40 * 32, dtype=np.float32).reshape(40, 32) / 64 + i for i in (0, 20))
    matrix = native().Matrix("fp16", 128, 32)
    matrix.put_float(gate, 0, True)
    matrix.put_float(up, 32, True)
    rows = matrix.dequantize()
    np.testing.assert_array_equal(rows[:32], gate[:32].astype(np.float16))
    np.testing.assert_array_equal(rows[32:64], up[:32].astype(np.float16))
    np.testing.assert_array_equal(rows[64:72], gate[32:].astype(np.float16))
    np.testing.assert_array_equal(rows[96:104], up[32:].astype(np.float16))


def test_what_does_not_fit_is_refused() -> None:
    module = native()
    with pytest.raises(ValueError, match="unknown matrix format"):
        module.Matrix("q2_k", 16, 256)
    with pytest.raises(ValueError, match="256 columns"):
        module.Matrix("q4_k", 16, 128)
    matrix = module.Matrix("int8", 16, 64)
    with pytest.raises(ValueError, match="do not fit"):
        matrix.put_gguf("Q4_1", blocks("Q4_1", 16, 64, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="do not fit"):
        matrix.put_gguf("Q8_0", blocks("Q8_0", 17, 64, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="do not fit"):
        matrix.put_gguf("Q8_0", blocks("Q8_0", 16, 96, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="do not fit"):
        matrix.put_int8(np.zeros((16, 64), np.int8), np.ones((16, 3), np.float32), 32)
    with pytest.raises(ValueError, match="columns"):
        matrix.multiply(np.zeros((1, 65), np.float32))
    with pytest.raises(ValueError, match="instruction set"):
        matrix.multiply(np.zeros((1, 64), np.float32), "sse9")
