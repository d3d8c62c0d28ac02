"""Everything but attention down to machine code for Hopper, at the shapes of real models; no GPU is needed."""

from __future__ import annotations

import pytest

from tests.kernels.triton.compiling import SHARED_MEMORY, Compiled, compiled_elsewhere

KERNELS = {
    "_norm_kernel",
    "_quantize_kernel",
    "_activation_kernel",
    "_activation_int8_kernel",
    "_int8_kernel",
    "_weight_only_kernel",
    "_reduce_kernel",
    "_gate_up_kernel",
    "_down_kernel",
    "_combine_kernel",
    "_grouped_kernel",
    "_unpack_kernel",
    "_shrink_kernel",
    "_expand_kernel",
    "_sample_kernel",
}


@pytest.fixture(scope="module")
def everything() -> list[Compiled]:
    return compiled_elsewhere("tests.kernels.triton.dense_launches")


def test_each_kernel_compiles(everything: list[Compiled]) -> None:
    assert {kernel.kernel for kernel in everything} == KERNELS


def test_they_fit_the_chip(everything: list[Compiled]) -> None:
    for kernel in everything:
        assert kernel.shared <= SHARED_MEMORY, kernel
        # Inputs that are no multiple of 16 columns wide cannot be fetched 16 bytes at a time: no model has them.
        assert kernel.stack <= 16 or "odd sizes" in kernel.launch, kernel


def test_the_number_of_rows_asks_for_no_compilation(everything: list[Compiled]) -> None:
    """A server would compile in the middle of a step, for a second, whenever a new kind of number comes up."""
    steps: dict[str, list[str]] = {}
    for kernel in everything:
        if kernel.launch.startswith("steady"):
            steps.setdefault(kernel.launch, []).append(f"{kernel.kernel} {kernel.code}")
    first, *others = steps.values()
    assert len(others) == 3 and len(first) > 10
    for other in others:
        assert other == first


def test_products_run_on_the_matrix_unit_and_are_fetched_ahead(everything: list[Compiled]) -> None:
    products = [kernel for kernel in everything if kernel.shared > 16 * 1024]
    products = [
        k for k in products if k.kernel.startswith(("_int8", "_weight", "_gate", "_down", "_grouped", "_shrink"))
    ]
    assert len(products) > 10
    for kernel in products:
        if "fp32" in kernel.launch or "odd sizes" in kernel.launch:
            continue
        assert "cp.async" in kernel.units, kernel
        assert {"wgmma.mma_async", "mma.sync"} & set(kernel.units), kernel
    many = [kernel for kernel in products if "8192 rows" in kernel.launch or "2048 rows" in kernel.launch]
    assert len(many) >= 5
    assert all("wgmma.mma_async" in kernel.units for kernel in many)
