"""Smoothing: the same function, inputs and weights that round better."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels.registry import bind
from deepseek.models.registry import load_model
from deepseek.quant import calibration
from deepseek.quant.schemes import quantize
from deepseek.quant.smoothing import smooth
from deepseek.quant.windows import forward
from tests.parity import tiny
from tests.quant.test_calibration import WINDOWS


def measured(checkpoint):
    named = calibration.NamedCheckpoint(checkpoint)
    ops = calibration.CalibrationOps(bind("cpu", "torch"), named)
    model = load_model(named, ops=ops, dtype=torch.float32, device="cpu")
    return model, calibration.measure_importance(model, ops, WINDOWS).importance


CASES = ["llama", "llama-biases-llama3-rope", "qwen2-tied", "qwen3", "gemma3", "qwen3-moe", "deepseek-v2-lite"]


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays_and_the_importance_follows(name):
    checkpoint = tiny.checkpoint(tiny.build(name))
    model, importance = measured(checkpoint)
    before = dict(importance)
    smoothed = smooth(checkpoint, importance, norm_offset=1.0 if name == "gemma3" else 0.0)
    again, expected = measured(smoothed)
    assert torch.allclose(forward(model, WINDOWS), forward(again, WINDOWS), atol=1e-4)
    assert any(not torch.equal(before[unit], importance[unit]) for unit in before)
    for unit in before:
        assert torch.allclose(importance[unit], expected[unit], rtol=1e-3, atol=1e-9), unit


def test_scales_are_powers_of_two_so_no_weight_changes_its_digits():
    checkpoint = tiny.checkpoint(tiny.build("llama"))
    smoothed = smooth(checkpoint, measured(checkpoint)[1])
    assert smoothed.scalings
    for name in smoothed.scalings:
        exact, scaled = checkpoint.load(name, torch.bfloat16), smoothed.load(name, torch.bfloat16)
        assert torch.equal(exact.float().frexp().mantissa, scaled.float().frexp().mantissa), name


def test_a_huge_column_no_longer_drowns_its_group():
    checkpoint = tiny.checkpoint(tiny.build("llama"))
    norm = "model.layers.0.input_layernorm.weight"
    checkpoint.tensors[norm] = checkpoint.tensors[norm].clone()
    checkpoint.tensors[norm][3] = 200.0
    unit = "model.layers.0.self_attn.qkv"
    importance = measured(checkpoint)[1]
    before = importance[unit].sqrt()
    smooth(checkpoint, importance)
    after = importance[unit].sqrt()
    assert after.max() / after.median() < 0.2 * before.max() / before.median()


def test_groups_of_int8_follow_the_columns():
    torch.manual_seed(0)
    weight = torch.randn(5, 128)
    weight[:, :64] *= 100
    grouped, whole = quantize(weight, 8, group=64), quantize(weight, 8)
    assert tuple(grouped.scale.shape) == (5, 2)
    error = [(matrix.dequantize(torch.float32) - weight)[:, 64:].norm() for matrix in (grouped, whole)]
    assert error[0] < 0.05 * error[1]
    assert torch.equal(quantize(weight, 8, group=128).q, whole.q)
