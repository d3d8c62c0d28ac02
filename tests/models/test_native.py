"""Models on the native kernels: against torch in fp32, and the promise that a row depends on nothing around it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from deepseek.errors import BackendUnavailableError, CheckpointError, ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.hub.gguf_checkpoint import GGUFCheckpoint
from deepseek.kernels.cpu.extension import native, obstacle
from deepseek.kernels.registry import bind
from deepseek.models.blocks import load_experts
from deepseek.models.decoder import Decoder
from deepseek.models.native import NativeDecoder, native_obstacle
from deepseek.models.native_weights import NativeWeights
from deepseek.models.registry import load_model, load_native_model, parse_config
from deepseek.quant.schemes import quantize
from tests.hub.test_gguf_checkpoint import COMMON, write
from tests.models.published import PUBLISHED
from tests.models.simulated import simulated
from tests.parity import tiny
from tests.parity.driver import Driver

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

MODELS = [
    "llama-wide",
    "llama-wide-biases",
    "qwen2-wide-window",
    "qwen3-wide",
    "gemma3",
    "gemma3-untied-scaled-softcap",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "deepseek-v2-wide",
    "deepseek-v3-wide",
]
PROMPT = [(7 * i * i + 3) % tiny.VOCAB for i in range(70)]


@cache
def checkpoint(name: str) -> tiny.MemoryCheckpoint:
    return tiny.checkpoint(tiny.build(name))


@cache
def truth(name: str, backend: str = "reference") -> Decoder:
    """``torch`` is as exact, and fast enough for long contexts."""
    return load_model(checkpoint(name), ops=bind("cpu", backend), dtype=torch.float32, device="cpu")


def load(
    name: str, scheme: str = "fp16", *, threads: int = 1, kv_dtype: str = "fp16", isa: str = "auto"
) -> NativeDecoder:
    return load_native_model(checkpoint(name), scheme=scheme, kv_dtype=kv_dtype, threads=threads, isa=isa)


def isas() -> list[str]:
    return list(native().available_isas()) if obstacle() is None else []


def logits(
    model: NativeDecoder | Decoder, chunks: tuple[int, ...] = (len(PROMPT),), *, narrow: bool = True
) -> torch.Tensor:
    """Of all rows of the prompt, computed in chunks."""
    driver = Driver(model, page_size=16, num_pages=16, shuffle=True)
    results, start = [], 0
    for count in chunks:
        results += driver.step([(0, PROMPT[start : start + count])], narrow_rows=count if narrow else 0)
        start += count
    assert start == len(PROMPT)
    return torch.cat(results)


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", MODELS)
def test_fp16_is_close_to_fp32(name: str, isa: str) -> None:
    assert distance(logits(load(name, isa=isa)), logits(truth(name))) < 5e-3


@pytest.mark.parametrize("name", [name for name in MODELS if "moe" not in name and "deepseek" not in name])
def test_quantized_is_close_to_its_own_weights_in_fp32(name: str) -> None:
    """int8 rounds weights to 1/254 of their range, and activations as much again."""
    assert distance(logits(load(name, "int8")), logits(truth(name))) < 0.06


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_every_scheme_computes_what_it_says(name: str, scheme: str) -> None:
    """Against torch with the same weights unpacked and activations rounded as narrow rows are. A row whose router
    stands between two experts may choose the other one, and shows it to the rows behind it."""
    expected = logits(simulated(checkpoint(name), scheme))
    rows = (logits(load(name, scheme)) - expected).norm(dim=1) / expected.norm(dim=1)
    if scheme in ("fp16", "bf16"):
        assert rows.max() < 1e-3
    assert rows.quantile(0.5) < 1e-3
    assert rows.quantile(0.9) < 0.02
    wide = (logits(load(name, scheme), narrow=False) - expected).norm(dim=1) / expected.norm(dim=1)
    assert wide.quantile(0.5) < 0.03


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama-wide", "gemma3", "qwen3-moe-mixed", "deepseek-v2-wide", "deepseek-v3-wide"])
def test_a_row_depends_on_nothing_around_it(name: str, scheme: str, narrow: bool) -> None:
    expected = logits(load(name, scheme), narrow=narrow)
    for chunks in ((1,) * 70, (33, 37), (16, 16, 16, 16, 6), (69, 1)):
        assert torch.equal(logits(load(name, scheme), chunks, narrow=narrow), expected), chunks
    for isa in isas() if narrow else isas()[:1]:
        for threads in (1, 2, 3):
            model = load(name, scheme, isa=isa, threads=threads)
            assert torch.equal(logits(model, narrow=narrow), expected), (isa, threads)
    driver = Driver(load(name, scheme, threads=2), page_size=16, num_pages=64, shuffle=True)
    others = [(i, PROMPT[i : 2 * i + 3]) for i in range(1, 9)]
    together = driver.step([*others[:4], (0, PROMPT[:40]), *others[4:]], narrow_rows=1000 if narrow else 0)[4]
    assert torch.equal(together, expected[:40])
    rest = driver.step([(0, PROMPT[40:]), *((i, [5]) for i, _ in others)], narrow_rows=1000 if narrow else 0)[0]
    assert torch.equal(rest, expected[40:])


def test_narrow_and_wide_rows_in_one_batch() -> None:
    """The order of the wanted logits is the caller's, whatever is computed first."""
    narrow, wide = (logits(load("llama-wide", "int8"), narrow=narrow) for narrow in (True, False))
    driver = Driver(load("llama-wide", "int8", threads=2), page_size=16, num_pages=64)
    rows = [75, 3, 139, 12, 70, 69]
    (together,) = driver.step([(0, PROMPT), (1, PROMPT)], rows=rows, narrow_rows=70)
    assert torch.equal(together, torch.stack([wide[row - 70] if row >= 70 else narrow[row] for row in rows]))


@pytest.mark.parametrize("scheme", ["int4", "int8", "bf16"])
def test_many_wide_rows(scheme: str) -> None:
    """More than a block of rows, and matrices of which some are cut into chunks of columns and some are not."""
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(600)]
    model = load("llama-large", scheme, threads=2)
    whole, parts = (Driver(model, page_size=16, num_pages=40) for _ in range(2))
    (expected,) = whole.step([(0, prompt)])
    actual = [parts.step([(0, prompt[start:stop])])[0] for start, stop in ((0, 10), (10, 77), (77, 210), (210, 600))]
    assert torch.equal(torch.cat(actual), expected)
    (narrow,) = Driver(model, page_size=16, num_pages=40).step([(0, prompt)], narrow_rows=len(prompt))
    # Without a matrix unit the wide rows of integer weights are 8-bit integers, with it bf16.
    bf16 = scheme == "bf16" or "amx" in native().available_isas()
    assert distance(expected, narrow) < (0.01 if bf16 else 0.02)


def test_wide_rows_are_close_to_their_own_weights_in_fp32() -> None:
    assert distance(logits(load("llama-wide", "bf16"), narrow=False), logits(truth("llama-wide"))) < 0.01


@pytest.mark.parametrize("name", ["llama-wide", "gemma3"])
def test_int8_cache(name: str) -> None:
    model = load(name, kv_dtype="int8")
    assert model.page_bytes(16) < load(name).page_bytes(16)
    assert distance(logits(model), logits(truth(name))) < 0.03
    assert torch.equal(logits(model, (33, 37)), logits(model))


@pytest.mark.parametrize("name", ["deepseek-v2-wide", "deepseek-v3-wide"])
def test_latents_have_no_int8_cache(name: str) -> None:
    with pytest.raises(ConfigurationError, match="latent attention"):
        load(name, "int8", kv_dtype="int8")


def test_experts_of_several_formats() -> None:
    """A mixed checkpoint keeps each expert's own integers."""
    stored = checkpoint("qwen3-moe")
    kept = MixedCheckpoint(stored.config, dict(stored.tensors))
    model = load_native_model(kept, scheme="auto", kv_dtype="fp16", threads=2)
    (layer, *_) = simulated(kept, "auto").layers
    assert {expert.integers for expert in layer.feed_forward.gate_up} == {True, False}
    rows = logits(model) - logits(simulated(kept, "auto"))
    assert rows.norm(dim=1).quantile(0.5) < 1e-2


def test_merged_experts_of_a_gguf_file(tmp_path: Path) -> None:
    """Slices of its three-dimensional tensors, each in its own blocks."""
    hidden, inner, experts, layers = 64, 96, 5, 2
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5

    tensors = {"token_embd.weight": random(tiny.VOCAB, hidden) * 8, "output_norm.weight": 1 + random(hidden)}
    kinds = {}
    for layer in range(layers):
        rows = {"attn_q": hidden, "attn_k": hidden // 2, "attn_v": hidden // 2, "attn_output": hidden}
        block = {name: random(count, hidden) for name, count in rows.items()}
        block |= {name: 1 + random(hidden) for name in ("attn_norm", "ffn_norm")}
        block |= {name: 1 + random(16) for name in ("attn_q_norm", "attn_k_norm")}
        block["ffn_gate_inp"] = random(experts, hidden) * 2
        block |= {f"ffn_{name}_exps": random(experts, inner, hidden) for name in ("gate", "up")}
        block["ffn_down_exps"] = random(experts, hidden, inner)
        tensors |= {f"blk.{layer}.{name}.weight": array for name, array in block.items()}
        kinds |= {f"blk.{layer}.ffn_{name}_exps.weight": gguf.GGMLQuantizationType.Q4_1 for name in ("gate", "up")}
        kinds[f"blk.{layer}.ffn_down_exps.weight"] = gguf.GGMLQuantizationType.Q8_0
    keys = COMMON | {"expert_count": experts, "expert_used_count": 2, "expert_feed_forward_length": inner}
    keys |= {"attention.key_length": 16, "attention.value_length": 16}
    file = GGUFCheckpoint(write(tmp_path / "m.gguf", "qwen3moe", keys, tensors, kinds))
    weights = NativeWeights(file, "auto")
    gate_up, down = load_experts(weights, "model.layers.1.mlp.experts", experts, hidden, inner)
    assert [matrix.format for matrix in gate_up] == ["int4"] * experts
    assert [matrix.format for matrix in down] == ["int8"] * experts
    assert weights.requantized == []
    stored = gguf.quants.quantize(tensors["blk.1.ffn_down_exps.weight"], gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(
        down[3].dequantize(), gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)[3]
    )
    model = load_native_model(file, scheme="auto", kv_dtype="fp16", threads=2)
    rows = logits(model) - logits(simulated(file, "auto"))
    assert rows.norm(dim=1).quantile(0.5) < 1e-2


class MixedCheckpoint(tiny.MemoryCheckpoint):
    """Every second expert is stored as integers."""

    def quantized(self, name: str) -> QuantizedMatrix | None:  # type: ignore[override]
        match = re.search(r"experts\.(\d+)\.", name)
        return quantize(self.tensors[name], 8) if match and int(match[1]) % 2 else None

    def load(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        stored = self.quantized(name)
        return super().load(name, dtype) if stored is None else stored.dequantize(dtype)


def test_a_long_context_of_latents() -> None:
    """A long context over latents is split between threads, and merged the same way."""
    prompt = [i % tiny.VOCAB for i in range(1500)]
    rows = []
    for threads, chunks in ((1, (1500,)), (3, (700, 799, 1))):
        driver = Driver(load("deepseek-v2-wide", threads=threads), page_size=64, num_pages=30)
        start = 0
        for count in chunks:
            last = driver.step([(0, prompt[start : start + count])], last_only=True)[0]
            start += count
        rows.append(last)
    assert torch.equal(*rows)
    reference = Driver(truth("deepseek-v2-wide", "torch"), page_size=64, num_pages=30)
    for start in range(0, 1500, 500):
        expected = reference.step([(0, prompt[start : start + 500])], last_only=True)[0]
    assert distance(rows[0], expected) < 5e-3


def test_selected_rows() -> None:
    driver = Driver(load("llama-wide"), page_size=16)
    (some,) = driver.step([(0, PROMPT[:20])], rows=[3, 19, 3])
    assert torch.equal(some, logits(load("llama-wide"))[[3, 19, 3]])


def test_positions_beyond_the_first_table() -> None:
    """Rotation tables grow; both ends of a long prompt are right."""
    prompt = [i % tiny.VOCAB for i in range(4200)]
    model = Driver(load("llama-wide", threads=2), page_size=64, num_pages=100)
    model.step([(0, prompt[:10])])
    native_rows = torch.cat([model.step([(0, prompt[10:4190])], last_only=True)[0], *model.step([(0, prompt[4190:])])])
    reference = Driver(truth("llama-wide", "torch"), page_size=64, num_pages=100)
    reference.step([(0, prompt[:4190])], last_only=True)
    assert distance(native_rows[1:], torch.cat(reference.step([(0, prompt[4190:])]))) < 5e-3


def test_page_sizes_that_do_not_fit() -> None:
    for page_size in (8, 24, 512):
        with pytest.raises(ConfigurationError, match="page_size"):
            load("llama-wide").new_cache(4, page_size)


@pytest.mark.parametrize("name", ["llama", "deepseek-v3"])
def test_models_without_native_kernels_are_refused_by_name(name: str) -> None:
    with pytest.raises(BackendUnavailableError, match="cannot run this model"):
        load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_run_natively(name: str) -> None:
    assert native_obstacle(parse_config(PUBLISHED[name])) is None


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(scheme: str, value: float) -> None:
    tensor = "model.layers.1.self_attn.q_proj.weight"
    broken = tiny.MemoryCheckpoint(checkpoint("llama-wide").config, dict(checkpoint("llama-wide").tensors))
    broken.tensors[tensor] = broken.tensors[tensor].clone()
    broken.tensors[tensor][3, 5] = value
    with pytest.raises(CheckpointError, match=tensor):
        load_native_model(broken, scheme=scheme, kv_dtype="fp16", threads=1)


def test_a_weight_beyond_fp16_is_refused() -> None:
    tensor = "model.layers.1.self_attn.q_proj.weight"
    broken = tiny.MemoryCheckpoint(checkpoint("llama-wide").config, dict(checkpoint("llama-wide").tensors))
    broken.tensors[tensor] = torch.full_like(broken.tensors[tensor], 1e6)
    with pytest.raises(CheckpointError, match=tensor):
        load_native_model(broken, scheme="fp16", kv_dtype="fp16", threads=1)
