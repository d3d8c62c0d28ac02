"""Which backend runs which op on which device. Bound once, when a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from deepseek.errors import BackendUnavailableError
from deepseek.kernels.ops import Binding, Ops
from deepseek.kernels.triton.support import no_device
from deepseek.kernels.triton.support import obstacle as triton_obstacle

logger = logging.getLogger(__name__)

OPS = (
    "pack_linear",
    "linear",
    "rms_norm",
    "add_rms_norm",
    "gated_activation",
    "rotary_write_kv",
    "index_pages",
    "paged_attention",
    "mla_attention",
    "moe",
    "low_rank",
)

Functions = Mapping[str, Callable[..., Any]]


def _always() -> None:
    return None


@dataclass(frozen=True)
class Backend:
    """A set of functions for some ops on one kind of device.

    Attributes:
        name: what a user asks for.
        device: device type (``cpu``, ``cuda``).
        priority: under ``auto`` the highest that can run wins.
        load: imports the functions; called only when the backend is chosen for some op.
        ops: the ops it has; ``linear`` and ``pack_linear`` only together, as one understands what the other makes.
        obstacle: why it cannot run on this machine, or None.
    """

    name: str
    device: str
    priority: int
    load: Callable[[], Functions]
    ops: frozenset[str] = frozenset(OPS)
    obstacle: Callable[[], str | None] = _always

    def __post_init__(self) -> None:
        assert ("linear" in self.ops) == ("pack_linear" in self.ops), self.name


class Registry:
    """Backends by op and device."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = tuple(sorted(backends, key=lambda b: -b.priority))

    def bind(self, device: str, backend: str = "auto") -> dict[str, Binding]:
        """One binding per op for ``device`` (``cpu``, ``cuda:0``).

        ``backend`` is ``auto`` or the name of one that must serve all ops. Under ``auto``, a backend that cannot run
        here is passed over with a warning that says why. Raises BackendUnavailableError, naming what exists, for an
        unknown device or backend, one that lacks an op, one that cannot run here, and where none can.
        """
        device_type = device.split(":")[0]
        here = [b for b in self.backends if b.device == device_type]
        if not here:
            devices = sorted({b.device for b in self.backends})
            raise BackendUnavailableError(f"no kernels for device {device!r}; there are some for {', '.join(devices)}.")
        if backend != "auto":
            here = [self._named(backend, here, device_type)]
        obstacles = {b.name: b.obstacle() for b in here}
        loaded: dict[str, Functions] = {}
        bindings = {op: self._bind_op(op, here, obstacles, loaded, asked=backend != "auto") for op in OPS}
        for name, obstacle in obstacles.items():
            if obstacle:
                instead = ", ".join(sorted({binding.backend for binding in bindings.values()}))
                logger.warning("%s kernels cannot run on %s, so %s is used: %s.", name, device, instead, obstacle)
        return bindings

    def _named(self, name: str, here: Sequence[Backend], device_type: str) -> Backend:
        names = ", ".join(b.name for b in here)
        chosen = next((b for b in here if b.name == name), None)
        if chosen is None:
            raise BackendUnavailableError(f"unknown backend {name!r} for {device_type}; there are: auto, {names}.")
        if obstacle := chosen.obstacle():
            raise BackendUnavailableError(f"backend {name!r} cannot run here: {obstacle}. Known: auto, {names}.")
        if missing := sorted(set(OPS) - chosen.ops):
            raise BackendUnavailableError(f"backend {name!r} has no {', '.join(missing)}. Known: auto, {names}.")
        return chosen

    def _bind_op(
        self,
        op: str,
        here: Sequence[Backend],
        obstacles: Mapping[str, str | None],
        loaded: dict[str, Functions],
        *,
        asked: bool,
    ) -> Binding:
        passed_over = []
        for backend in here:
            if op not in backend.ops:
                passed_over.append(f"{backend.name} does not have it")
            elif obstacle := obstacles[backend.name]:
                passed_over.append(f"{backend.name} cannot run: {obstacle}")
            else:
                if backend.name not in loaded:
                    loaded[backend.name] = backend.load()
                reason = "asked for by name" if asked else "; ".join(["best that runs here", *passed_over])
                return Binding(op, backend.name, reason, loaded[backend.name][op])
        raise BackendUnavailableError(f"no backend can run {op!r} here: {'; '.join(passed_over)}.")


def _module(name: str) -> Callable[[], Functions]:
    def load() -> Functions:
        functions: Functions = import_module(name).functions()
        return functions

    return load


REGISTRY = Registry(
    [
        Backend("torch", "cpu", priority=10, load=_module("deepseek.kernels.torch_ops")),
        Backend("reference", "cpu", priority=0, load=_module("deepseek.kernels.reference")),
        Backend(
            "triton",
            "cuda",
            priority=20,
            load=_module("deepseek.kernels.triton.ops"),
            obstacle=triton_obstacle,
        ),
        Backend("torch", "cuda", priority=10, load=_module("deepseek.kernels.torch_ops"), obstacle=no_device),
        Backend("reference", "cuda", priority=0, load=_module("deepseek.kernels.reference"), obstacle=no_device),
    ]
)


def bind(device: str, backend: str = "auto") -> Ops:
    """The ops for ``device``; see :meth:`Registry.bind`. ``Ops.bindings`` tells which backend each got, and why."""
    bindings = REGISTRY.bind(device, backend)
    by_backend: dict[str, list[str]] = {}
    for binding in bindings.values():
        by_backend.setdefault(f"{binding.backend} ({binding.reason})", []).append(binding.op)
    summary = "; ".join(f"{', '.join(ops)}: {backend}" for backend, ops in by_backend.items())
    logger.info("kernels on %s: %s", device, summary)
    return Ops(bindings)
