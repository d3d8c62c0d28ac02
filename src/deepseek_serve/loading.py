"""Loading and unloading models while the others are served."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import msgspec

from deepseek.config import EngineConfig
from deepseek.errors import (
    ConfigurationError,
    DeepSeekError,
    DownloadError,
    EngineError,
    InvalidRequestError,
    UnknownAdapterError,
)
from deepseek.runtime.supervisor import RuntimeOptions
from deepseek_serve.adapted import AdaptedModel
from deepseek_serve.errors import INTERNAL_MESSAGE, SERVER_ERROR, ApiError
from deepseek_serve.memory import budget, free_memory
from deepseek_serve.models import Progress, ServedModel
from deepseek_serve.replicas import divide, engine_clients
from deepseek_serve.sources import Fetch, Place, locate
from deepseek_serve.state import ServerState

logger = logging.getLogger("deepseek.serve")

T = TypeVar("T")
DRAIN_POLL = 0.05  # seconds


class ModelLoader:
    """Brings models into ``state.models`` and takes them out.

    Args:
        options: how engine processes are watched.
        fetch: has a model's files brought to this machine.
    """

    def __init__(self, state: ServerState, options: RuntimeOptions, fetch: Fetch) -> None:
        self._state = state
        self._options = options
        self._fetch = fetch
        self._tasks: dict[ServedModel, asyncio.Task[None]] = {}
        self._adapting = asyncio.Lock()
        self._reserved: dict[ServedModel, int] = {}  # bytes of models that are being loaded

    def load(self, asked: str, name: str | None, config: EngineConfig, replicas: int) -> ServedModel:
        """Begin to load a model that a request asks for. Its status tells how it goes.

        Args:
            asked: a path below the model folder, a built-in name or a Hugging Face id.
            name: what clients will call it; None takes its own name.
            config: settings of its engines.

        Raises :class:`ApiError`: 404 there is no such model, 409 the name is taken, 507 it does not fit into memory.
        """
        model_dir = self._state.config.model_dir
        return self.begin(locate(asked, Path(model_dir) if model_dir else None), name, config, replicas)

    def begin(self, place: Place, name: str | None, config: EngineConfig, replicas: int = 1) -> ServedModel:
        """As :meth:`load`, from a place that is known."""
        models = self._state.models
        public = name or place.name
        taken = next((model for model in models if public in (*model.names, *model.adapters)), None)
        if taken is not None and (taken.status != "failed" or taken not in self._tasks):
            raise ApiError(
                409,
                f"A model is served as {public!r} already. Give this one another 'name', or unload that one first.",
                param="name",
                code="model_already_loaded",
            )
        try:
            divide(config, replicas)
        except ConfigurationError as error:
            raise InvalidRequestError(str(error), param="replicas", code="invalid_value") from error
        self._plan(config, place.weights_bytes or 0, replicas)  # planned again when its files are there
        if taken is not None:
            models.remove(taken)
            self._state.metrics.forget(taken)
            del self._tasks[taken]
        free_name = all(place.name not in (*model.names, *model.adapters) for model in models)
        model = ServedModel((public, place.name) if free_name else (public,), place.name, config)
        models.append(model)
        self._state.metrics.of(model)
        self._reserved[model] = (place.weights_bytes or 0) * replicas + (config.kv_cache_bytes or 0)
        self._tasks[model] = asyncio.create_task(self._bring(model, place, replicas), name=f"load {public}")
        logger.info("loading %s as %s", place.name, public)
        return model

    async def unload(self, model: ServedModel) -> None:
        """Take no more requests for the model, wait for those it has, and free its memory.

        Raises :class:`ApiError` 409 if it is on its way already, or is what the server is starting with.
        """
        own = self._tasks.get(model)
        if model.unloading or (own is None and model.status == "starting"):
            raise ApiError(
                409, f"The model {model.name} is {model.status}.", param="model", code=f"model_{model.status}"
            )
        model.unloading = True
        task = asyncio.create_task(self._remove(model, own), name=f"unload {model.name}")
        self._tasks[model] = task
        await asyncio.shield(task)  # who asked may go away meanwhile

    async def load_adapter(self, model: ServedModel, name: str, folder: str, *, replace: bool = False) -> AdaptedModel:
        """Have all engines of a model serve an adapter.

        Args:
            name: what clients will call it.
            folder: of its files.
            replace: an adapter of that name may give way; requests that use it go on.

        Raises :class:`ApiError` 409 the name is taken, AdapterError with everything that is wrong with the adapter, and
        as :meth:`ServedModel.generating`.
        """
        model.generating()
        before = model.adapters.get(name)
        known = {known for own in self._state.models for known in (*own.names, *own.adapters)}
        if name in known and (before is None or not replace):
            raise ApiError(
                409,
                f"Something is served as {name!r} already. Choose another name, unload that one first, or replace an "
                "adapter of this model with 'load_inplace'.",
                param="lora_name",
                code="model_already_loaded",
            )
        async with self._adapting:
            results = await asyncio.gather(
                *(replica.load_adapter(name, folder) for replica in model.replicas), return_exceptions=True
            )
            failures = [result for result in results if isinstance(result, BaseException)]
            infos = [result for result in results if not isinstance(result, BaseException)]
            if failures:
                if before is None:  # those that have it are to forget it
                    await asyncio.gather(*(r.unload_adapter(name) for r in model.replicas), return_exceptions=True)
                raise failures[0]
            adapted = model.adapters[name] = AdaptedModel(model, name, folder, infos[0])
        self._state.metrics.of(adapted)
        logger.info("serving the adapter %s of %s, loaded in %.2f s", name, model.name, infos[0].load_seconds)
        return adapted

    async def unload_adapter(self, adapted: AdaptedModel) -> None:
        """Take an adapter out of service; requests that use it go on."""
        async with self._adapting:
            if adapted.base.adapters.pop(adapted.name, None) is None:
                return  # somebody else was faster
            results = await asyncio.gather(
                *(replica.unload_adapter(adapted.name) for replica in adapted.replicas), return_exceptions=True
            )
        self._state.metrics.forget(adapted)
        for result in results:  # an engine that is away has nothing to unload
            if isinstance(result, BaseException) and not isinstance(result, EngineError | UnknownAdapterError):
                raise result
        logger.info("unloaded the adapter %s", adapted.name)

    async def stop(self) -> None:
        """Leave off whatever is under way; the engines are the caller's to stop."""
        tasks = list(self._tasks.values())
        for model in self._tasks:
            model.unloading = True  # ends a download
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _plan(self, config: EngineConfig, weights: int, replicas: int, own: int = 0) -> EngineConfig:
        """The settings with the memory that they may take. Raises :class:`ApiError` 507."""
        free = free_memory(self._state.models) - sum(self._reserved.values()) + own
        try:
            return budget(config, weights, replicas, free)
        except ConfigurationError as error:
            raise ApiError(
                507,
                str(error),
                type=SERVER_ERROR,
                param="model",
                code="insufficient_memory",
                headers={"x-should-retry": "false"},
            ) from error

    async def _bring(self, model: ServedModel, place: Place, replicas: int) -> None:
        """Download and start it, or keep why not."""
        offline = self._state.config.engine.offline
        try:
            source = await _in_thread(lambda: self._fetch(place, offline, _Download(model)))
            config = self._plan(model.config, source.weights_bytes, replicas, self._reserved[model])
            config = msgspec.structs.replace(config, model=source.model)
            self._reserved[model] = source.weights_bytes * replicas + (config.kv_cache_bytes or 0)
            model.real_name = source.name
            model.attach(config, engine_clients(config, self._options, replicas))
            info = await model.start(source.load_tokenizer, self._state.executor)
        except Exception as error:
            if not isinstance(error, DeepSeekError):
                logger.exception("loading %s failed", model.name)
            model.fail(str(error) if isinstance(error, DeepSeekError) else INTERNAL_MESSAGE)
            logger.error("the model %s cannot be served: %s", model.name, model.failure)
            await model.stop()
        else:
            logger.info("serving %s as %s, loaded in %.1f s", info.model, model.name, info.load_seconds)
        finally:
            self._reserved.pop(model, None)

    async def _remove(self, model: ServedModel, loading: asyncio.Task[None] | None) -> None:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            self._reserved.pop(model, None)  # it may not have begun
        try:
            async with asyncio.timeout(self._state.config.drain_timeout):
                while model.pending:
                    await asyncio.sleep(DRAIN_POLL)
        except TimeoutError:
            logger.warning("unloading %s ends %d answers", model.name, model.pending)
        model.abort_all("the model is being unloaded")
        await model.stop()
        self._state.models.remove(model)
        for served in (model, *model.adapters.values()):
            self._state.metrics.forget(served)
        del self._tasks[model]
        logger.info("unloaded %s", model.name)


class _Download:
    """Implements :class:`deepseek.hub.progress.Progress`, in the thread that downloads."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._total = 0

    def start(self, title: str, total: int) -> None:
        self._total = total
        self.update(0, "")

    def update(self, done: int, detail: str) -> None:
        """Raises DownloadError if nobody wants the model any more."""
        if self._model.unloading:
            raise DownloadError("the model is wanted no more")
        self._model.download = Progress.of("downloading", done, self._total)

    def note(self, text: str) -> None:
        logger.info("%s: %s", self._model.name, text)

    def finish(self) -> None:
        self._model.download = None


async def _in_thread(function: Callable[[], T]) -> T:
    """Run it in a thread that does not keep a process from ending: a download may take hours."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the event loop
            future.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    return await asyncio.wrap_future(future)
