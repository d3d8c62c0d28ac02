"""One record per line, as JSON or as text. What a client sends can neither end a line nor begin one."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from deepseek_serve.observability.record import RequestRecord

LogFormat = Literal["auto", "json", "text"]
FORMATS: tuple[LogFormat, ...] = ("auto", "json", "text")
PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
MAX_PATH = 200  # characters
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
BARE = re.compile(r"[\w./:+@%,-]+")

access_logger = logging.getLogger("deepseek.access")


def set_up(level: str, wanted: LogFormat, stream: TextIO | None = None) -> bool:
    """Send what is logged to ``stream``, by default standard error. Returns whether it is JSON.

    ``auto`` is text on a terminal, and JSON where a program reads.
    """
    stream = stream or sys.stderr
    as_json = wanted == "json" or (wanted == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    return as_json


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``, the record's own fields, and ``exception`` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if (trace := _exception(self, record)) is not None:
            line["exception"] = trace
        try:
            encoded = msgspec.json.encode(line)
        except UnicodeEncodeError:  # a lone surrogate, which has no UTF-8
            encoded = msgspec.json.encode({name: _plain(value) for name, value in line.items()})
        return encoded.decode()


class TextFormatter(logging.Formatter):
    """A line to read; the lines of an exception follow it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in getattr(record, "fields", {}).items())
        text = f"{_time(record)} {record.levelname} {record.name}: {_visible(record.getMessage())}{fields}"
        if (trace := _exception(self, record)) is not None:
            text += "".join(f"\n    {_visible(line)}" for line in trace.split("\n"))
        return _encodable(text)


def log_access(record: RequestRecord, trace_id: str | None = None) -> None:
    """The line of a request that has ended. Probes that went well are worth one at level debug only."""
    level = logging.DEBUG if record.route in PROBES and record.status < 400 else logging.INFO
    if access_logger.isEnabledFor(level):
        fields = access_fields(record)
        if trace_id is not None:
            fields["trace_id"] = trace_id
        access_logger.log(level, "%s %s", record.method, record.status, extra={"fields": fields})


def access_fields(record: RequestRecord) -> dict[str, Any]:
    """What the line of a request says; what is not known is left out."""
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "path": record.path[:MAX_PATH],
        "status": record.status,
        "duration_s": round(record.ended - record.started, 6),
        "cancelled": record.cancelled,
    }
    if record.key:
        fields["key"] = record.key
    if record.error_code:
        fields["error"] = record.error_code
    if record.model:
        fields |= {
            "model": record.model,
            "response_id": record.response_id,
            "stream": record.stream,
            "choices": record.choices,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "finish_reason": ",".join(record.finish_reasons) or None,
            "queue_s": _seconds(record.queue_time),
            "time_to_first_token_s": _seconds(record.time_to_first_token),
        }
    return fields


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return record.exc_text


def _visible(text: str) -> str:
    """With control characters, and those that turn the direction of text, written as escapes."""
    return CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else "-" if value is None else str(value)
    text = _visible(text)
    return text if BARE.fullmatch(text) else msgspec.json.encode(_encodable(text)).decode()


def _encodable(text: str) -> str:
    """Without lone surrogates, which have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    return _encodable(value) if isinstance(value, str) else value
