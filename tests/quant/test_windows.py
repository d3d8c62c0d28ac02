"""Sequences with a common beginning, computed once."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels.cpu.extension import obstacle
from deepseek.kernels.registry import bind
from deepseek.models.registry import load_model, load_native_model
from deepseek.quant.windows import forward, shared_start
from tests.parity import tiny


@pytest.mark.parametrize("kind", ["torch", "native"])
@pytest.mark.parametrize("shared", [0, 15, 16, 17, 40])
def test_sharing_a_beginning_changes_nothing(kind, shared):
    checkpoint = tiny.checkpoint(tiny.build("llama-wide"))
    if kind == "native":
        if obstacle():
            pytest.skip(str(obstacle()))
        model = load_native_model(checkpoint, scheme="fp16", kv_dtype="fp16", threads=1)
    else:
        model = load_model(checkpoint, ops=bind("cpu", "torch"), dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 60, (shared,), generator=generator).tolist()
    sequences = [start + torch.randint(0, 60, (count,), generator=generator).tolist() for count in (9, 1, 20)]
    skipped = shared_start(shared)
    assert skipped <= shared
    alone = [forward(model, [ids]) for ids in sequences]
    expected = torch.cat([alone[0], *(logits[skipped:] for logits in alone[1:])])
    assert torch.allclose(forward(model, sequences, shared=shared), expected, atol=1e-5)
