"""The chunked loss against torch's own, on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from deepseek_tune.loss import chunked_cross_entropy

VOCAB, WIDTH = 37, 12


def case(rows: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    tensors = torch.randn(rows, WIDTH), torch.randn(VOCAB, WIDTH), torch.randn(VOCAB)
    return (*(tensor.requires_grad_() for tensor in tensors), torch.randint(VOCAB, (rows,)))


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_loss_and_gradients(rows: int, softcap: float | None, biased: bool) -> None:
    hidden, weight, bias, targets = case(rows)
    leaves = [hidden, weight, *([bias] if biased else [])]
    logits = hidden @ weight.T + (bias if biased else 0)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = cross_entropy(logits, targets, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, leaves)
    loss = chunked_cross_entropy(
        hidden, weight, targets, bias=bias if biased else None, softcap=softcap, chunk_bytes=4 * 4 * VOCAB
    )
    found = torch.autograd.grad(3 * loss, leaves)
    assert torch.allclose(loss, expected, rtol=1e-5)
    for grad, other in zip(found, wanted, strict=True):
        assert torch.allclose(grad, other, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_evaluation_none_at_all() -> None:
    hidden, weight, _, targets = case(5)
    loss = chunked_cross_entropy(hidden, weight.detach(), targets)
    loss.backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        again = chunked_cross_entropy(hidden, weight, targets)
    assert not again.requires_grad and torch.equal(again, loss.detach())


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, _, targets = case(4)
    loss = chunked_cross_entropy(hidden * 1e4, weight, targets)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all()


def test_bf16_is_close_to_fp32() -> None:
    hidden, weight, _, targets = case(64)
    expected = chunked_cross_entropy(hidden, weight, targets)
    narrow = chunked_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert narrow.dtype == torch.float32
    assert abs(narrow.item() / expected.item() - 1) < 0.02


def test_memory_is_a_chunk_not_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    logsumexp = torch.Tensor.logsumexp

    def watched(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(self.numel())
        return logsumexp(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "logsumexp", watched)
    hidden, weight, _, targets = case(9)
    chunked_cross_entropy(hidden, weight, targets, chunk_bytes=4 * 4 * VOCAB).backward()
    assert seen == [4 * VOCAB, 4 * VOCAB, VOCAB]
