"""From settings to a running engine."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from deepseek.config import EngineConfig
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineInfo
from deepseek.engine.memory import available_memory, page_bytes, plan_pages
from deepseek.errors import ConfigurationError
from deepseek.hub.open import open_checkpoint
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import resolve
from deepseek.kernels.registry import bind
from deepseek.models.base import Model
from deepseek.models.registry import load_model, parse_config
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with its model loaded, and what belongs to it."""

    engine: Engine
    info: EngineInfo
    tokenizer: Tokenizer


def load_engine(config: EngineConfig, progress: Callable[[int, int], None] | None = None) -> LoadedEngine:
    """Resolve the model (with a progress bar if it must be downloaded), load it, and size the cache.

    Args:
        config: complete settings.
        progress: called with (tensors loaded, tensors in all) while weights load.

    Raises:
        HubError, CheckpointError, ConfigurationError, TokenizerError: with the reason.
    """
    started = time.perf_counter()
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    ops = bind(config.device, config.backend)
    device = torch.device(config.device)
    dtype = choose_dtype(config.dtype, config.device)
    files = resolve(config.model, offline=config.offline, progress=RichProgress())
    with ThreadPoolExecutor(1) as executor:
        tokenizer_future = executor.submit(load_tokenizer, files.path)
        checkpoint = open_checkpoint(files.path)
        try:
            max_context = _context(config, parse_config(checkpoint.config).max_context)
            _check_room(checkpoint.shapes.values(), dtype, files.name)
            model = load_model(checkpoint, ops=ops, dtype=dtype, device=device, progress=progress)
        finally:
            checkpoint.close()
        tokenizer = tokenizer_future.result()
    engine = _size(config, model, max_context, tokenizer.eos_token_ids)
    info = EngineInfo(
        model=files.name,
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_context=engine.max_context,
        dtype=str(dtype).removeprefix("torch."),
        kv_cache_bytes=engine.pool.num_pages * page_bytes(model.cache_specs, config.page_size, dtype.itemsize),
        kv_cache_tokens=engine.pool.num_pages * config.page_size,
        weights_bytes=model.weights_bytes,
        load_seconds=time.perf_counter() - started,
        backends={name: binding.backend for name, binding in ops.bindings.items()},
    )
    logger.info(
        "loaded %s (%s, %s): weights %.2f GiB, KV cache %.2f GiB for %d tokens, context %d, in %.1f s",
        info.model,
        info.architecture,
        info.dtype,
        info.weights_bytes / 2**30,
        info.kv_cache_bytes / 2**30,
        info.kv_cache_tokens,
        info.max_context,
        info.load_seconds,
    )
    return LoadedEngine(engine, info, tokenizer)


def _size(config: EngineConfig, model: Model, max_context: int, end_ids: frozenset[int]) -> Engine:
    """An engine with as many pages as its memory budget holds."""
    pages = plan_pages(
        model.cache_specs,
        page_size=config.page_size,
        itemsize=model.dtype.itemsize,
        max_context=max_context,
        max_running=config.max_running,
        budget=config.kv_cache_bytes,
    )
    return Engine(
        model,
        num_pages=pages,
        page_size=config.page_size,
        max_context=max_context,
        max_running=config.max_running,
        max_batch_tokens=config.max_batch_tokens,
        end_ids=end_ids,
        prefix_cache=config.prefix_cache,
        seed=config.seed,
    )


def choose_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype of ``name``; ``auto`` is bf16 where the device multiplies it natively, else fp32."""
    if name != "auto":
        return _DTYPES[name]
    native = torch.cpu._is_amx_tile_supported() if device == "cpu" else True
    return torch.bfloat16 if native else torch.float32


def _check_room(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, name: str) -> None:
    """Refuse weights that cannot fit before the system kills the process half-way."""
    needed = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    if needed > (free := available_memory()):
        raise ConfigurationError(
            f"the weights of {name} take {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and "
            f"{free / 2**30:.1f} GiB of memory are free. Choose a smaller model or dtype, or free some memory."
        )


def _context(config: EngineConfig, model_context: int) -> int:
    if config.max_context is not None and config.max_context > model_context:
        raise ConfigurationError(
            f"max_context {config.max_context} is beyond the {model_context} positions that {config.model} was made "
            "for. Choose a smaller max_context."
        )
    return config.max_context or model_context
