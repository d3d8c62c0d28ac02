"""Small real model files, written by the tests' own means."""

from pathlib import Path

import gguf
import numpy as np
import pytest


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    """A well-formed GGUF with every kind of metadata and a few tensors."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("k.u8", 200)
    writer.add_int8("k.i8", -5)
    writer.add_uint16("k.u16", 60000)
    writer.add_int16("k.i16", -300)
    writer.add_int32("k.i32", -70000)
    writer.add_float32("k.f32", 0.1)
    writer.add_float64("k.f64", 0.1)
    writer.add_uint64("k.u64", 1 << 60)
    writer.add_int64("k.i64", -(1 << 60))
    writer.add_bool("k.bool", True)
    writer.add_string("k.text", "héllo 世界")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "", "世界", "a b"])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.0, 1e-3])
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.standard_normal((4, 32), dtype=np.float32))
    writer.add_tensor("half", rng.standard_normal((3, 5)).astype(np.float16))
    quantized = gguf.quants.quantize(rng.standard_normal((6, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
