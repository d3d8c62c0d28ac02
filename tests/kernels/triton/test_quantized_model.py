"""A model whose matrices are integers on the GPU: its logits are those of the rounded weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.adapters.read import read_adapter
from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels import torch_ops
from deepseek.kernels.ops import Ops
from deepseek.kernels.registry import Backend, Registry
from deepseek.kernels.triton import ops as triton_ops
from deepseek.models.blocks import load_experts
from deepseek.models.gpu_weights import HEAD_BITS, QuantizedWeights
from deepseek.models.registry import load_model
from deepseek.quant.schemes import quantize
from tests.kernels.triton.devices import DEVICE
from tests.parity import tiny
from tests.parity.driver import Driver

PROMPT = [5, 17, 3, 88, 41, 2, 9, 60, 11]
# Widths of whole groups of 32, for 4 bits.
EXPERTS = {
    "deepseek-v2-wide": {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32},
    "qwen3-moe": {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32},
}


class Rounded:
    """The checkpoint with the values of its rounded matrices; ``integers`` shows those too."""

    def __init__(self, stored: Any, bits: int, *, integers: bool) -> None:
        self._stored, self._bits, self._integers = stored, bits, integers
        self.config: Mapping[str, Any] = stored.config
        self.shapes: Mapping[str, tuple[int, ...]] = stored.shapes

    def _matrix(self, name: str) -> QuantizedMatrix | None:
        matrices = ("_proj.weight", "kv_a_proj_with_mqa.weight", "lm_head.weight")
        if not name.endswith(matrices) or "kv_b_proj" in name:
            return None
        bits = HEAD_BITS if name == "lm_head.weight" else self._bits
        return quantize(self._stored.load(name, torch.float32), bits)

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        matrix = self._matrix(name)
        return self._stored.load(name, dtype) if matrix is None else matrix.dequantize(dtype)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        return self._matrix(name) if self._integers else None

    def close(self) -> None:
        pass


def logits(checkpoint: Any, bits: int | None, adapter: Path | None = None) -> Tensor:
    functions = torch_ops.functions if bits is None else triton_ops.functions
    ops = Ops(Registry([Backend("any", DEVICE.type, 1, functions)]).bind(DEVICE.type))
    model = load_model(checkpoint, ops=ops, dtype=torch.float32, device=DEVICE, bits=bits)
    numbers = {} if adapter is None else {0: model.add_adapter(read_adapter(adapter, model.host).updates)}
    return Driver(model, page_size=16, num_pages=4).step([(0, PROMPT)], adapters=numbers)[0]


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_logits_are_those_of_the_rounded_weights(bits: int, integers: bool) -> None:
    stored = tiny.checkpoint(tiny.build("llama-groups"))
    expected = logits(Rounded(stored, bits, integers=False), None)
    actual = logits(Rounded(stored, bits, integers=True) if integers else stored, bits)
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (logits(stored, None) - expected).abs().max() > 5e-3 * expected.abs().max()


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_on_integers(tmp_path: Path, bits: int) -> None:
    """DoRA asks for the lengths of the rounded matrices' rows."""
    making = pytest.importorskip("tests.adapters.making", reason="peft is not on every machine with a GPU")
    making.lora(tmp_path, "llama-groups", use_dora=True)
    stored = tiny.checkpoint(tiny.build("llama-groups"))
    expected = logits(Rounded(stored, bits, integers=False), None, tmp_path)
    actual = logits(stored, bits, tmp_path)
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (logits(stored, bits) - expected).abs().max() > 1e-1 * expected.abs().max()


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_rounded_too(name: str, bits: int, integers: bool) -> None:
    stored = tiny.checkpoint(tiny.build(name, **EXPERTS[name]))
    expected = logits(Rounded(stored, bits, integers=False), None)
    actual = logits(Rounded(stored, bits, integers=True) if integers else stored, bits)
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()


def test_memory_holds_the_floats_of_one_matrix() -> None:
    """Whatever the checkpoint hands out is gone when the next expert is asked for."""
    stored = tiny.checkpoint(tiny.build("qwen3-moe", **EXPERTS["qwen3-moe"]))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watched(Rounded):
        def load(self, name: str, dtype: torch.dtype) -> Tensor:
            nonlocal most
            value = super().load(name, dtype).clone()
            if ".experts." in name:
                alive.append(weakref.ref(value))
                most = max(most, sum(reference() is not None for reference in alive))
            return value

    source = QuantizedWeights(Watched(stored, 8, integers=False), torch.float32, DEVICE, 8)
    experts, _ = load_experts(source, "model.layers.0.mlp.experts", 6, 64, 32)
    assert len(alive) == 18
    assert most <= 2  # the one that is read, and the last name's until it is overwritten
    floats = 6 * 3 * 64 * 32 * 4
    assert source.bytes < floats / 3
    assert experts.shape == (6, 64, 64)


def test_experts_in_several_formats_are_rounded_anew() -> None:
    stored = tiny.checkpoint(tiny.build("qwen3-moe", **EXPERTS["qwen3-moe"]))

    class Mixed(Rounded):
        def quantized(self, name: str) -> QuantizedMatrix | None:
            if ".experts.3." not in name:
                return super().quantized(name)
            return quantize(self._stored.load(name, torch.float32), 8, group=32)

    own = Mixed(stored, 8, integers=True)
    source = QuantizedWeights(own, torch.float32, DEVICE, 8)
    experts, down = load_experts(source, "model.layers.0.mlp.experts", 6, 64, 32)
    for stack, part in ((experts, "gate_proj"), (down, "down_proj")):
        values = stack.matrix.dequantize().view(stack.shape)
        for expert in (0, 3):
            exact = quantize(own.load(f"model.layers.0.mlp.experts.{expert}.{part}.weight", torch.float32), 8)
            assert torch.equal(values[expert, : exact.shape[0]].cpu(), exact.dequantize(torch.float32))


def test_four_bits_need_whole_groups() -> None:
    with pytest.raises(ConfigurationError, match="use 8 bits"):
        logits(tiny.checkpoint(tiny.build("llama")), 4)
