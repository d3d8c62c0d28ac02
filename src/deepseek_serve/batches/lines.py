"""The lines of a batch's input: reading them, and all that can be said against them before anything is computed."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pydantic
from msgspec import UNSET, UnsetType

from deepseek.errors import DeepSeekError
from deepseek_serve.batches.endpoints import Endpoint
from deepseek_serve.errors import api_error
from deepseek_serve.store.batches import BatchProblem

MAX_LINES = 50_000
MAX_CUSTOM_ID = 512  # characters
MAX_PROBLEMS = 100  # more of them help nobody
CHECK_STOP_EVERY = 100  # lines


class Line(msgspec.Struct, frozen=True):
    """One request. Fields of other names are ignored, as OpenAI ignores them."""

    custom_id: str | UnsetType = UNSET
    method: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    body: msgspec.Raw | UnsetType = UNSET


class _Named(msgspec.Struct):
    """What is read from a body before it is validated."""

    model: str
    stream: bool | None = None
    background: bool | None = None


class Scan(msgspec.Struct):
    """What validation found. The batch can run if there are no ``problems``."""

    total: int = 0
    model: str = ""
    problems: list[BatchProblem] = msgspec.field(default_factory=list)

    def blame(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        self.problems.append(BatchProblem(code, message, line, param))


class LineTooLongError(DeepSeekError):
    """A line longer than a request's body may be.

    Attributes:
        line: its number.
    """

    def __init__(self, line: int, limit: int) -> None:
        super().__init__(f"Line {line} is longer than {limit} bytes.")
        self.line = line


def read_lines(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes without the newline) of each line that is not blank; a byte order mark is skipped.

    Raises :class:`LineTooLongError`, having read no more than ``max_bytes`` of that line, and :class:`OSError`.
    """
    number = 0
    while raw := stream.readline(max_bytes + 2):
        number += 1
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        line = line.strip(b" \t\r\n")
        if len(line) > max_bytes or (len(raw) == max_bytes + 2 and not raw.endswith(b"\n")):
            raise LineTooLongError(number, max_bytes)
        if line:
            yield number, line


def scan(
    path: Path,
    url: str,
    endpoint: Endpoint,
    check_model: Callable[[str], object],
    *,
    max_line_bytes: int,
    stopped: Callable[[], bool],
) -> Scan:
    """Validate a whole input. Blocks: to be run in a thread. Raises :class:`OSError`.

    Args:
        check_model: raises :class:`ApiError` for a model that is not here.
        stopped: asked now and then; True ends the scan early.
    """
    found = Scan()
    seen: set[str] = set()
    with path.open("rb") as stream:
        try:
            for number, raw in read_lines(stream, max_line_bytes):
                found.total += 1
                if found.total > MAX_LINES:
                    found.blame("too_many_requests", f"The file has more than {MAX_LINES} requests.", number)
                    break
                _check(number, raw, url, endpoint, check_model, seen, found)
                if len(found.problems) >= MAX_PROBLEMS or (found.total % CHECK_STOP_EVERY == 0 and stopped()):
                    break
        except LineTooLongError as error:
            found.blame("line_too_long", str(error), error.line)
    if not found.total and not found.problems:
        found.blame("empty_file", "The file has no requests.")
    return found


def parse(raw: bytes) -> Line:
    """The request in a line. Raises ``ValueError`` with the reason."""
    try:
        raw.decode()
        return msgspec.json.decode(raw, type=Line)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start + 1})") from None
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except msgspec.DecodeError as error:
        raise ValueError(f"it is not a JSON object: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check(
    number: int,
    raw: bytes,
    url: str,
    endpoint: Endpoint,
    check_model: Callable[[str], object],
    seen: set[str],
    found: Scan,
) -> None:
    try:
        line = parse(raw)
    except ValueError as error:
        found.blame("invalid_json_line", f"This line is not a request: {error}.", number)
        return
    if not line.custom_id or not line.method or not line.url or not line.body:
        missing = next(name for name in Line.__struct_fields__ if not getattr(line, name))
        found.blame("missing_required_parameter", f"Missing required parameter: '{missing}'.", number, missing)
        return
    if len(line.custom_id) > MAX_CUSTOM_ID:
        found.blame("invalid_value", f"'custom_id' is longer than {MAX_CUSTOM_ID} characters.", number, "custom_id")
        return
    if line.custom_id in seen:
        found.blame("duplicate_custom_id", f"The custom_id {line.custom_id!r} was used before.", number, "custom_id")
    seen.add(line.custom_id)
    if line.method != "POST":
        found.blame("invalid_method", f"The method is {line.method[:20]!r}; only 'POST' is possible.", number, "method")
    if line.url != url:
        found.blame("mismatched_url", f"The url is {line.url[:100]!r}, and the batch's {url!r}.", number, "url")
        return
    _check_body(number, bytes(line.body), endpoint, check_model, found)


def _check_body(
    number: int, body: bytes, endpoint: Endpoint, check_model: Callable[[str], object], found: Scan
) -> None:
    try:
        named: Any = msgspec.json.decode(body, type=_Named)
        if named.stream:
            found.blame("invalid_value", "A batch cannot stream: leave 'stream' out.", number, "body.stream")
            return
        if named.background:
            found.blame(
                "invalid_value", "A batch is in the background: leave 'background' out.", number, "body.background"
            )
            return
        if found.model and named.model != found.model:
            message = f"All requests of a batch are for one model: {named.model[:100]!r} is not {found.model!r}."
            found.blame("mismatched_model", message, number, "body.model")
            return
        check_model(named.model)
        found.model = named.model
        endpoint.body.model_validate_json(body)
    except msgspec.ValidationError:
        found.blame("missing_required_parameter", "The body must be an object with a 'model'.", number, "body.model")
    except (DeepSeekError, pydantic.ValidationError) as error:
        told = api_error(error).body
        where = f"body.{told.param}" if told.param else "body"
        found.blame(told.code or "invalid_value", told.message, number, where)
    except (msgspec.DecodeError, RecursionError):
        found.blame("invalid_json_line", "The body is not JSON, or nested too deeply.", number, "body")
