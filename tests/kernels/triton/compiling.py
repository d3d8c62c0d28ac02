"""Compiles what host functions launch, for a GPU that is not there.

``python -m tests.kernels.triton.compiling MODULE`` calls ``MODULE.launches()``, pairs of a name and a function that
launches kernels with CPU tensors, and prints one JSON object per compiled kernel: the types, alignments, constants,
warps and stages are those of the launch, and down to machine code nothing is skipped but the launch itself. It is a
process of its own because the other tests have Triton's interpreter in place of its compiler.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import pytest

CAPABILITY = 90
"""Hopper."""

SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on Hopper."""


@dataclass(frozen=True)
class Compiled:
    """A kernel in machine code.

    Attributes:
        launch, kernel: whose it is.
        warps: of a program.
        shared: bytes of shared memory.
        registers: of a thread.
        stack: bytes of a thread that did not fit its registers.
        units: of wgmma.mma_async, mma.sync and cp.async those that it uses.
        code: equal for launches that need one compilation.
    """

    launch: str
    kernel: str
    warps: int
    shared: int
    registers: int
    stack: int
    units: tuple[str, ...] | list[str]
    code: str


def compiled(launches: Iterable[tuple[str, Callable[[], object]]]) -> Iterator[Compiled]:
    """What each launch compiles, in order. To be called where Triton's compiler is, and not its interpreter."""
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
                yield _described(name, kernel, result)
    finally:
        JITFunction.run = run


def _described(launch: str, name: str, kernel: Any) -> Compiled:
    from triton import knobs

    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", report)}
    units = tuple(unit for unit in ("wgmma.mma_async", "mma.sync", "cp.async") if unit in kernel.asm["ptx"])
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return Compiled(launch, name, warps, shared, usage["REG"], usage["STACK"], units, kernel.hash)


def compiled_elsewhere(module: str) -> list[Compiled]:
    """What ``module.launches()`` compiles, in a process that has Triton's compiler. Skips the test without one."""
    from triton import knobs

    try:
        tools = (knobs.nvidia.ptxas.path, knobs.nvidia.cuobjdump.path)
    except (RuntimeError, AttributeError) as error:
        pytest.skip(f"this Triton cannot compile for NVIDIA GPUs: {error}")
    assert all(tools)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        command = [sys.executable, "-m", __name__, module]
        root = Path(__file__).parents[3]
        result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=280)
    assert result.returncode == 0, result.stderr
    return [Compiled(**json.loads(line)) for line in result.stdout.splitlines()]


if __name__ == "__main__":
    for result in compiled(import_module(sys.argv[1]).launches()):
        print(json.dumps(asdict(result)), flush=True)
