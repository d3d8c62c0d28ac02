"""The compiled extension, and why it may be missing."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from deepseek.errors import BackendUnavailableError


@cache
def obstacle() -> str | None:
    """Why native kernels cannot run here, or None."""
    try:
        module = import_module("deepseek.kernels.cpu._native")
    except ImportError as error:
        return (
            f"the native extension is not built ({error}). Install a C++17 compiler (Debian, Ubuntu: apt install g++; "
            "Fedora: dnf install gcc-c++) and install this package again"
        )
    if not module.available_isas():
        return "this processor has no AVX2"
    return None


def native() -> Any:
    """The extension module ``_native``. Raises BackendUnavailableError where it cannot run."""
    if (reason := obstacle()) is not None:
        raise BackendUnavailableError(f"native kernels cannot run here: {reason}.")
    return import_module("deepseek.kernels.cpu._native")
