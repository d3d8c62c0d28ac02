"""Functions that keep less, against the modules whose place they take: values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from deepseek_tune import fused

CONFIG = transformers.LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2)


class Holder(torch.nn.Module):
    """A model of one part."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part
        self.proj = torch.nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.part(x)
        return out


def run(model: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and the gradients of a weighted sum of it."""
    given = x.clone().requires_grad_()
    out = model(given)
    weights = torch.linspace(-1, 2, out.numel()).view(out.shape)
    (out.float() * weights).sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert given.grad is not None
    return out.detach(), {**grads, "x": given.grad}


def compare(plain: torch.nn.Module, fast: torch.nn.Module, x: torch.Tensor, bound: float = 1e-5) -> None:
    (expected, wanted), (found, grads) = run(plain, x), run(fast, x)
    assert grads.keys() == wanted.keys()
    assert float((found - expected).float().norm() / expected.float().norm()) < bound
    for name, grad in grads.items():
        assert grad.dtype == wanted[name].dtype
        assert float((grad - wanted[name]).float().norm() / wanted[name].float().norm()) < bound, name


def fast(model: Any) -> Any:
    model = copy.deepcopy(model)
    fused.install(model)
    return model


@pytest.mark.parametrize("part", [LlamaRMSNorm(24), LlamaMLP(CONFIG)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_norms_and_mlps(part: torch.nn.Module, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    part = copy.deepcopy(part)
    with torch.no_grad():
        for weight in part.parameters():
            weight.normal_()
    plain = Holder(part).to(dtype)
    taken = fast(plain)
    assert "forward" in vars(taken.part) and "forward" not in vars(plain.part)
    compare(plain, taken, torch.randn(2, 7, 24).to(dtype), bound)


def test_what_computes_something_else_is_left_alone() -> None:
    norm = Gemma3RMSNorm(24)
    norm.variance_epsilon = norm.eps
    torch.nn.init.normal_(norm.weight)
    assert "forward" not in vars(fast(Holder(norm)).part)
    gelu = LlamaMLP(CONFIG)
    gelu.act_fn = torch.nn.GELU()
    assert "forward" not in vars(fast(Holder(gelu)).part)


def adapted(dtype: torch.dtype, *, bias: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    model = Holder(torch.nn.Linear(24, 40, bias=bias)).to(dtype)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["part"], **options)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_()
    return wrapped


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_adapters(bias: bool, rslora: bool, dtype: torch.dtype, bound: float) -> None:
    plain = adapted(dtype, bias=bias, use_rslora=rslora)
    compare(plain, fast(plain), torch.randn(2, 7, 24).to(dtype), bound)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_other_adapters_compute_as_before(options: dict[str, Any]) -> None:
    plain = adapted(torch.float32, **options)
    taken = fast(plain)
    x = torch.randn(2, 7, 24)
    for mode in (True, False):
        outputs = []
        for model in (plain.train(mode), taken.train(mode)):
            torch.manual_seed(1)
            outputs.append(model(x))
        assert torch.allclose(*outputs, atol=1e-5)


def test_disabled_and_merged_adapters_are_left_out() -> None:
    taken = fast(adapted(torch.float32)).eval()
    x = torch.randn(2, 7, 24)
    layer = taken.base_model.model.part
    before = taken(x)
    with taken.disable_adapter():
        assert torch.allclose(taken(x), layer.get_base_layer()(x))
    layer.merge()
    assert torch.allclose(taken(x), before, atol=1e-4)


def test_little_is_kept() -> None:
    """What the backward pass needs is the input, which neighbours share: no wider copy of it."""
    kept: dict[str, int] = {}
    for name, model in (("plain", adapted(torch.bfloat16)), ("fast", fast(adapted(torch.bfloat16)))):
        x = torch.randn(500, 24).to(torch.bfloat16).requires_grad_()
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        kept[name] = sum(sizes.values())
    assert kept["fast"] < 0.5 * kept["plain"]
