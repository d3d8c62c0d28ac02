"""The ops that have a Triton kernel, for the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepseek.kernels.triton.activation import gated_activation
from deepseek.kernels.triton.linear import linear, pack_linear
from deepseek.kernels.triton.moe import moe
from deepseek.kernels.triton.norm import add_rms_norm, rms_norm
from deepseek.kernels.triton.rotary import rotary


def functions() -> Mapping[str, Callable[..., Any]]:
    """op name -> function, for the registry."""
    return {
        "pack_linear": pack_linear,
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "rotary": rotary,
        "gated_activation": gated_activation,
        "moe": moe,
    }
