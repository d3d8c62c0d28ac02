"""Sparse attention's kernels compile for Hopper at the shapes of real models."""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import SHARED_MEMORY, Compiled, compiled_elsewhere


@pytest.fixture(scope="module")
def kernels() -> list[Compiled]:
    found = compiled_elsewhere("tests.kernels.triton.sparse_launches")
    return [kernel for kernel in found if kernel.kernel not in ("_decode_kernel", "_join_kernel")]


def test_every_kernel_is_among_them(kernels: list[Compiled]) -> None:
    assert {kernel.kernel for kernel in kernels} == {
        "_index_kernel",
        "_rotate_kernel",
        "_score_kernel",
        "_threshold_kernel",
        "_gather_kernel",
        "_finish_kernel",
    }


def test_they_fit_the_chip(kernels: list[Compiled]) -> None:
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY, kernel
        assert kernel.registers * 32 * kernel.warps <= 65536, kernel
        assert kernel.stack <= 64, kernel


def test_products_run_on_tensor_cores(kernels: list[Compiled]) -> None:
    for kernel in kernels:
        if kernel.kernel in ("_index_kernel", "_score_kernel", "_gather_kernel") and "fp32" not in kernel.launch:
            assert {"wgmma.mma_async", "mma.sync"} & set(kernel.units), kernel
        if kernel.kernel in ("_score_kernel", "_gather_kernel"):
            assert "cp.async" in kernel.units, kernel
