"""The engine process: ``python -m deepseek.runtime.worker``, started by :mod:`deepseek.runtime.supervisor`.

It loads one engine, then repeats: take what the client sent, make one step, send the step's events. It ignores
SIGINT and SIGTERM, because a terminal and service managers send them to the whole group while the API process is
still draining; it ends on :class:`Shutdown`, on SIGKILL, and when its parent ends.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import zmq

from deepseek.config import EngineConfig
from deepseek.engine.events import (
    INVALID_ADAPTER,
    AdapterEvent,
    AdapterInfo,
    EngineEvent,
    EngineInfo,
    EngineRequest,
    EngineStats,
    TokenEvent,
)
from deepseek.errors import AdapterError, DeepSeekError, DownloadError, EngineError, InvalidRequestError
from deepseek.runtime.log_pipe import log_to_parent
from deepseek.runtime.messages import (
    Cancel,
    Events,
    FromEngine,
    LoadAdapter,
    Loading,
    Ping,
    Pong,
    Ready,
    Shutdown,
    StartFailed,
    ToEngine,
    UnloadAdapter,
)
from deepseek.threads import wait_politely

logger = logging.getLogger("deepseek.worker")

SPEC_VARIABLE = "DEEPSEEK_WORKER_SPEC"
DEFAULT_FACTORY = "deepseek.engine.load:load_engine"
SEND_QUEUE = 1000  # steps the API process may be behind before the engine waits for it
IDLE_POLL_MS = 1000  # an idle engine looks this often whether its parent still lives
PR_SET_PDEATHSIG = 1


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an engine process.

    Attributes:
        endpoint: ZeroMQ address that the client has bound.
        parent_pid: the process without which the engine must not live.
        config: settings of the engine.
        engine_factory: ``module:function``; called with ``config`` and a function that takes (tensors loaded, tensors
            in all), returns an object with ``engine`` and ``info``.
        log_level: level of the process's log on standard error.
        cpus: processors that it may use, None for all of its parent's.
    """

    endpoint: str
    parent_pid: int
    config: EngineConfig
    engine_factory: str = DEFAULT_FACTORY
    log_level: str = "INFO"
    cpus: tuple[int, ...] | None = None


class EngineLike(Protocol):
    """What the worker needs of an engine."""

    @property
    def has_work(self) -> bool: ...
    def add(self, request: EngineRequest) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def load_adapter(self, name: str, folder: str) -> AdapterInfo: ...
    def unload_adapter(self, name: str) -> None: ...
    def step(self) -> list[EngineEvent]: ...
    def stats(self) -> EngineStats: ...


class ParentGoneError(Exception):
    """The API process ended; the engine process must end too."""


@dataclass(frozen=True)
class Unreadable:
    """A message that does not decode. It fails alone: the request it names, if any, gets its terminal event."""

    request_id: str | None
    reason: str


class Channel:
    """The worker's end of the socket pair."""

    def __init__(self, socket: zmq.Socket[bytes], parent_pid: int) -> None:
        self._socket = socket
        self._parent_pid = parent_pid
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def check_parent(self) -> None:
        if os.getppid() != self._parent_pid:
            raise ParentGoneError

    def send(self, message: FromEngine) -> None:
        """Send, waiting while the client is :data:`SEND_QUEUE` messages behind: a bound, never a loss."""
        data = self._encoder.encode(message)
        while True:
            try:
                self._socket.send(data)
            except zmq.Again:
                self.check_parent()
            else:
                return

    def receive(self, *, wait: bool) -> ToEngine | Unreadable | None:
        """The next message, or None if there is none (after :data:`IDLE_POLL_MS` if ``wait``)."""
        if wait and not self._socket.poll(IDLE_POLL_MS):
            self.check_parent()
            return None
        try:
            data = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            return Unreadable(_request_id_of(data), str(error))


def _request_id_of(data: bytes) -> str | None:
    try:
        raw = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError:
        return None
    request_id = raw.get("request_id") if isinstance(raw, dict) else None
    return request_id if isinstance(request_id, str) else None


class Worker:
    """The loop around one engine."""

    def __init__(self, engine: EngineLike, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._live: set[str] = set()
        self._early: list[EngineEvent] = []  # refusals by add(), sent before the next step

    def run(self) -> None:
        """Serve until :class:`Shutdown`. An exception that escapes ``engine.step`` escapes from here."""
        while self._drain():
            if self._early:
                self._emit(self._early)
                self._early = []
            if self._engine.has_work:
                self._emit(self._engine.step())
        ended: list[EngineEvent] = [TokenEvent(request_id, finish_reason="cancelled") for request_id in self._live]
        if ended:
            self._emit(ended)

    def _drain(self) -> bool:
        """Handle all messages that have arrived; sleep on the socket if there is nothing else to do."""
        wait = not self._engine.has_work
        while (message := self._channel.receive(wait=wait)) is not None:
            if isinstance(message, Shutdown):
                return False
            self._handle(message)
            wait = False
        return True

    def _handle(self, message: ToEngine | Unreadable) -> None:
        if isinstance(message, EngineRequest):
            self._live.add(message.request_id)
            try:
                self._engine.add(message)
            except InvalidRequestError as error:
                self._refuse(message.request_id, str(error), error.code or "invalid_request")
        elif isinstance(message, Cancel):
            self._engine.cancel(message.request_id)
        elif isinstance(message, LoadAdapter | UnloadAdapter):
            self._change_adapters(message)
        elif isinstance(message, Ping):
            self._channel.send(Pong(message.nonce, self._engine.stats()))
        elif isinstance(message, Unreadable):
            logger.error("message refused: %s", message.reason)
            if message.request_id is not None:
                self._refuse(message.request_id, message.reason, "invalid_request")

    def _change_adapters(self, message: LoadAdapter | UnloadAdapter) -> None:
        info: AdapterInfo | None = None
        try:
            if isinstance(message, LoadAdapter):
                info = self._engine.load_adapter(message.name, message.folder)
                logger.info("loaded the adapter %s in %.2f s", message.name, info.load_seconds)
            else:
                self._engine.unload_adapter(message.name)
                logger.info("unloaded the adapter %s", message.name)
        except AdapterError as error:
            logger.warning("the adapter %s cannot be served: %s", message.name, error)
            self._refuse(message.request_id, str(error), INVALID_ADAPTER)
        except InvalidRequestError as error:
            self._refuse(message.request_id, str(error), error.code or "invalid_request")
        else:
            self._early.append(AdapterEvent(message.request_id, info))

    def _refuse(self, request_id: str, reason: str, code: str) -> None:
        self._early.append(TokenEvent(request_id, finish_reason="error", error=reason, error_code=code))

    def _emit(self, events: list[EngineEvent]) -> None:
        if not events:
            return
        for event in events:
            if not isinstance(event, TokenEvent) or event.finish_reason is not None:
                self._live.discard(event.request_id)
        self._channel.send(Events(events, self._engine.stats()))


def main() -> int:
    """Entry of the engine process; its settings come from the environment as JSON."""
    text = os.environ.pop(SPEC_VARIABLE, None)
    if text is None:
        print("deepseek.runtime.worker is started by the server, not by hand.", file=sys.stderr)
        return 2
    spec = msgspec.json.decode(text, type=WorkerSpec)
    log_to_parent(spec.log_level)
    _tie_to_parent(spec.parent_pid)
    if spec.cpus is not None:
        os.sched_setaffinity(0, spec.cpus)  # before any library starts threads, which inherit it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with zmq.Context(1) as context, context.socket(zmq.PAIR) as socket:
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.SNDTIMEO, IDLE_POLL_MS)
        socket.setsockopt(zmq.LINGER, 2000)
        socket.connect(spec.endpoint)
        channel = Channel(socket, spec.parent_pid)
        loaded = _load(spec, channel)
        if loaded is None:
            return 1
        engine, info = loaded
        try:
            channel.send(Ready(info, os.getpid()))
            Worker(engine, channel).run()
        except ParentGoneError:
            logger.error("the server process ended; the engine ends too")
            return 1
        except Exception:
            logger.exception("the engine failed")
            return 1
    return 0


def _load(spec: WorkerSpec, channel: Channel) -> tuple[EngineLike, EngineInfo] | None:
    """Build the engine, or tell the client why not and return None."""
    wait_politely()
    told = -1

    def report(done: int, total: int) -> None:
        nonlocal told
        if (percent := 100 * done // max(total, 1)) != told:
            told = percent
            channel.send(Loading(done, total))

    module_name, _, function_name = spec.engine_factory.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module_name), function_name)
        loaded = factory(spec.config, report)
    except DeepSeekError as error:
        permanent = not isinstance(error, DownloadError | EngineError)
        channel.send(StartFailed(str(error), permanent))
        return None
    except Exception as error:
        logger.exception("the engine could not start")
        channel.send(StartFailed(f"{type(error).__name__}: {error}", permanent=False))
        return None
    return loaded.engine, loaded.info


def _tie_to_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux); elsewhere the idle poll notices."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the call above
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
