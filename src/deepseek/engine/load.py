"""From settings to a running engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch

from deepseek.config import EngineConfig
from deepseek.engine.constraints import Constraints
from deepseek.engine.draft_model import DraftModel, vocabulary_difference
from deepseek.engine.encoder import EncoderEngine
from deepseek.engine.engine import Engine
from deepseek.engine.events import ContextLimit, EmbeddingInfo, EngineInfo
from deepseek.engine.execution import choose_execution, encoder_execution
from deepseek.engine.memory import PagePlan, SpillPlan, cache_budget, plan_pages
from deepseek.engine.speculation import EXPERTS_ROW_COST, ROW_COST, Drafter, LookupDrafter, Speculation
from deepseek.engine.spill import least_resident
from deepseek.engine.spill_file import open_spill_file
from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.hub.open import open_checkpoint
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import ModelFiles, resolve
from deepseek.hub.sentence_transformers import SentenceSettings, read_settings
from deepseek.kernels.page_index import SCRATCH_BYTES
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import SPILL_UNIT, Batch, Model, SpillSpace
from deepseek.models.bert import is_encoder
from deepseek.models.registry import parse_config
from deepseek.models.stretch import stretched
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with its model loaded, and what belongs to it."""

    engine: Engine | EncoderEngine
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
    files = resolve(config.model, offline=config.offline, progress=RichProgress())
    with ThreadPoolExecutor(1) as executor:
        tokenizer_future = executor.submit(load_tokenizer, files.path)
        checkpoint = open_checkpoint(files.path)
        try:
            if is_encoder(checkpoint.config):
                return _load_encoder(config, files, checkpoint, tokenizer_future.result(), started, progress)
            constraints_future = executor.submit(lambda: Constraints(tokenizer_future.result()))
            trained: int = parse_config(checkpoint.config).max_context
            checkpoint = stretched(checkpoint, config.model, config.max_context, config.rope_scaling)
            parsed = parse_config(checkpoint.config)
            max_context = config.max_context or trained
            execution = choose_execution(config, checkpoint, parsed, files.path)
            with _told_if_full(config):
                model = execution.load(checkpoint, files.name, progress)
        finally:
            checkpoint.close()
        tokenizer = tokenizer_future.result()
        constraints = constraints_future.result()
    draft = _load_draft(config, tokenizer) if config.draft_model else None
    row_cost = EXPERTS_ROW_COST if getattr(parsed, "experts", 0) else ROW_COST
    limit: ContextLimit = "model" if max_context == trained else "max_context"
    with _told_if_full(config):
        engine = _size(config, model, max_context, limit, tokenizer.eos_token_ids, draft, row_cost, constraints)
    for name, folder in config.adapters.items():
        adapter = engine.load_adapter(name, folder)
        logger.info("loaded the adapter %s (%s, %.1f MiB)", name, adapter.kind, adapter.nbytes / 2**20)
    spilled_bytes = (engine.pool.num_pages - engine.pool.resident) * model.spill_page_bytes(config.page_size)
    info = EngineInfo(
        model=files.name,
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_context=engine.max_context,
        dtype=execution.name,
        kv_cache_bytes=engine.pool.num_pages * model.page_bytes(config.page_size) - spilled_bytes,
        kv_spill_bytes=spilled_bytes,
        kv_cache_tokens=engine.pool.num_pages * config.page_size,
        weights_bytes=model.weights_bytes,
        load_seconds=time.perf_counter() - started,
        backends=dict(execution.backends(model)),
        embedding=embedding_info(read_settings(files.path, checkpoint.config), model.hidden_size),
        sparse=model.sparse,
        context_limit=engine.context_limit,
    )
    _log(info)
    return LoadedEngine(engine, info, tokenizer)


@contextmanager
def _told_if_full(config: EngineConfig) -> Iterator[None]:
    """A GPU without room for what the settings ask is the user's to know, in words. Raises ConfigurationError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise ConfigurationError(
            f"{config.model} in {config.dtype}, with steps of {config.max_batch_tokens} rows, does not fit the GPU: "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free ({error}). Choose dtype int8 or int4, a smaller "
            "max_batch_tokens or kv_cache_bytes, or more GPUs by tensor_parallel_size."
        ) from error


def _load_encoder(
    config: EngineConfig,
    files: ModelFiles,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    started: float,
    progress: Callable[[int, int], None] | None,
) -> LoadedEngine:
    if config.adapters:
        raise ConfigurationError(f"{config.model} is an encoder, and adapters are for models that generate text.")
    settings = read_settings(files.path, checkpoint.config)
    execution = encoder_execution(config)
    model = execution.load_encoder(checkpoint, files.name, progress)
    own_context = min(model.max_context, settings.max_tokens or model.max_context)
    max_context = config.max_context or own_context
    if max_context > own_context:
        raise ConfigurationError(
            f"max_context {max_context} is beyond the {own_context} positions that {config.model} was made for. Choose "
            "a smaller max_context."
        )
    engine = EncoderEngine(
        model,
        max_context=max_context,
        max_running=config.max_running,
        max_batch_tokens=config.max_batch_tokens,
    )
    info = EngineInfo(
        model=files.name,
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_context=max_context,
        dtype=execution.name,
        kv_cache_bytes=0,
        kv_cache_tokens=0,
        weights_bytes=model.weights_bytes,
        load_seconds=time.perf_counter() - started,
        backends=dict(execution.backends(model)),
        embedding=embedding_info(settings, model.hidden_size),
        generates=False,
        context_limit="max_context" if max_context < own_context else "model",
    )
    _log(info)
    return LoadedEngine(engine, info, tokenizer)


def _log(info: EngineInfo) -> None:
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


def embedding_info(settings: SentenceSettings, dimensions: int) -> EmbeddingInfo:
    """How a model's vectors are made.

    Models made for it say in their files how: decoders such as Qwen3-Embedding by their last token (arXiv:2506.05176).
    For others it is the mean, which sentence-transformers takes too for a model that says nothing: without training for
    it, a last token's state tells of the next token rather than of the text (Springer et al. 2024, arXiv:2402.15449).
    """
    return EmbeddingInfo(
        dimensions=dimensions,
        pooling=settings.pooling or "mean",
        normalize=settings.normalize is not False,
        shorter=settings.shorter,
    )


def _size(
    config: EngineConfig,
    model: Model,
    max_context: int,
    limit: ContextLimit,
    end_ids: frozenset[int],
    draft: Model | None,
    row_cost: float,
    constraints: Constraints,
) -> Engine:
    """An engine with as many pages as its memory budget holds; a draft model's cache gets as many pages of its own."""
    pages = plan_pages(
        model.page_bytes(config.page_size) + (draft.page_bytes(config.page_size) if draft else 0),
        page_size=config.page_size,
        max_context=max_context,
        max_running=config.max_running,
        budget=config.kv_cache_bytes or cache_budget(config.device, step_bytes(config, model)),
        spill=_spill_plan(config, model),
    )
    spill = _open_spill(config, model, pages)
    try:
        return _engine(config, model, pages, spill, max_context, limit, end_ids, draft, row_cost, constraints)
    finally:
        if spill is not None:
            os.close(spill.file)


def step_bytes(config: EngineConfig, model: Model) -> int:
    """Bytes of a GPU that the largest step takes beside weights and cache: measured, as it depends on everything, with
    a prompt, which is dense; what sparse rows may take is added. 0 elsewhere."""
    if config.device == "cpu":
        return 0
    rows = min(config.max_batch_tokens, model.max_context)
    pages = -(-rows // config.page_size)
    cache = model.new_cache(pages, config.page_size)
    slots, positions = torch.arange(rows), torch.arange(rows)
    layout = PagedLayout(config.page_size, (0, rows), (rows,), (range(pages),), slots.to(model.device))
    wanted = torch.arange(max(0, rows - config.max_running), rows).to(model.device)
    batch = Batch(torch.zeros_like(layout.write_slots), positions.to(model.device), layout, wanted)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.inference_mode():
        model.forward(batch, cache)
    taken = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    return taken + (SCRATCH_BYTES if model.sparse else 0)


def _spill_plan(config: EngineConfig, model: Model) -> SpillPlan | None:
    """Raises ConfigurationError for a model whose caches cannot spill."""
    if config.kv_spill_bytes is None:
        return None
    each = model.spill_page_bytes(config.page_size)
    if not each:
        raise ConfigurationError(
            f"kv_spill_bytes needs native kernels, and {config.model} runs with torch kernels here. Leave it out."
        )
    least = least_resident(config.max_running, config.max_batch_tokens, config.page_size)
    return SpillPlan(config.kv_spill_bytes, each, SPILL_UNIT, least)


def _open_spill(config: EngineConfig, model: Model, pages: PagePlan) -> SpillSpace | None:
    if not pages.spilled:
        return None
    assert config.kv_spill_dir is not None
    size = pages.spilled * model.spill_page_bytes(config.page_size)
    return SpillSpace(open_spill_file(config.kv_spill_dir, size), pages.resident)


def _engine(
    config: EngineConfig,
    model: Model,
    pages: PagePlan,
    spill: SpillSpace | None,
    max_context: int,
    limit: ContextLimit,
    end_ids: frozenset[int],
    draft: Model | None,
    row_cost: float,
    constraints: Constraints,
) -> Engine:
    return Engine(
        model,
        num_pages=pages.total,
        page_size=config.page_size,
        spill=spill,
        max_context=max_context,
        max_running=config.max_running,
        max_batch_tokens=config.max_batch_tokens,
        end_ids=end_ids,
        prefix_cache=config.prefix_cache,
        seed=config.seed,
        speculation=_speculation(config, model, draft, pages.resident, row_cost),
        constraints=constraints,
        context_limit=limit,
        attention=config.attention,
        attention_error=config.attention_error,
        question_tokens=config.question_tokens,
        on_gpu=config.device != "cpu",
        max_adapters=config.max_adapters,
    )


def _speculation(
    config: EngineConfig, model: Model, draft: Model | None, pages: int, row_cost: float
) -> Speculation | None:
    """What guesses for the engine, as the settings say."""
    if config.speculation == "off":
        return None
    drafter: Drafter = LookupDrafter()
    if draft is not None:
        drafter = DraftModel(
            draft,
            num_pages=pages,
            page_size=config.page_size,
            max_rows=config.max_batch_tokens,
            vocab_size=model.vocab_size,
            cost=draft.weights_bytes / model.weights_bytes,
        )
    return Speculation(drafter, row_cost=row_cost)


def _load_draft(config: EngineConfig, tokenizer: Tokenizer) -> Model:
    """The draft model, of the same dtype. Raises ConfigurationError if its vocabulary is another."""
    assert config.draft_model is not None
    files = resolve(config.draft_model, offline=config.offline, progress=RichProgress())
    difference = vocabulary_difference(tokenizer, load_tokenizer(files.path))
    if difference is not None:
        raise ConfigurationError(
            f"{files.name} cannot draft for {config.model}: {difference}. Choose a draft model of the same family."
        )
    checkpoint = open_checkpoint(files.path)
    # Drafts are checked anyway, and need no index; they are small.
    dense = msgspec.structs.replace(config, attention="dense", tensor_parallel_size=1)
    try:
        execution = choose_execution(dense, checkpoint, parse_config(checkpoint.config), files.path)
        return execution.load(checkpoint, files.name, None)
    finally:
        checkpoint.close()
