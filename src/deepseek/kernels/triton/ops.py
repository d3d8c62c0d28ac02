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
from deepseek.kernels.triton.sparse_index import index_pages
from deepseek.kernels.triton.write_kv import rotary_write_kv


def functions() -> Mapping[str, Callable[..., Any]]:
    """op name -> function, for the registry."""
    return {
        "pack_linear": pack_linear,
        "linear": linear,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "gated_activation": gated_activation,
        "rotary_write_kv": rotary_write_kv,
        "index_pages": index_pages,
        "paged_attention": paged_attention,
        "mla_attention": mla_attention,
        "moe": moe,
        "low_rank": low_rank,
    }
