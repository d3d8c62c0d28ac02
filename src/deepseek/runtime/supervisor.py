"""Keeps one engine process alive: start it, listen to it, notice that it died or hangs, start it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import psutil
import zmq
import zmq.asyncio

from deepseek.config import EngineConfig
from deepseek.engine.events import EngineInfo, EngineStats
from deepseek.errors import EngineStartError
from deepseek.runtime.log_pipe import LogPipe
from deepseek.runtime.messages import Events, FromEngine, Loading, Ping, Pong, Ready, Shutdown, StartFailed, ToEngine
from deepseek.runtime.worker import DEFAULT_FACTORY, SPEC_VARIABLE, WorkerSpec

logger = logging.getLogger("deepseek.runtime")

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]
MAX_SOCKET_PATH = 100  # bytes; the kernel's sun_path holds 108


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine process is watched. Times in seconds.

    Attributes:
        ping_interval: time between two signs of life asked for.
        stale_after: no progress for this long: not ready, but perhaps only slow.
        hang_timeout: no progress for this long: the process is killed and replaced.
        stopped_timeout: the same for a process that somebody has stopped (SIGSTOP), which is not ready at once.
        start_timeout: a process that has not loaded after this long is killed.
        max_failures: this many ends in a row, without a token served between them: no further start.
        healthy_after: a process that was ready this long ends a row of failures.
        first_backoff: pause after the second end in a row (none after the first); doubles up to ``max_backoff``.
        max_backoff: longest pause between two starts.
        stop_timeout: time an engine gets to end by itself.
        stream_buffer: events one request may leave unread before it is cancelled.
        engine_factory: ``module:function`` that builds the engine in its process.
        environment: variables added to the engine process's environment.
        cpus: processors that it may use; None for all that this process may.
        log_level: of the engine process.
    """

    ping_interval: float = 2.0
    stale_after: float = 15.0
    hang_timeout: float = 120.0
    stopped_timeout: float = 10.0
    start_timeout: float = 900.0
    max_failures: int = 5
    healthy_after: float = 60.0
    first_backoff: float = 0.5
    max_backoff: float = 10.0
    stop_timeout: float = 5.0
    stream_buffer: int = 8192
    engine_factory: str = DEFAULT_FACTORY
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: tuple[int, ...] | None = None
    log_level: str = "INFO"


class RestartPolicy:
    """Counts ends in a row and says how long to wait before the next start."""

    def __init__(self, options: RuntimeOptions) -> None:
        self._options = options
        self.failures = 0

    def after_end(self, *, served: bool, ready_seconds: float) -> float | None:
        """Seconds to wait before the next start, or None to give up."""
        if served or ready_seconds >= self._options.healthy_after:
            self.failures = 0
        self.failures += 1
        if self.failures >= self._options.max_failures:
            return None
        if self.failures == 1:
            return 0.0
        return min(self._options.first_backoff * 2.0 ** (self.failures - 2), self._options.max_backoff)


class EngineProcess:
    """One engine process and the socket to it. A new process gets a new socket, so no message outlives its process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        context: zmq.asyncio.Context,
        socket: zmq.asyncio.Socket,
        folder: Path,
        log: LogPipe,
    ) -> None:
        self._process = process
        self._context = context
        self._socket = socket
        self._folder = folder
        self._log = log
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    @classmethod
    async def spawn(cls, config: EngineConfig, options: RuntimeOptions) -> EngineProcess:
        """Start a process. Raises :class:`EngineStartError` if the system refuses."""
        folder = Path(tempfile.mkdtemp(prefix="deepseek-"))  # mode 0700: only this user reaches the socket
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PAIR)
        log = LogPipe(config.model)
        try:
            path = folder / "engine.sock"
            if len(os.fsencode(path)) > MAX_SOCKET_PATH:
                raise EngineStartError(f"the temporary folder's path is too long for a socket: {path}. Set TMPDIR.")
            for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
                socket.setsockopt(option, 0)
            socket.bind(f"ipc://{path}")
            spec = WorkerSpec(
                endpoint=f"ipc://{path}",
                parent_pid=os.getpid(),
                config=config,
                engine_factory=options.engine_factory,
                log_level=options.log_level,
                cpus=options.cpus,
            )
            environment = {**os.environ, **options.environment, SPEC_VARIABLE: msgspec.json.encode(spec).decode()}
            environment.pop("DEEPSEEK_API_KEY", None)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "deepseek.runtime.worker",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log.writer,
                stderr=log.writer,
                env=environment,
            )
        except (OSError, zmq.ZMQError, EngineStartError) as error:
            context.destroy(linger=0)
            await log.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise EngineStartError(f"the engine process could not be started: {error}") from error
        await log.listen(process.pid)
        return cls(process, context, socket, folder, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stopped(self) -> bool:
        """Whether somebody has stopped the process (SIGSTOP) and not let it go on."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:  # it has ended
            return False

    def send(self, message: ToEngine) -> None:
        """Queue a message; never blocks. To a process that has ended it is lost, as is the process's work."""
        if not self._socket.closed:
            self._socket.send(self._encoder.encode(message))

    async def receive(self) -> FromEngine:
        return self._decoder.decode(await self._socket.recv())

    async def wait(self) -> str:
        """Wait for the end of the process and describe it."""
        code = await self._process.wait()
        if code >= 0:
            return f"the engine process ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the engine process was ended by {name}{hint}"

    def hide_address(self) -> None:
        """Remove the socket's name once both ends are connected: nobody else can, and nothing is left behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Kill the process if it still runs, and free everything. Safe to call in a cancelled task."""
        if self._process.returncode is None:
            self.kill()
        self._context.destroy(linger=0)
        self.hide_address()
        await self._process.wait()
        await self._log.close()


class Supervisor:
    """Runs engine processes one after another and hands on what they say.

    Attributes:
        state: ``starting`` until the first process is ready, then ``ready`` or ``restarting``; ``failed`` when no
            further start is worth trying; ``stopped`` after :meth:`stop`.
        failure: why the state is ``restarting`` or ``failed``.
        info: what the engine is, once known.
        stats: the newest snapshot.
        restarts: processes that had to be replaced.
        loading: how far a process that loads is, in (tensors there, tensors in all); None before it says so.
    """

    def __init__(
        self,
        config: EngineConfig,
        options: RuntimeOptions,
        *,
        on_events: Callable[[Events], None],
        on_down: Callable[[str], None],
        on_ready: Callable[[EngineProcess], None],
        has_work: Callable[[], bool],
    ) -> None:
        self._on_ready = on_ready
        self._config = config
        self._options = options
        self._on_events = on_events
        self._on_down = on_down
        self._has_work = has_work
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.process: EngineProcess | None = None
        self.state: EngineState = "starting"
        self.failure: str | None = None
        self.info: EngineInfo | None = None
        self.stats: EngineStats | None = None
        self.restarts = 0
        self.loading: tuple[int, int] | None = None
        self._ready_at: float | None = None
        self._served = False
        self._quiet = 0.0  # seconds of our own time without progress of the engine
        self._steps = -1

    def start(self) -> None:
        """Begin in the background; must be called in a running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="engine-supervisor")

    async def stop(self) -> None:
        """End the engine process, by itself if it does so in time."""
        process = self.process
        listens = self.state == "ready"  # one that still loads does not, and has nothing to lose
        self._set_state("stopped")
        if process is not None and listens:
            process.send(Shutdown())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.stop_timeout):
                    await process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait_changed(self) -> None:
        """Return when :attr:`state` changes next."""
        await self._changed.wait()

    @property
    def responsive(self) -> bool:
        """Whether the engine is ready and has made progress, or answered while idle, within ``stale_after``."""
        return self.state == "ready" and self._quiet < self._options.stale_after

    def _stopped(self) -> bool:
        return self.state == "stopped"

    def _set_state(self, state: EngineState) -> None:
        if self.state == "stopped":
            return
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        policy = RestartPolicy(self._options)
        try:
            while not self._stopped():
                reason, permanent = await self._run_process()
                if self._stopped():
                    return
                ready_seconds = time.monotonic() - self._ready_at if self._ready_at is not None else 0.0
                delay = policy.after_end(served=self._served, ready_seconds=ready_seconds)
                self.failure = reason
                if permanent or delay is None:
                    level = logging.DEBUG if self.info is None else logging.ERROR  # a first start fails to its caller
                    logger.log(level, "no further start of the engine: %s", reason)
                    self._set_state("failed")
                    self._on_down(reason)
                    return
                logger.error("%s; starting again in %.1f s", reason, delay)
                self._set_state("starting" if self.info is None else "restarting")
                self._on_down(reason)
                self.restarts += 1
                await asyncio.sleep(delay)
        except Exception as error:
            logger.exception("the supervisor failed")
            self.failure = f"the engine's supervisor failed: {type(error).__name__}"
            self._set_state("failed")
            self._on_down(self.failure)

    async def _run_process(self) -> tuple[str, bool]:
        """One process from start to end: (why it ended, whether starting again is pointless)."""
        self._ready_at, self._served, self._quiet, self._steps, self.loading = None, False, 0.0, -1, None
        try:
            process = await EngineProcess.spawn(self._config, self._options)
        except EngineStartError as error:
            return str(error), False
        self.process = process
        reader = asyncio.create_task(self._read(process))
        ended = asyncio.create_task(process.wait())
        watch = asyncio.create_task(self._watch(process))
        try:
            await asyncio.wait({reader, ended, watch}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not reader.done():
                await asyncio.wait({reader}, timeout=0.2)  # what it said before it ended
            if reader.done():
                return reader.result()
            return (watch if watch.done() else ended).result(), False
        finally:
            self.process = self.stats = None
            for task in (reader, ended, watch):
                task.cancel()
            await asyncio.gather(reader, ended, watch, return_exceptions=True)
            await process.close()

    async def _read(self, process: EngineProcess) -> tuple[str, bool]:
        """Hand on messages until one says that the engine is over."""
        while True:
            try:
                message = await process.receive()
            except msgspec.MsgspecError as error:
                return f"the engine sent a message that cannot be read ({error})", False
            if isinstance(message, Events):
                self._note_progress(message.stats)
                self._served = True
                self._on_events(message)
            elif isinstance(message, Pong):
                self._note_progress(message.stats)
            elif isinstance(message, Loading):
                self.loading = message.done, message.total
            elif isinstance(message, Ready):
                process.hide_address()
                self.info, self._ready_at, self._quiet, self.failure = message.info, time.monotonic(), 0.0, None
                process.send(Ping(0))  # its first figures, at once
                self._on_ready(process)
                self._set_state("ready")
            elif isinstance(message, StartFailed):
                return message.message, message.permanent
            await asyncio.sleep(0)  # recv of a waiting message does not yield; requests must get their turn

    def _note_progress(self, stats: EngineStats) -> None:
        if stats.steps != self._steps or not self._has_work():
            self._quiet = 0.0
        self._steps = stats.steps
        self.stats = stats

    async def _watch(self, process: EngineProcess) -> str:
        """Ask for signs of life; return when the process must be replaced, with the reason.

        Time is counted in ticks, and a tick counts twice its length at most: if this event loop itself was
        stopped, the engine is not blamed for it.
        """
        options = self._options
        loading, stopped, nonce, before = 0.0, 0.0, 0, time.monotonic()
        while True:
            await asyncio.sleep(options.ping_interval)
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * options.ping_interval), now
            if self._ready_at is None:
                loading += elapsed
                if loading >= options.start_timeout:
                    return f"the engine did not load within {options.start_timeout:g} s"
                continue
            self._quiet += elapsed
            stopped = stopped + elapsed if process.stopped else 0.0
            if stopped:
                self._quiet = max(self._quiet, options.stale_after)
            if stopped >= options.stopped_timeout:
                return f"the engine process was stopped by a signal, for {options.stopped_timeout:g} s"
            if self._quiet >= options.hang_timeout:
                return f"the engine made no progress for {options.hang_timeout:g} s"
            nonce += 1
            process.send(Ping(nonce))
