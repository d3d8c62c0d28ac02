"""The attention kernels compile for Hopper at the shapes of real models.

The interpreter, under which the other tests run, forgives much that the compiler does not.
"""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import SHARED_MEMORY, Compiled, compiled_elsewhere


@pytest.fixture(scope="module")
def kernels() -> list[Compiled]:
    return compiled_elsewhere("tests.kernels.triton.attention_launches")


def test_every_kernel_is_among_them(kernels: list[Compiled]) -> None:
    assert {kernel.kernel for kernel in kernels} == {
        "_prefill_kernel",
        "_decode_kernel",
        "_join_kernel",
        "_rotary_write_kernel",
    }


def test_they_fit_the_chip(kernels: list[Compiled]) -> None:
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY, kernel
        assert kernel.registers * 32 * kernel.warps <= 65536, kernel
        assert kernel.stack <= 64, kernel


def test_products_run_on_tensor_cores_and_loads_ahead_of_them(kernels: list[Compiled]) -> None:
    for kernel in kernels:
        if kernel.kernel == "_prefill_kernel" and "fp32" not in kernel.launch:
            assert {"wgmma.mma_async", "cp.async"} <= set(kernel.units), kernel
        if kernel.kernel == "_decode_kernel" and "fp32" not in kernel.launch:
            assert "cp.async" in kernel.units, kernel
            assert {"wgmma.mma_async", "mma.sync"} & set(kernel.units), kernel
