"""Whether this machine can run Triton kernels, and what they need to know of its chip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

OLDEST_TRITON = (3, 6)
OLDEST_CHIP = (8, 0)


@cache
def no_device() -> str | None:
    """Why nothing can run on ``cuda`` here, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; an NVIDIA GPU and its driver are needed (`nvidia-smi` must list it)"
    return None


@cache
def obstacle() -> str | None:
    """Why the Triton kernels cannot run here, or None. Looks at the current CUDA device; takes a second the first time,
    as the only proof that driver, Triton and C compiler fit each other is a kernel that ran."""
    if reason := no_device():
        return reason
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CHIP:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {_dotted(capability)}; {_dotted(OLDEST_CHIP)} or "
            "newer is needed (A100, RTX 30, and later)"
        )
    if find_spec("triton") is None:
        return f"triton is not installed; {_dotted(OLDEST_TRITON)} or newer is needed (pip install 'triton>=3.6')"
    version: str = import_module("triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {version} is installed; {_dotted(OLDEST_TRITON)} or newer is needed"
    try:
        import_module("deepseek.kernels.triton.probe").run()
    except Exception as error:  # noqa: BLE001 - driver, compiler and launcher each have their own; all mean the same here
        return (
            f"triton {version} could not compile and run a kernel with torch {torch.__version__} "
            f"({type(error).__name__}: {_first_line(error)}); a driver that knows CUDA {torch.version.cuda} and a C "
            "compiler are needed"
        )
    return None


@dataclass(frozen=True, slots=True)
class Chip:
    """What decides how work is cut.

    Attributes:
        processors: streaming multiprocessors.
        shared_memory: bytes that one program may have.
    """

    processors: int
    shared_memory: int


@cache
def chip_of(device: torch.device) -> Chip:
    """The chip of ``device``; for a CPU, where kernels run in the interpreter, a small one."""
    if device.type == "cpu":
        return Chip(4, 99 * 1024)
    properties = torch.cuda.get_device_properties(device)
    shared: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stubs lack it
    return Chip(properties.multi_processor_count, shared)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
