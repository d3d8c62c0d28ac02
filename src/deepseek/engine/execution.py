"""How a model is computed: native kernels or torch, and in which precision."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from deepseek.config import PAGE_SIZE, EngineConfig
from deepseek.engine.memory import free_memory
from deepseek.errors import BackendUnavailableError, ConfigurationError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.cpu.extension import obstacle
from deepseek.kernels.ops import Ops
from deepseek.kernels.registry import bind
from deepseek.models.base import Model
from deepseek.models.bert import Bert, load_bert
from deepseek.models.device import on_device
from deepseek.models.native import NativeDecoder, native_obstacle
from deepseek.models.native_weights import native_bytes
from deepseek.models.registry import load_model, load_native_model

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {"int8": 8, "int4": 4}
Progress = Callable[[int, int], None] | None


class Execution(Protocol):
    """One way to compute. ``name`` is the precision, as users see it."""

    @property
    def name(self) -> str: ...

    def load(self, checkpoint: Checkpoint, model_name: str, progress: Progress) -> Model: ...

    def backends(self, model: Model) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class TorchExecution:
    """Layer by layer, with the ops of the kernel registry. ``bits`` are those of the matrices, None for ``dtype``'s;
    ``kv_dtype`` is ``int8``, or the cache has the ``dtype``. ``indexed``: caches get the index that sparse attention
    needs."""

    device: str
    backend: str
    dtype: torch.dtype
    threads: int
    bits: int | None = None
    kv_dtype: str = "auto"
    indexed: bool = False

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.bits is None else f"int{self.bits}"

    def load(self, checkpoint: Checkpoint, model_name: str, progress: Progress) -> Model:
        ops = self.prepare(checkpoint, model_name)
        model = load_model(
            checkpoint,
            ops=ops,
            dtype=self.dtype,
            device=torch.device(self.device),
            bits=self.bits,
            kv_dtype=self.kv_dtype,
            indexed=self.indexed,
            progress=progress,
        )
        return on_device(model, ops)

    def load_encoder(self, checkpoint: Checkpoint, model_name: str, progress: Progress) -> Bert:
        ops = self.prepare(checkpoint, model_name)
        return load_bert(checkpoint, ops=ops, dtype=self.dtype, device=torch.device(self.device), progress=progress)

    def prepare(self, checkpoint: Checkpoint, model_name: str, processes: int = 1) -> Ops:
        """The ops, once it is known that a process's share of the weights fits. Raises ConfigurationError and
        BackendUnavailableError."""
        torch.set_num_threads(self.threads)
        elements = sum(math.prod(shape) for shape in checkpoint.shapes.values())
        needed = elements * self.dtype.itemsize if self.bits is None else elements * self.bits // 8
        on_gpu = self.device != "cpu"
        _check_room(needed // processes if on_gpu else needed, model_name, self.name, self.device)
        ops = bind(self.device, self.backend)
        if self.bits is not None and ops.bindings["linear"].backend != "triton":
            raise BackendUnavailableError(
                f"dtype {self.name} on {self.device} needs Triton's kernels: {ops.bindings['linear'].reason}."
            )
        return ops

    def backends(self, model: Model | Bert) -> Mapping[str, str]:
        return {name: binding.backend for name, binding in bind(self.device, self.backend).bindings.items()}


@dataclass(frozen=True)
class ParallelExecution:
    """The same, divided over processes."""

    whole: TorchExecution
    config: EngineConfig
    path: Path

    @property
    def name(self) -> str:
        return self.whole.name

    def backends(self, model: Model) -> Mapping[str, str]:
        return self.whole.backends(model)

    def load(self, checkpoint: Checkpoint, model_name: str, progress: Progress) -> Model:
        from deepseek.engine.parallel import load_parallel

        threads = max(1, self.whole.threads // self.config.tensor_parallel_size)
        ops = self.whole.prepare(checkpoint, model_name, self.config.tensor_parallel_size)
        torch.set_num_threads(threads)
        return load_parallel(
            checkpoint, self.config, self.path, ops=ops, dtype=self.whole.dtype, threads=threads, progress=progress
        )


@dataclass(frozen=True)
class NativeExecution:
    """A whole step in one call of the native extension."""

    scheme: str
    kv_dtype: str
    threads: int
    indexed: bool = False

    @property
    def name(self) -> str:
        return "as stored" if self.scheme == "auto" else self.scheme

    def load(self, checkpoint: Checkpoint, model_name: str, progress: Progress) -> Model:
        # One pool of threads per process: torch keeps to what is small.
        torch.set_num_threads(1)
        _check_room(native_bytes(checkpoint, self.scheme), model_name, self.name, "cpu")
        return load_native_model(
            checkpoint,
            scheme=self.scheme,
            kv_dtype=self.kv_dtype,
            threads=self.threads,
            indexed=self.indexed,
            progress=progress,
        )

    def backends(self, model: Model) -> Mapping[str, str]:
        assert isinstance(model, NativeDecoder)
        return {"model": f"native ({model.isa})"}


def choose_execution(config: EngineConfig, checkpoint: Checkpoint, parsed: Any, path: Path) -> Execution:
    """How the checkpoint at ``path``, whose config was parsed to ``parsed``, is computed under ``config``.

    Native kernels run quantized and fp16 matrices on CPUs; torch runs everything else, and what they cannot, in fp32 or
    bf16. Under ``auto`` a quantized checkpoint keeps its integers, and a floating one is bf16 where the device
    multiplies it natively, else fp16.

    Raises ConfigurationError for settings that exclude each other, and BackendUnavailableError where native kernels are
    asked for, by name, by precision or for sparse attention, and cannot run.
    """
    threads = config.threads or len(os.sched_getaffinity(0))
    divided = config.tensor_parallel_size > 1
    if divided and config.backend == "native":
        raise ConfigurationError("tensor_parallel_size above 1 needs torch kernels, and backend native has others.")
    if config.backend == "native" or (config.backend == "auto" and config.device == "cpu" and not divided):
        scheme = _native_scheme(config, checkpoint)
        reason = "no native kernel for this precision" if scheme is None else obstacle() or native_obstacle(parsed)
        if reason is None and scheme is not None:
            kv_dtype = "fp16" if config.kv_dtype == "auto" else config.kv_dtype
            return NativeExecution(scheme, kv_dtype, threads, _indexed(config))
        asked = config.backend == "native" or config.dtype in ("int8", "int4")
        if asked:
            raise BackendUnavailableError(f"native kernels cannot run {config.model} in {config.dtype}: {reason}.")
        if scheme is not None:
            logger.warning("%s runs with torch kernels, which are slower: %s", config.model, reason)
    bits = _BITS.get(config.dtype)
    if bits is not None and (config.device == "cpu" or divided):
        raise ConfigurationError(
            f"dtype {config.dtype} needs native kernels, which run on a CPU with backend auto or native, not with "
            f"device {config.device!r}, backend {config.backend!r} and tensor_parallel_size "
            f"{config.tensor_parallel_size}."
        )
    dtype = _torch_dtype("auto" if bits else config.dtype, config.device)
    indexed = _torch_indexed(config)
    execution = TorchExecution(config.device, config.backend, dtype, threads, bits, config.kv_dtype, indexed)
    return ParallelExecution(execution, config, path) if divided else execution


def _torch_indexed(config: EngineConfig) -> bool:
    """The same for torch, whose own form of sparse attention shows what is read, and costs more than it saves: it is
    for whoever asks for it. Raises ConfigurationError."""
    if config.attention == "sparse" and config.tensor_parallel_size > 1:
        raise ConfigurationError(
            "attention sparse runs in one process: choose tensor_parallel_size 1, or attention auto or dense."
        )
    if config.attention == "dense" or config.tensor_parallel_size > 1:
        return False
    fast = (
        config.device != "cpu" and bind(config.device, config.backend).bindings["paged_attention"].backend == "triton"
    )
    if config.attention == "auto" and not fast:
        logger.info("attention is dense: torch kernels attend sparsely only if asked to, as it saves no time there")
        return False
    if not fast:
        logger.warning("attention sparse is slow with torch kernels: choose auto or dense where time matters")
    return _indexed(config)


def _indexed(config: EngineConfig) -> bool:
    """Whether caches get the index that sparse attention needs. Raises ConfigurationError."""
    if config.attention == "dense" or config.page_size == PAGE_SIZE:
        return config.attention != "dense"
    if config.attention == "sparse":
        raise ConfigurationError(f"attention sparse needs a page_size of {PAGE_SIZE}, not {config.page_size}.")
    logger.info("attention is dense: its sparse form needs a page_size of %d", PAGE_SIZE)
    return False


def encoder_execution(config: EngineConfig) -> TorchExecution:
    """How an encoder is computed under ``config``: with torch, and under ``auto`` in fp32 on every device, since its
    vectors are kept and compared with those that other machines make.

    Raises ConfigurationError for settings that an encoder does not have, BackendUnavailableError for native kernels.
    """
    if config.backend == "native":
        raise BackendUnavailableError(f"native kernels cannot run {config.model}: they have no encoders.")
    without = config.kv_dtype != "auto" or config.draft_model is not None or config.attention == "sparse"
    if config.dtype in ("int8", "int4") or without or config.tensor_parallel_size > 1:
        raise ConfigurationError(
            f"{config.model} is an encoder: it runs in fp32, bf16 or fp16 in one process, and has neither a cache "
            "(kv_dtype) nor a draft_model nor sparse attention."
        )
    dtype = torch.float32 if config.dtype == "auto" else _DTYPES[config.dtype]
    return TorchExecution(config.device, config.backend, dtype, config.threads or len(os.sched_getaffinity(0)))


def _native_scheme(config: EngineConfig, checkpoint: Checkpoint) -> str | None:
    if config.dtype == "fp32":
        return None
    if config.dtype != "auto":
        return config.dtype
    if any(len(shape) == 2 and checkpoint.quantized(name) for name, shape in checkpoint.shapes.items()):
        return "auto"
    return "bf16" if _multiplies_bf16() else "fp16"


def _multiplies_bf16() -> bool:
    """Whether this CPU has a matrix unit for bf16."""
    return bool(torch.cpu._is_amx_tile_supported())


def _torch_dtype(name: str, device: str) -> torch.dtype:
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if device != "cpu" or _multiplies_bf16() else torch.float32


def _check_room(needed: int, name: str, precision: str, device: str) -> None:
    """Refuse weights that cannot fit before the system kills the process half-way."""
    if needed > (free := free_memory(device)):
        raise ConfigurationError(
            f"the weights of {name} take {needed / 2**30:.1f} GiB in {precision}, and {free / 2**30:.1f} GiB of memory "
            f"are free on {device}. Choose a smaller model or dtype, or free some memory."
        )
