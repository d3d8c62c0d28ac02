"""Renders one chat template, in a process of its own that the kernel ends when a rendering takes too long.

A template comes with a model, so it is untrusted. Inside a process nothing can stop a multiplication of huge numbers
or a string method that allocates gigabytes; a process of its own has a memory limit, and a CPU timer whose signal ends
it even in the middle of such a call. The parent reads the end of the pipe as the verdict.

Run as a script by ``chat_template.py``; imports nothing of the package. Frames on stdin and stdout are a little-endian
32-bit length and that many bytes of JSON. The first frame is the template and the limits, then each is a context.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import struct
import sys
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.parser import Parser

_LENGTH = struct.Struct("<I")


class TemplateRaisedError(Exception):
    """The template called ``raise_exception``."""


class OutputTooLongError(Exception):
    """The template wrote more than it may."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks an assistant's own words for training; when rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRaisedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: characters as they are, no HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _render(template: jinja2.Template, context: dict[str, Any], max_output: int) -> str:
    pieces = []
    length = 0
    for piece in template.generate(context):
        length += len(piece)
        if length > max_output:
            raise OutputTooLongError
        pieces.append(piece)
    return "".join(pieces)


def _line_of(error: BaseException) -> int | None:
    """The template line an error came from: jinja2 maps its frames to the template's lines."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _answer(template: jinja2.Template, context: dict[str, Any], max_output: int) -> dict[str, Any]:
    try:
        text = _render(template, context, max_output)
        text.encode()  # a lone surrogate cannot be sent back, nor tokenized
        return {"text": text}
    except TemplateRaisedError as error:
        return {"kind": "raised", "message": str(error)}
    except OutputTooLongError:
        return {"kind": "output", "message": f"it wrote more than {max_output} characters"}
    except MemoryError:
        return {"kind": "memory", "message": "it needs too much memory"}
    except RecursionError:
        return {"kind": "failed", "message": "its macros call each other without end"}
    except Exception as error:  # noqa: BLE001 (a template can raise anything; all of it is reported)
        return {"kind": "failed", "message": f"{type(error).__name__}: {error}"[:2000], "line": _line_of(error)}


def _read(stream: BinaryIO) -> Any:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:  # the parent is gone
        sys.exit(0)
    return json.loads(stream.read(_LENGTH.unpack(header)[0]))


def _write(stream: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = _read(source)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError):  # macOS knows the limit but may not set it; the timer remains
        resource.setrlimit(resource.RLIMIT_AS, (setup["max_memory"], hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds, max_output = setup["cpu_seconds"], setup["max_output"]
    template: jinja2.Template | None = None
    broken: dict[str, Any] = {}
    while True:
        context = _read(source)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF's default action ends the process
        if template is None and not broken:
            try:
                template = _compile(setup["template"])
            except Exception as error:  # noqa: BLE001 (jinja2 lets errors of its code generator through)
                broken = {"kind": "malformed", "message": str(error) or type(error).__name__, "line": _line_of(error)}
        answer = broken if template is None else _answer(template, context, max_output)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sink, answer)


if __name__ == "__main__":
    main()
