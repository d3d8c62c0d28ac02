"""Which backends there are on a GPU, what stands in their way, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from deepseek.errors import BackendUnavailableError
from deepseek.kernels.registry import OPS, REGISTRY, Backend, Registry, bind
from deepseek.kernels.triton import ops, probe, support
from tests.kernels.triton.devices import DEVICE

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs an NVIDIA GPU")
without_gpu = pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is remembered of this machine is forgotten before and after."""
    for remembered in (support.no_device, support.obstacle):
        remembered.cache_clear()
    yield
    for remembered in (support.no_device, support.obstacle):
        remembered.cache_clear()


@pytest.fixture
def gpu(fresh: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch as it is on a machine with an H100, as far as an obstacle is looked for."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(probe, "run", lambda: None)
    return monkeypatch


def backend(name: str, priority: int, obstacle: str | None = None) -> Backend:
    def load() -> dict[str, Callable[..., Any]]:
        assert obstacle is None, "a backend that cannot run must not be loaded"
        return {op: lambda: name for op in OPS}

    return Backend(name, "cuda", priority, load, obstacle=lambda: obstacle)


def test_the_ops_are_those_that_the_registry_knows() -> None:
    assert set(ops.functions()) == set(OPS)


def test_triton_is_preferred_to_torch_and_torch_to_the_reference() -> None:
    assert [b.name for b in REGISTRY.backends if b.device == "cuda"] == ["triton", "torch", "reference"]


def test_a_fallback_is_a_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry([backend("triton", 20, "the driver is old"), backend("torch", 10)])
    with caplog.at_level(logging.WARNING):
        bindings = registry.bind("cuda:0")
    assert {binding.backend for binding in bindings.values()} == {"torch"}
    [record] = caplog.records
    assert record.getMessage() == "triton kernels cannot run on cuda:0, so torch is used: the driver is old."


def test_by_name_it_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry([backend("triton", 20, "the driver is old"), backend("torch", 10)])
    with pytest.raises(BackendUnavailableError, match="'triton' cannot run here: the driver is old"):
        registry.bind("cuda", "triton")
    assert not caplog.records


@without_gpu
@pytest.mark.parametrize("name", ["auto", "triton", "torch", "reference"])
def test_without_a_gpu_nothing_is_bound(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BackendUnavailableError, match=r"built without CUDA|no CUDA device"):
        bind("cuda", name)
    assert not caplog.records


def test_nothing_stands_in_the_way(gpu: pytest.MonkeyPatch) -> None:
    assert support.obstacle() is None


def test_a_build_of_torch_without_cuda(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", None)
    assert support.obstacle() == f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"


def test_no_device(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert "an NVIDIA GPU and its driver are needed" in str(support.obstacle())


def test_an_old_chip(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    gpu.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert str(support.obstacle()).startswith("Tesla T4 has compute capability 7.5; 8.0 or newer is needed")


def test_no_triton(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(support, "find_spec", lambda name: None)
    assert str(support.obstacle()).startswith("triton is not installed; 3.6 or newer is needed")


def test_an_old_triton(gpu: pytest.MonkeyPatch) -> None:
    import triton

    gpu.setattr(triton, "__version__", "3.5.1")
    assert support.obstacle() == "triton 3.5.1 is installed; 3.6 or newer is needed"


def test_a_driver_that_does_not_fit(gpu: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid\nand more")

    gpu.setattr(probe, "run", fail)
    reason = str(support.obstacle())
    assert "could not compile and run a kernel" in reason
    assert (
        "(RuntimeError: Triton Error [CUDA]: device kernel image is invalid); a driver that knows CUDA 12.8" in reason
    )


def test_the_answer_is_remembered(gpu: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    gpu.setattr(probe, "run", lambda: runs.append(1))
    assert support.obstacle() is support.obstacle() is None
    assert len(runs) == 1


def test_the_probe_counts() -> None:
    probe.run(DEVICE.type)


@on_gpu
def test_a_gpu_gets_triton() -> None:
    bindings = bind("cuda").bindings
    assert {op for op, binding in bindings.items() if binding.backend == "triton"} == set(OPS)
