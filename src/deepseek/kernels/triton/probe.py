"""The smallest kernel, run once to see whether Triton works here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_COUNT = 32


@triton.jit
def _count_kernel(out: tl.tensor, COUNT: tl.constexpr) -> tl.tensor:
    index = tl.arange(0, COUNT)
    tl.store(out + index, index)


def run(device: str = "cuda") -> None:
    """Compile and launch the kernel. Raises whatever stands in the way, RuntimeError for a wrong result."""
    out = torch.empty(_COUNT, dtype=torch.int32, device=device)
    _count_kernel[(1,)](out, _COUNT)
    if out.tolist() != list(range(_COUNT)):
        raise RuntimeError("a kernel that counts to 32 wrote something else")
