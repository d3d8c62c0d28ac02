"""Compiles what host functions launch, for a GPU that is not there.

``python -m tests.kernels.triton.compiling MODULE`` calls ``MODULE.launches()``, pairs of a name and a function that
launches kernels with CPU tensors, and prints one JSON object per compiled kernel: the types, alignments, constants,
warps and stages are those of the launch, and down to machine code nothing is skipped but the launch itself. It is a
process of its own because the other tests have Triton's interpreter in place of its compiler.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

CAPABILITY = 90
"""Hopper."""

SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on Hopper."""


def compiled(launches: Iterator[tuple[str, Callable[[], object]]]) -> Iterator[dict[str, Any]]:
    """What each launch compiles: its name, the kernel, bytes of shared memory, warps, registers it spills."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoGPU:
        """As much of a driver as compiling takes."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", CAPABILITY, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(NoGPU())
    run = JITFunction.run
    kernels: list[tuple[str, Any]] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert all(size > 0 for size in grid), "an empty grid cannot be launched"
        assert all(size < 2**16 for size in grid[1:]), "the second and third dimension of a grid have 16 bits"
        kernels.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    try:
        for name, launch in launches:
            kernels.clear()
            launch()
            for kernel, result in kernels:
                yield {"launch": name, "kernel": kernel, "shared": result.metadata.shared, **_resources(result)}
    finally:
        JITFunction.run = run


def _resources(kernel: Any) -> dict[str, Any]:
    """From the machine code: registers per thread, bytes of registers spilled, which matrix instructions."""
    ptx = kernel.asm["ptx"]
    units = {name: name in ptx for name in ("wgmma.mma_async", "mma.sync", "cp.async")}
    return {"warps": kernel.metadata.num_warps, "units": [name for name, used in units.items() if used]}


if __name__ == "__main__":
    for result in compiled(import_module(sys.argv[1]).launches()):
        print(json.dumps(result), flush=True)
