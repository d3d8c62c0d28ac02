"""The engine process's log: lines of JSON in a pipe, which the API process enters into its own log.

So there is one stream, one format, and every line says of which process it is. What libraries print, and what the
interpreter or the kernels say when they crash, goes the same way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import msgspec

MAX_LINE = 64 << 10  # bytes; a longer line is cut into several
LAST_WORDS = 0.2  # seconds in which a dead process's last lines are read; its children may hold the pipe open


class LogLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the engine process. ``time`` is in seconds since 1970."""

    time: float
    level: int
    logger: str
    message: str
    exception: str | None = None


_decoder = msgspec.json.Decoder(LogLine)


class _Formatter(logging.Formatter):
    """One line of JSON per record."""

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else None
        line = LogLine(record.created, record.levelno, record.name, _encodable(record.getMessage()), trace)
        return msgspec.json.encode(line).decode()


def log_to_parent(level: str) -> None:
    """Called in the engine process: everything that is logged goes to standard error, as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class LogPipe(asyncio.Protocol):
    """The API process's end. Give ``writer`` to one process, then :meth:`listen`.

    Args:
        model: what the process serves.
    """

    def __init__(self, model: str) -> None:
        self._reader, self.writer = os.pipe()
        self._about: dict[str, object] = {"model": model}
        self._rest = b""
        self._closed = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    async def listen(self, pid: int) -> None:
        """Begin to read; ``pid`` is the process that has got the writer."""
        self._about["pid"] = pid
        self._close_writer()
        pipe = os.fdopen(self._reader, "rb", 0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)

    async def close(self) -> None:
        """Read what is left of a process that has ended, and free everything."""
        self._close_writer()
        if self._transport is None:
            os.close(self._reader)
            return
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._closed.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.close()

    def _close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._enter(line)
        while len(self._rest) > MAX_LINE:
            self._enter(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(self._rest)
        self._rest = b""
        self._closed.set()

    def _enter(self, data: bytes) -> None:
        if not data.strip():
            return
        try:
            line = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = data.decode("utf-8", "backslashreplace").rstrip("\r")
            line = LogLine(0.0, logging.WARNING, "deepseek.engine.output", text)
        logger = logging.getLogger(line.logger)
        record = logger.makeRecord(
            line.logger, line.level, "", 0, line.message, (), None, extra={"fields": self._about}
        )
        record.exc_text = line.exception
        if line.time:
            record.created = line.time
        logger.handle(record)


def _encodable(text: str) -> str:
    """Without lone surrogates, which have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
