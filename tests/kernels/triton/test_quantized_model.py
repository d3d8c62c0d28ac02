"""A model whose matrices are integers on the GPU: its logits are those of the rounded weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels import torch_ops
from deepseek.kernels.ops import Ops
from deepseek.kernels.registry import Backend, Registry
from deepseek.kernels.triton import ops as triton_ops
from deepseek.models.gpu_weights import HEAD_BITS
from deepseek.models.registry import load_model
from deepseek.quant.schemes import quantize
from tests.kernels.triton.devices import DEVICE
from tests.parity import tiny
from tests.parity.driver import Driver

PROMPT = [5, 17, 3, 88, 41, 2, 9, 60, 11]


class Rounded:
    """The checkpoint with the values of its rounded matrices; ``integers`` shows those too."""

    def __init__(self, stored: Any, bits: int, *, integers: bool) -> None:
        self._stored, self._bits, self._integers = stored, bits, integers
        self.config: Mapping[str, Any] = stored.config
        self.shapes: Mapping[str, tuple[int, ...]] = stored.shapes

    def _matrix(self, name: str) -> QuantizedMatrix | None:
        if not name.endswith("_proj.weight") and name != "lm_head.weight":
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


def logits(checkpoint: Any, bits: int | None) -> Tensor:
    functions = torch_ops.functions if bits is None else triton_ops.functions
    ops = Ops(Registry([Backend("any", DEVICE.type, 1, functions)]).bind(DEVICE.type))
    model = load_model(checkpoint, ops=ops, dtype=torch.float32, device=DEVICE, bits=bits)
    return Driver(model, page_size=16, num_pages=4).step([(0, PROMPT)])[0]


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_logits_are_those_of_the_rounded_weights(bits: int, integers: bool) -> None:
    stored = tiny.checkpoint(tiny.build("llama-groups"))
    expected = logits(Rounded(stored, bits, integers=False), None)
    actual = logits(Rounded(stored, bits, integers=True) if integers else stored, bits)
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (logits(stored, None) - expected).abs().max() > 5e-3 * expected.abs().max()


def test_four_bits_need_whole_groups() -> None:
    with pytest.raises(ConfigurationError, match="use 8 bits"):
        logits(tiny.checkpoint(tiny.build("llama")), 4)
