"""Error feedback: less error where the inputs are, the same layout."""

from __future__ import annotations

import pytest
import torch

from deepseek.quant.gptq import quantize_with_feedback
from deepseek.quant.schemes import quantize


def inputs(columns: int, tokens: int = 2000) -> torch.Tensor:
    """Correlated, as those of language models are."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    noise = torch.randn(tokens, columns, generator=generator)
    return torch.randn(tokens, columns // 4, generator=generator) @ mixing + 0.3 * noise


@pytest.mark.parametrize("columns", [32, 64, 160])
def test_outputs_are_nearer_than_by_rounding_alone(columns):
    torch.manual_seed(0)
    weight, x = torch.randn(24, columns), inputs(columns)
    moments = x.T @ x / len(x)
    plain = quantize(weight, 4, moments.diagonal())
    better = quantize_with_feedback(weight, moments)
    unseen = inputs(columns, 500)
    errors = [(unseen @ (matrix.dequantize(torch.float32) - weight).T).square().mean() for matrix in (better, plain)]
    assert errors[0] < 0.7 * errors[1]
    assert better.q.dtype == torch.uint8
    assert int(better.q.max()) <= 15
    assert torch.equal(better.scale, better.scale.half().float())
    zero = better.minimum / better.scale
    assert torch.allclose(zero, zero.round(), atol=1e-4)


def test_without_correlation_it_is_rounding():
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    better, plain = quantize_with_feedback(weight, torch.eye(96)), quantize(weight, 4, torch.ones(96))
    assert torch.equal(better.q, plain.q)
    assert torch.equal(better.scale, plain.scale)


def test_columns_that_are_never_used_do_no_harm():
    weight = torch.randn(8, 64)
    moments = torch.diag(torch.cat([torch.ones(32), torch.zeros(32)]))
    matrix = quantize_with_feedback(weight, moments)
    assert float((matrix.dequantize(torch.float32) - weight).abs().max()) < 0.5
    assert bool(torch.isfinite(quantize_with_feedback(weight, torch.zeros(64, 64)).scale).all())
