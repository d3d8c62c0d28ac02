"""The API process's side of the engine: requests go in, each comes back as one asynchronous stream of events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from uuid import uuid4

from deepseek.config import EngineConfig
from deepseek.engine.events import (
    INVALID_ADAPTER,
    INVALID_CONSTRAINT,
    AdapterEvent,
    AdapterInfo,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)
from deepseek.errors import (
    AdapterError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    EngineStartError,
    InvalidRequestError,
)
from deepseek.runtime.messages import Cancel, Events, LoadAdapter, UnloadAdapter
from deepseek.runtime.supervisor import EngineProcess, EngineState, RuntimeOptions, Supervisor

RETRY_WHILE_STARTING = 2.0  # seconds


class _Stream:
    """The unread events of one request; one reader."""

    __slots__ = ("_events", "_waiter")

    def __init__(self) -> None:
        self._events: deque[EngineEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def push(self, event: EngineEvent) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def replace(self, event: EngineEvent) -> None:
        """Drop what is unread and end with ``event``."""
        self._events.clear()
        self.push(event)

    async def next(self) -> EngineEvent:
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()


class EngineClient:
    """One engine in a process of its own, restarted when it dies or hangs.

    All methods belong to the event loop in which :meth:`start` or :meth:`start_soon` was called.

    Attributes:
        config: settings of the engine.
    """

    def __init__(self, config: EngineConfig, options: RuntimeOptions | None = None) -> None:
        self.config = config
        self._options = options or RuntimeOptions()
        self._streams: dict[str, _Stream] = {}
        self._adapters: dict[str, str] = {}  # name -> folder, of those that a new process is to load
        self._supervisor = Supervisor(
            config,
            self._options,
            on_events=self._route,
            on_down=self._fail_all,
            on_ready=self._load_adapters,
            has_work=lambda: bool(self._streams),
        )

    # -- life ---------------------------------------------------------------------------------------------------

    def start_soon(self) -> None:
        """Start the engine process in the background; :attr:`state` tells how it goes."""
        self._supervisor.start()

    async def start(self) -> EngineInfo:
        """Start the engine process and wait until it is ready.

        Raises :class:`EngineStartError` with the process's own reason if it cannot be made ready.
        """
        self.start_soon()
        return await self.wait_ready()

    async def wait_ready(self) -> EngineInfo:
        """Wait until the engine is ready. Raises :class:`EngineStartError` when that will not happen."""
        while True:
            supervisor = self._supervisor
            if supervisor.state == "ready" and supervisor.info is not None:
                return supervisor.info
            if supervisor.state in ("failed", "stopped"):
                raise EngineStartError(supervisor.failure or "the engine was stopped")
            await supervisor.wait_changed()

    async def stop(self) -> None:
        """Fail what still runs and end the engine process."""
        self.abort_all("the server is shutting down", code="shutting_down")
        await self._supervisor.stop()

    # -- what it is doing ---------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        return self._supervisor.state

    @property
    def failure(self) -> str | None:
        """Why the state is ``restarting`` or ``failed``."""
        return self._supervisor.failure

    @property
    def responsive(self) -> bool:
        """Ready, and a sign of progress (or, while idle, of life) has come recently."""
        return self._supervisor.responsive

    @property
    def info(self) -> EngineInfo | None:
        return self._supervisor.info

    @property
    def stats(self) -> EngineStats | None:
        """The newest snapshot: of the last step, or while idle of the last answered ping."""
        return self._supervisor.stats

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def loading(self) -> tuple[int, int] | None:
        """How far a process that loads is: (tensors there, tensors in all); None if it has not said so."""
        return self._supervisor.loading

    @property
    def pending(self) -> int:
        """Requests sent to the engine and not yet ended."""
        return len(self._streams)

    @property
    def pid(self) -> int | None:
        """Process id of the engine while there is one."""
        return self._supervisor.process.pid if self._supervisor.process is not None else None

    def check_ready(self) -> None:
        """Raise :class:`EngineOverloadedError` while the engine starts, :class:`EngineDeadError` if it will not."""
        state = self._supervisor.state
        if state in ("starting", "restarting"):
            raise EngineOverloadedError(
                f"The engine is {state}. Send the request again in a few seconds.", retry_after=RETRY_WHILE_STARTING
            )
        if state != "ready":
            raise EngineDeadError(f"The engine is not running: {self._supervisor.failure or state}.")

    # -- requests -----------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Stream one request's events; the last one, and only it, has a ``finish_reason``.

        Closing the generator earlier cancels the request in the engine. A failure of the engine is a terminal
        event with ``error``. Raises as :meth:`check_ready` if the engine is not ready at the first step.
        """
        stream = self._open(request)
        try:
            while True:
                event = await stream.next()
                assert isinstance(event, TokenEvent)
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._close(request.request_id, stream)

    async def score(self, request: ScoreRequest) -> ScoreEvent:
        """Log-likelihoods of ``request.tokens[start:]``.

        Raises :class:`InvalidRequestError`, :class:`EngineDeadError` or :class:`EngineError` if the engine refused
        or failed. Cancelling the task cancels the request.
        """
        event = await self._one(request)
        assert isinstance(event, ScoreEvent)
        return event

    async def embed(self, request: EmbedRequest) -> EmbedEvent:
        """The vector of ``request.tokens``. Errors and cancelling as in :meth:`score`."""
        event = await self._one(request)
        assert isinstance(event, EmbedEvent)
        return event

    async def load_adapter(self, name: str, folder: str) -> AdapterInfo:
        """Serve the adapter in ``folder`` as ``name``, in the place of one of that name; a process that is started
        later loads it too.

        Raises AdapterError with everything that is wrong with it, InvalidRequestError for one too many,
        :class:`EngineDeadError` and :class:`EngineError`.
        """
        event = await self._one(LoadAdapter(f"adapter-{uuid4().hex}", name, folder))
        assert isinstance(event, AdapterEvent) and event.info is not None
        self._adapters[name] = folder
        return event.info

    async def unload_adapter(self, name: str) -> None:
        """Serve it no more; requests that use it go on. Raises as :meth:`load_adapter`."""
        self._adapters.pop(name, None)
        await self._one(UnloadAdapter(f"adapter-{uuid4().hex}", name))

    def _load_adapters(self, process: EngineProcess) -> None:
        """Have a new process load what the one before it had; what fails is in its log."""
        for name, folder in self._adapters.items():
            process.send(LoadAdapter(f"adapter-{uuid4().hex}", name, folder))

    def abort_all(self, reason: str, *, code: str) -> None:
        """End every request with an error event and cancel it in the engine."""
        process = self._supervisor.process
        if process is not None:
            for request_id in self._streams:
                process.send(Cancel(request_id))
        self._end_all(reason, code)

    async def _one(self, request: EngineRequest | LoadAdapter | UnloadAdapter) -> EngineEvent:
        """The only event of a request. Raises what it stands for if it is an error."""
        stream = self._open(request)
        try:
            event = await stream.next()
        finally:
            self._close(request.request_id, stream)
        if isinstance(event, TokenEvent):
            raise error_of(event)
        return event

    def _open(self, request: EngineRequest | LoadAdapter | UnloadAdapter) -> _Stream:
        self.check_ready()
        if request.request_id in self._streams:
            raise InvalidRequestError(f"a request with the id {request.request_id!r} is already running")
        process = self._supervisor.process
        assert process is not None
        process.send(request)  # raises before anything is registered if the request cannot be encoded
        stream = self._streams[request.request_id] = _Stream()
        return stream

    def _close(self, request_id: str, stream: _Stream) -> None:
        """Forget a request whose reader is gone; the engine hears of it if it was still at work."""
        if self._streams.get(request_id) is not stream:
            return
        del self._streams[request_id]
        if self._supervisor.process is not None:
            self._supervisor.process.send(Cancel(request_id))

    def _route(self, message: Events) -> None:
        for event in message.events:
            stream = self._streams.get(event.request_id)
            if stream is None:  # cancelled meanwhile
                continue
            stream.push(event)
            if not isinstance(event, TokenEvent) or event.finish_reason is not None:
                del self._streams[event.request_id]
            elif len(stream) > self._options.stream_buffer:
                self._close(event.request_id, stream)
                stream.replace(_failure(event.request_id, "the answer was read too slowly", "slow_reader"))

    def _fail_all(self, reason: str) -> None:
        self._end_all(f"{reason}, and this request with it. Send it again.", "engine_dead")

    def _end_all(self, reason: str, code: str) -> None:
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            stream.push(_failure(request_id, reason, code))


def _failure(request_id: str, reason: str, code: str) -> TokenEvent:
    return TokenEvent(request_id, finish_reason="error", error=reason, error_code=code)


_REFUSALS = ("invalid_request", "context_length_exceeded", "adapter_not_found", "too_many_adapters")


def error_of(event: TokenEvent) -> EngineError | InvalidRequestError | AdapterError:
    """The exception that a terminal event with an error stands for."""
    message = event.error or f"the request ended: {event.finish_reason}"
    if event.error_code == "engine_dead":
        return EngineDeadError(message)
    if event.error_code == "shutting_down":
        return EngineOverloadedError(message)
    if event.error_code == INVALID_CONSTRAINT:
        return InvalidRequestError(message, param="response_format", code="invalid_value")
    if event.error_code == INVALID_ADAPTER:
        return AdapterError(message)
    if event.error_code in _REFUSALS:
        return InvalidRequestError(message, code=event.error_code)
    return EngineError(message)
