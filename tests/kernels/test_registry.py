from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from deepseek.errors import BackendUnavailableError
from deepseek.kernels import reference, torch_ops
from deepseek.kernels.registry import OPS, Backend, Registry, bind

LINEAR = ("pack_linear", "linear")


def marked(name: str, ops: tuple[str, ...] = OPS) -> Callable[[], dict[str, Callable[..., Any]]]:
    return lambda: {op: partial(tuple, (name, op)) for op in ops}


def test_auto_takes_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="deepseek.kernels.registry"):
        ops = bind("cpu")
    assert {binding.backend for binding in ops.bindings.values()} == {"torch"}
    assert set(ops.bindings) == set(OPS) == set(torch_ops.functions()) == set(reference.functions())
    [record] = caplog.records
    assert "torch (best that runs here)" in record.getMessage()
    assert "paged_attention" in record.getMessage()


def test_a_backend_by_name() -> None:
    bindings = bind("cpu", "reference").bindings
    assert {(b.backend, b.reason) for b in bindings.values()} == {("reference", "asked for by name")}
    assert bindings["linear"].function is reference.linear


def test_unknown_backend_names_what_exists() -> None:
    with pytest.raises(BackendUnavailableError, match=r"unknown backend 'tpu' for cpu; there are: auto, torch, ref"):
        bind("cpu", "tpu")


def test_unknown_device() -> None:
    with pytest.raises(BackendUnavailableError, match=r"'xpu:0'; there are some for cpu, cuda"):
        bind("xpu:0")


def test_auto_passes_over_what_cannot_run() -> None:
    registry = Registry(
        [
            Backend("slow", "cpu", 0, marked("slow")),
            Backend("partial", "cpu", 5, marked("partial", LINEAR), ops=frozenset(LINEAR)),
            Backend("broken", "cpu", 9, _never, obstacle=lambda: "needs AVX-1024"),
        ]
    )
    bindings = registry.bind("cpu")
    assert bindings["linear"].function() == ("partial", "linear")
    assert bindings["linear"].reason == "best that runs here; broken cannot run: needs AVX-1024"
    assert bindings["moe"].function() == ("slow", "moe")
    assert bindings["moe"].reason.endswith("partial does not have it")


def test_by_name_never_falls_back() -> None:
    registry = Registry(
        [
            Backend("slow", "cpu", 0, marked("slow")),
            Backend("partial", "cpu", 5, marked("partial", LINEAR), ops=frozenset(LINEAR)),
            Backend("broken", "cpu", 9, _never, obstacle=lambda: "needs AVX-1024"),
        ]
    )
    with pytest.raises(BackendUnavailableError, match=r"'broken' cannot run here: needs AVX-1024\. Known: auto"):
        registry.bind("cpu", "broken")
    with pytest.raises(BackendUnavailableError, match=r"'partial' has no add_rms_norm, "):
        registry.bind("cpu", "partial")


def test_no_backend_for_an_op() -> None:
    registry = Registry([Backend("partial", "cpu", 5, marked("partial", LINEAR), ops=frozenset(LINEAR))])
    with pytest.raises(BackendUnavailableError, match=r"no backend can run 'rms_norm' here: partial does not have it"):
        registry.bind("cpu")


def _never() -> dict[str, Callable[..., Any]]:
    raise AssertionError("a backend that cannot run must not be loaded")
