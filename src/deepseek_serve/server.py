"""One server from its first socket to its last answer: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import uvicorn
import uvloop

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError, DeepSeekError, EngineStartError
from deepseek.hub.progress import RichProgress
from deepseek.runtime.supervisor import RuntimeOptions
from deepseek_serve.app import create_app
from deepseek_serve.batches.runner import BatchRunner
from deepseek_serve.config import ServeConfig
from deepseek_serve.http_protocol import BoundedProtocol
from deepseek_serve.loading import ModelLoader
from deepseek_serve.memory import budget, free_memory
from deepseek_serve.models import ServedModel
from deepseek_serve.observability.logs import set_up
from deepseek_serve.observability.process import raise_file_limit, watch_lag
from deepseek_serve.replicas import engine_clients
from deepseek_serve.sources import Fetch, Place, Source, fetch
from deepseek_serve.state import ServerState

if TYPE_CHECKING:
    from deepseek.engine.events import EngineInfo

logger = logging.getLogger("deepseek.serve")

BACKLOG = 2048
IDLE_CONNECTION_TIMEOUT = 75  # seconds; longer than the pools of usual clients, so that they close first
CLOSE_TIMEOUT = 5  # seconds for the last bytes of answered requests


def serve(
    config: ServeConfig,
    *,
    options: RuntimeOptions | None = None,
    fetch: Fetch = fetch,
) -> None:
    """Serve until SIGTERM or SIGINT; returns after a graceful end.

    The first signal lets running requests finish within ``config.drain_timeout``, the second ends them at once.

    Args:
        config: complete settings.
        options: how the engine process is watched.
        fetch: has a model's files brought to this machine; called for the models of ``config`` before anything is
            started.

    Raises:
        ConfigurationError: the port is in use or not allowed; nothing has been loaded then.
        HubError, CheckpointError, TokenizerError, EngineStartError: the model cannot be served.
    """
    options = options or RuntimeOptions(log_level=config.log_level)
    as_json = set_up(config.log_level, config.log_format)
    raise_file_limit(config.capacity)
    with contextlib.closing(bind(config.host, config.port)) as listener:
        embedding, engine = None, config.embedding_engine
        source = fetch(Place(config.engine.model, config.engine.model), config.engine.offline, RichProgress())
        if engine is not None:
            embedding = fetch(Place(engine.model, engine.model), engine.offline, RichProgress())
        uvloop.run(_Server(config, options, listener, source, embedding, fetch, as_json=as_json).run())


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet listening. Raises :class:`ConfigurationError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"the host {host!r} is not an address of this machine: {error}.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_bind_problem(host, port, error)) from error
    return listener


def _bind_problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use. Choose another with --port, or end the program that has it."
    if error.errno == errno.EACCES:
        return f"port {port} may not be used without special rights. Choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine. Use 127.0.0.1, or 0.0.0.0 for all interfaces."
    return f"cannot listen on {host}:{port}: {error.strerror or error}."


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us: we drain before it closes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    """What runs in the event loop."""

    def __init__(
        self,
        config: ServeConfig,
        options: RuntimeOptions,
        listener: socket.socket,
        source: Source,
        embedding: Source | None,
        fetch: Fetch,
        *,
        as_json: bool,
    ) -> None:
        self._config = config
        self._listener = listener
        self._source = source
        self._as_json = as_json
        engine = config.engine
        if config.replicas > 1:  # one engine takes its share of what is free by itself
            engine = budget(engine, source.weights_bytes, config.replicas, free_memory(()))
        replicas = engine_clients(engine, options, config.replicas)
        names = (config.served_model_name, source.name)
        self._model = ServedModel(names, source.name, engine, *replicas)
        self._state = ServerState(config, self._model)
        self._state.loader = self._loader = ModelLoader(self._state, options, fetch)
        self._embedding: tuple[ServedModel, Source] | None = None
        engine_of_vectors = config.embedding_engine
        if engine_of_vectors is not None and embedding is not None:
            clients = engine_clients(engine_of_vectors, options, 1)
            self._embedding = (ServedModel((embedding.name,), embedding.name, engine_of_vectors, *clients), embedding)
            self._state.models.append(self._embedding[0])
        self._batches = BatchRunner(self._state)
        self._state.metrics.watch_batches(self._batches)
        self._signals = 0
        self._signal_came = asyncio.Event()

    async def run(self) -> None:
        self._catch_signals()
        http = _Uvicorn(
            uvicorn.Config(
                create_app(self._state),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                http=BoundedProtocol,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_CONNECTION_TIMEOUT,
                timeout_graceful_shutdown=CLOSE_TIMEOUT,
            )
        )
        serving = asyncio.create_task(http.serve(sockets=[self._listener]))
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._signal_came.wait())
        batches = asyncio.create_task(self._batches.run())
        responses = asyncio.create_task(self._state.responses.run())
        lag = asyncio.create_task(watch_lag(self._state.metrics.lag))
        try:
            await asyncio.wait({serving, starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises why the model cannot be served
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            if stopping.done():
                await self._drain()
        finally:
            starting.cancel()
            stopping.cancel()
            batches.cancel()
            responses.cancel()
            lag.cancel()
            for model in self._state.models:
                model.abort_all("the server is shutting down")
            http.should_exit = True
            http.force_exit = self._signals > 1
            await asyncio.gather(serving, starting, stopping, batches, responses, lag, return_exceptions=True)
            await self._loader.stop()
            await asyncio.gather(*(model.stop() for model in self._state.models))
            await self._state.responses.stop()
            await self._state.store.stop()
            if self._state.tracing is not None:
                await self._state.tracing.stop()
            self._state.executor.shutdown(wait=False, cancel_futures=True)
            self._state.checks.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        """Wait for tokenizer and engine, then say where the server is."""
        await self._state.store.start()
        if self._embedding is not None:
            self._embedding[0].start_soon()
        info = await self._start_model(self._model, self._source)
        for name, folder in self._config.adapters.items():
            await self._loader.load_adapter(self._model, name, folder)
        embedding = None if self._embedding is None else await self._start_model(*self._embedding)
        self._load_others()
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        replicas = len(self._model.replicas)
        kv = f"{info.kv_cache_bytes / 2**30:.2f} GiB for {info.kv_cache_tokens} tokens"
        lines = [
            f"DeepSeek V2.1 at http://{shown}:{port}/v1",
            f"  model     {info.model} ({info.architecture}, {info.dtype}), served as {self._model.name}",
            f"  context   {info.max_context} tokens per request",
            f"  KV cache  {kv}" + (f", in each of {replicas} replicas" if replicas > 1 else ""),
            f"  API keys  {len(self._config.api_keys) or 'none: everybody who reaches this address may use it'}",
            f"  loaded in {info.load_seconds:.1f} s",
        ]
        if self._config.adapters:
            lines.insert(2, f"  adapters  {', '.join(self._config.adapters)}")
        if embedding is not None:
            lines.insert(2, f"  vectors   {embedding.model} ({embedding.architecture}, {embedding.dtype})")
        if self._as_json:
            facts = msgspec.to_builtins(info) | {
                "model": self._model.name,
                "real_name": info.model,
                "replicas": replicas,
            }
            logger.info("DeepSeek V2.1 at http://%s:%d/v1 is ready", shown, port, extra={"fields": facts})
        else:
            print("\n".join(lines), flush=True)

    async def _start_model(self, model: ServedModel, source: Source) -> EngineInfo:
        try:
            return await model.start(source.load_tokenizer, self._state.executor)
        except EngineStartError as error:
            raise EngineStartError(f"the model {model.config.model!r} cannot be served: {error}") from error

    def _load_others(self) -> None:
        """Begin to load the further models. What cannot be loaded is in the log and among the models."""
        own = self._config.engine
        for name, model in self._config.also.items():
            engine = EngineConfig(model=model, device=own.device, offline=own.offline, threads=own.threads)
            try:
                self._loader.begin(Place(name, model), name, engine)
            except DeepSeekError as error:
                logger.error("the model %s cannot be served: %s", name, error)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        self._signal_came.set()

    async def _drain(self) -> None:
        """Refuse new requests, and wait for the running ones until they end, time is up or a second signal comes."""
        admission = self._state.admission
        admission.draining = True
        self._batches.drain()
        if admission.in_use:
            logger.warning(
                "shutting down: %d answers have up to %g s to finish (a second signal ends them at once)",
                admission.in_use,
                self._config.drain_timeout,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout):
                while (admission.in_use or self._batches.in_flight) and self._signals < 2:
                    await asyncio.sleep(0.05)
