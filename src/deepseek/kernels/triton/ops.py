"""All ops as Triton kernels, for the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepseek.kernels.triton.activation import gated_activation
from deepseek.kernels.triton.attention import paged_attention
from deepseek.kernels.triton.linear import linear, pack_linear
from deepseek.kernels.triton.low_rank import low_rank
from deepseek.kernels.triton.mla import mla_attention
from deepseek.kernels.triton.moe import moe
from deepseek.kernels.triton.norm import add_rms_norm, rms_norm
from deepseek.kernels.triton.rotary import rotary
from deepseek.kernels.triton.write_kv import write_kv


def functions() -> Mapping[str, Callable[..., Any]]:
    """op name -> function, for the registry."""
    return {
        "pack_linear": pack_linear,
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "rotary": rotary,
        "gated_activation": gated_activation,
        "write_kv": write_kv,
        "paged_attention": paged_attention,
        "mla_attention": mla_attention,
        "moe": moe,
        "low_rank": low_rank,
    }
