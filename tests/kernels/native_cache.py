"""Caches as the native kernels keep them, filled by those kernels, and the same tokens as the reference wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.cpu.extension import native
from deepseek.kernels.paging import PagedLayout


@dataclass
class NativeCache:
    """keys [pages, kv_heads, page, key_dim], values [pages, kv_heads, page, value_dim]: fp16, or int8 with scales."""

    keys: Any
    values: Any
    key_scales: Any = None
    value_scales: Any = None

    @classmethod
    def broken(cls, pages: int, page: int, kv_heads: int, key_dim: int, value_dim: int, kind: str) -> NativeCache:
        """NaN everywhere: what is read before it is written shows."""
        shapes = (pages, kv_heads, page, key_dim), (pages, kv_heads, page, value_dim)
        if kind == "fp16":
            return cls(*(np.full(shape, np.nan, np.float16) for shape in shapes))
        scales = (np.full((pages, kv_heads, page), np.nan, np.float32) for _ in shapes)
        return cls(*(np.full(shape, 99, np.int8) for shape in shapes), *scales)

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        return self.keys, self.values, self.key_scales, self.value_scales

    def write(self, keys: Tensor, values: Tensor, slots: Tensor, isa: str = "auto", threads: int = 1) -> None:
        native().write_kv(keys.contiguous(), values.contiguous(), *self.arrays, slots, isa, threads)

    def dequantized(self) -> tuple[Tensor, Tensor]:
        """fp32 [slots, kv_heads, dim] of what is stored."""
        keys, values = self.keys.astype(np.float32), self.values.astype(np.float32)
        if self.key_scales is not None:
            with np.errstate(invalid="ignore"):
                keys, values = keys * self.key_scales[..., None], values * self.value_scales[..., None]
        keys, values = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)
        return tuple(torch.from_numpy(a.reshape(-1, *a.shape[2:])) for a in (keys, values))  # type: ignore[return-value]


def layout_arrays(layout: PagedLayout) -> tuple[Any, Any, Any]:
    """query_starts, context_lens, pages as int32 arrays; unused entries of the page table lead far out of the cache."""
    pages = np.full((layout.num_sequences, 1 + max(len(p) for p in layout.pages)), 2**30, np.int32)
    for i, numbers in enumerate(layout.pages):
        pages[i, : len(numbers)] = numbers
    return np.array(layout.query_starts, np.int32), np.array(layout.context_lens, np.int32), pages


def attention(
    query: Tensor,
    cache: NativeCache,
    layout: PagedLayout,
    scale: float,
    window: int | None = None,
    isa: str = "auto",
    threads: int = 1,
    narrow_rows: int | None = None,
) -> Tensor:
    out = torch.full((*query.shape[:2], cache.values.shape[3]), 7.0)
    facts = layout_arrays(layout)
    native().attention(query.contiguous(), out, *cache.arrays, *facts, scale, window or 0, isa, threads, narrow_rows)
    return out


def mla(query: Tensor, cache: Any, rank: int, layout: PagedLayout, scale: float, isa: str, threads: int) -> Tensor:
    """query [rows, heads, rank + rope] against latents, uint16 [pages, page, rank + rope] -> [rows, heads, rank]."""
    out = torch.full((*query.shape[:2], rank), 7.0)
    native().mla_decode(query.contiguous(), out, cache, *layout_arrays(layout), scale, isa, threads)
    return out


def context(layout: PagedLayout) -> Tensor:
    """The slots of all contexts."""
    return torch.tensor(
        [slot for i in range(layout.num_sequences) for slot in reference.context_slots(layout, i)], dtype=torch.int64
    )
