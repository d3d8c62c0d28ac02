"""Cross-entropy without the logits of all tokens.

Logits are [answer tokens, vocabulary]: for a row of 2,048 tokens and a vocabulary of 151,936 they are 1.2 GB in fp32,
and their gradient as much again. Here a chunk of rows has its logits, its loss and the gradient of its hidden states
computed at once, and the logits are forgotten; the backward pass only scales what is there. The idea is that of Liger
Kernel (Hsu et al., 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Of a chunk's logits in fp32."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """The sum over rows of the cross-entropy of ``hidden @ weight.T + bias`` against ``targets``, a scalar in fp32.

    Args:
        hidden: [rows, width], of those tokens alone that something is learned from.
        weight: [vocabulary, width] of the output matrix; its gradient is computed only if it is trained.
        targets: int64 [rows].
        bias: [vocabulary], or None.
        softcap: logits are ``softcap * tanh(logits / softcap)`` (Gemma); None leaves them.
        chunk_bytes: memory for logits.
    """
    chunk = max(1, chunk_bytes // (4 * weight.shape[0]))
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, softcap, chunk)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        chunk: int,
    ) -> Tensor:
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if for_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows, wanted = hidden[start : start + chunk], targets[start : start + chunk, None]
            logits = (rows @ weight.T).float()
            if bias is not None:
                logits += bias
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            log_sum = logits.logsumexp(1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted)).sum()
            if grad_hidden is None and grad_weight is None and grad_bias is None:
                continue
            slope = None if softcap is None else 1 - (logits / softcap).square_()
            grad = logits.sub_(log_sum).exp_()  # softmax, in the memory of the logits
            grad.scatter_add_(1, wanted, torch.full_like(grad[:, :1], -1.0))
            if slope is not None:
                grad *= slope
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            narrow = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[start : start + chunk])
            if grad_weight is not None:
                grad_weight += narrow.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else grad_hidden * grad_output.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_output).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad_output).to(bias_dtype),
            None,
            None,
            None,
        )
