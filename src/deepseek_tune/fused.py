"""Layers of transformers and peft that keep less for the backward pass, and compute the same.

Written as separate operations, a layer keeps each of their inputs: for adapters over bf16 weights, fp32 copies of what
goes into every matrix, once per matrix. Here each function keeps what it was given, which its neighbours share, and
computes the rest again: about a tenth of the memory, and less time, because most of it went into moving memory.

A function takes a module's place only where it gives the same numbers on a probe.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

_PROBE_ROWS = 3


def install(model: torch.nn.Module) -> None:
    """Let the modules of a model, adapters included, compute with the functions here, in place."""
    from peft.tuners.lora import Linear as LoRALinear

    known: dict[type, bool] = {}
    for module in model.modules():
        if isinstance(module, LoRALinear):
            if not module.lora_variant:  # DoRA is one
                module._plain_forward = module.forward
                module.forward = MethodType(_lora_forward, module)
        elif fast := _fast(module):
            if type(module) not in known:
                known[type(module)] = _same(module, fast)
            if known[type(module)]:
                module.forward = MethodType(fast, module)


def _fast(module: torch.nn.Module) -> Callable[..., Tensor] | None:
    """What may take the place of the module's ``forward``."""
    if isinstance(getattr(module, "weight", None), Tensor) and hasattr(module, "variance_epsilon"):
        return _norm_forward
    if isinstance(getattr(module, "act_fn", None), torch.nn.SiLU) or (
        type(getattr(module, "act_fn", None)).__name__ == "SiLUActivation"
    ):
        parts = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
        return _mlp_forward if all(isinstance(part, torch.nn.Module) for part in parts) else None
    return None


@torch.no_grad()
def _same(module: Any, fast: Callable[..., Tensor]) -> bool:
    """Whether ``fast`` gives what the module gives."""
    weight = module.weight if fast is _norm_forward else module.gate_proj.weight
    random = torch.Generator().manual_seed(0)
    probe = torch.randn(1, _PROBE_ROWS, weight.shape[-1], generator=random).to(weight.device, weight.dtype)
    expected = module(probe)
    error = (fast(module, probe) - expected).float().norm() / expected.float().norm().clamp_min(1e-30)
    return bool(error < 1e-5 if weight.dtype == torch.float32 else error < 1e-2)


# A frozen matrix with an adapter


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name,) = self.active_adapters if len(self.active_adapters) == 1 else ("",)
    dropout = self.lora_dropout[name] if name in self.lora_A else None
    idle = dropout is None or (self.training and isinstance(dropout, torch.nn.Dropout))
    if idle or self.disable_adapters or self.merged or args or kwargs or self.lora_bias[name]:
        plain: Tensor = self._plain_forward(x, *args, **kwargs)
        return plain
    base = self.get_base_layer()
    lower, upper = self.lora_A[name].weight, self.lora_B[name].weight
    out: Tensor = _LoRALinear.apply(x, lower, upper, base, self.scaling[name])  # type: ignore[no-untyped-call]
    return out


class _LoRALinear(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T with W and bias frozen (Hu et al., 2021, arXiv:2106.09685). A and B are
    multiplied in the type of ``x``; what is kept is ``x`` and x A^T. ``base`` has ``weight`` and ``bias``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, base: Any, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ lower.to(x.dtype).T
        out = linear(rows, base.weight, base.bias)
        out.addmm_(low, upper.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, lower, upper, low)
        ctx.base, ctx.scale = base, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, low = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        of_low = (grads @ upper.to(grad.dtype)).mul_(ctx.scale)
        of_upper = (grads.T @ low).to(upper.dtype).mul_(ctx.scale)
        of_lower = (of_low.T @ rows).to(lower.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grads @ ctx.base.weight).addmm_(of_low, lower.to(grad.dtype)).view(x.shape)
        return of_x, of_lower, of_upper, None, None


# RMSNorm (Zhang and Sennrich, 2019, arXiv:1910.07467)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """Computed in fp32; keeps its input and a number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype) * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        unit = x.float().mul_(inverse)
        of_weight = (grad * unit).sum(tuple(range(x.dim() - 1))).to(weight.dtype) if ctx.needs_input_grad[1] else None
        scaled = (grad * weight).float()
        inner = torch.linalg.vecdot(scaled, unit).div_(x.shape[-1])[..., None]
        return scaled.sub_(unit.mul_(inner)).mul_(inverse).to(x.dtype), of_weight, None


# SwiGLU (Shazeer, 2020, arXiv:2002.05202)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up; keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate: Tensor = torch.ops.aten.silu_backward(grad * up, gate)
        return of_gate, silu(gate).mul_(grad)
