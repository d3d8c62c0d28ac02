"""Calibration: which matrix is which, what flows in, and that replaying changes nothing."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels.registry import bind
from deepseek.models.registry import load_model
from deepseek.quant import calibration
from deepseek.quant.plan import unit_of, units_of
from deepseek.quant.schemes import quantize
from deepseek.quant.windows import cut_windows, forward
from tests.parity import tiny

WINDOWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5, 2]]


def loaded(name: str):
    checkpoint = calibration.NamedCheckpoint(tiny.checkpoint(tiny.build(name)))
    ops = calibration.CalibrationOps(bind("cpu", "torch"), checkpoint)
    model = load_model(checkpoint, ops=ops, dtype=torch.float32, device="cpu")
    return checkpoint, ops, model


@pytest.mark.parametrize("name", ["llama", "llama-biases-llama3-rope", "qwen2-tied", "qwen3", "gemma3", "qwen3-moe"])
def test_every_projection_gets_its_name(name):
    checkpoint, ops, _ = loaded(name)
    expected = {unit for unit in units_of(checkpoint.shapes) if not unit.endswith(".experts")}
    assert set(ops.units) == expected
    assert len(ops.units) == len(expected)


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_latent_attention_is_named_but_for_what_is_absorbed(name):
    checkpoint, ops, _ = loaded(name)
    expected = {unit for unit in units_of(checkpoint.shapes) if not unit.endswith((".experts", ".kv_b_proj"))}
    assert set(ops.units) == expected


def test_importance_is_the_mean_square_of_the_inputs():
    checkpoint, ops, model = loaded("llama")
    unit = "model.layers.0.self_attn.qkv"
    found = calibration.measure_importance(model, ops, WINDOWS)
    embedding = checkpoint.load("model.embed_tokens.weight", torch.float32)
    rows = embedding[torch.tensor([token for window in WINDOWS for token in window])]
    norm = checkpoint.load("model.layers.0.input_layernorm.weight", torch.float32)
    inputs = rows * (rows.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm
    assert found.tokens == sum(map(len, WINDOWS))
    assert torch.allclose(found.importance[unit], inputs.square().mean(0), rtol=1e-4)
    assert set(found.importance) == set(ops.units)


@pytest.fixture
def wide(monkeypatch) -> str:
    """A model whose widths are multiples of 32, so that INT4 fits."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
    monkeypatch.setitem(tiny.CASES, "wide", ("Qwen2", shape))
    return "wide"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_replayed_divergence_is_that_of_the_changed_model(wide, bits):
    _, ops, model = loaded(wide)
    found = calibration.measure_importance(model, ops, WINDOWS)
    unit = "model.layers.1.mlp.down_proj"
    exact = forward(model, WINDOWS).log_softmax(-1)
    calibration.measure_divergence(model, ops, found, WINDOWS, int8=[unit], int4=[unit])
    changed = tiny.checkpoint(tiny.build(wide))
    weight = changed.tensors[f"{unit}.weight"]
    changed.tensors[f"{unit}.weight"] = quantize(weight, bits, found.importance[unit]).dequantize(torch.float32)
    plain = load_model(changed, ops=bind("cpu", "torch"), dtype=torch.float32, device="cpu")
    divergence = float((exact.exp() * (exact - forward(plain, WINDOWS).log_softmax(-1))).sum(-1).mean())
    if bits == 4:
        assert found.kl4[unit] == pytest.approx(divergence, rel=1e-3)
    else:  # activations are rounded too
        assert 0.3 * divergence < found.kl8[unit] < 10 * divergence
    assert torch.equal(forward(model, WINDOWS).log_softmax(-1), exact)  # nothing stays behind


def test_errors_are_larger_in_four_bits_than_in_eight(wide):
    _, ops, model = loaded(wide)
    found = calibration.measure_importance(model, ops, WINDOWS)
    calibration.measure_errors(model, ops, found, WINDOWS)
    assert set(found.error8) == set(found.error4) == set(ops.units)
    assert all(0 < found.error8[unit] < 1e-3 < found.error4[unit] < 0.05 for unit in ops.units)


def test_windows_come_from_all_of_the_text():
    class Letters:
        def encode(self, text, *, add_special_tokens=True, parse_special=False):
            return [ord(char) for char in text]

    windows = cut_windows(["a" * 1000 + "b" * 1000, "c" * 40, "d" * 3], Letters(), tokens=600, window=200)
    assert len(windows) in (3, 4)
    assert {chr(window[0]) for window in windows} >= {"a", "b"}
    assert all(16 <= len(window) <= 200 for window in windows)
    assert unit_of("lm_head.weight") == "lm_head"
