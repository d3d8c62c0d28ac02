"""A batch's input: everything that can be wrong with it, told with its line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_serve.batches import lines as lines_module
from deepseek_serve.batches.endpoints import ENDPOINTS
from deepseek_serve.batches.lines import LineTooLongError, Scan, read_lines, scan
from deepseek_serve.errors import ApiError
from tests.serve.conftest import MODEL, chat_body

URL = "/v1/chat/completions"


def line(name: str = "a", **changes: Any) -> bytes:
    whole: dict[str, Any] = {"custom_id": name, "method": "POST", "url": URL, "body": chat_body()} | changes
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def check_model(name: str) -> None:
    if name != MODEL:
        raise ApiError(404, f"The model {name!r} does not exist.", param="model", code="model_not_found")


def scanned(tmp_path: Path, data: bytes, *, most: int = 10_000, stopped: bool = False) -> Scan:
    path = tmp_path / "input"
    path.write_bytes(data)
    return scan(path, URL, ENDPOINTS[URL], check_model, max_line_bytes=most, stopped=lambda: stopped)


@pytest.mark.parametrize(
    "data",
    [
        line("a") + b"\n" + line("b") + b"\n",
        line("a") + b"\n" + line("b"),
        b"\xef\xbb\xbf" + line("a") + b"\r\n\r\n \t\n" + line("b") + b"\n\n\n",
        line("a", extra=1, another=None) + b"\n" + line("b"),
    ],
)
def test_well_formed(tmp_path: Path, data: bytes) -> None:
    assert scanned(tmp_path, data) == Scan(2, MODEL, [])


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"not json", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"null", "invalid_json_line", None),
        (b'"\xff"', "invalid_json_line", None),
        (line()[:-1] + b"\xff}", "invalid_json_line", None),
        (line(custom_id=7), "invalid_json_line", None),
        (b"[" * 5000, "invalid_json_line", None),
        (b'{"a":' * 5000, "invalid_json_line", None),
        (line() + line(), "invalid_json_line", None),
        (line(custom_id=...), "missing_required_parameter", "custom_id"),
        (line(custom_id=""), "missing_required_parameter", "custom_id"),
        (line(custom_id="x" * 513), "invalid_value", "custom_id"),
        (line(method=...), "missing_required_parameter", "method"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url=...), "missing_required_parameter", "url"),
        (line(url="/v1/completions"), "mismatched_url", "url"),
        (line(url="http://169.254.169.254/"), "mismatched_url", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(body=[]), "missing_required_parameter", "body.model"),
        (line(body={"messages": []}), "missing_required_parameter", "body.model"),
        (line(body=chat_body() | {"model": "gpt-9"}), "mismatched_model", "body.model"),
        (line(body=chat_body(stream=True)), "invalid_value", "body.stream"),
        (line(body=chat_body(colour="red")), "unknown_parameter", "body.colour"),
        (line(body=chat_body(temperature="hot")), "invalid_value", "body.temperature"),
        (line(body={"model": MODEL}), "missing_required_parameter", "body.messages"),
        (line("first"), "duplicate_custom_id", "custom_id"),
    ],
)
def test_one_bad_line_is_named(tmp_path: Path, bad: bytes, code: str, param: str | None) -> None:
    found = scanned(tmp_path, line("first") + b"\n\n" + bad + b"\n" + line("last"), most=100_000)
    (problem,) = found.problems
    assert (problem.code, problem.line, problem.param) == (code, 3, param), problem
    assert found.total == 3 and 10 < len(problem.message) < 300


def test_model_that_is_not_here(tmp_path: Path) -> None:
    found = scanned(tmp_path, line(body=chat_body() | {"model": "gpt-9"}))
    assert [(problem.code, problem.param) for problem in found.problems] == [("model_not_found", "body.model")]


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \n\r\n"])
def test_nothing_to_do(tmp_path: Path, data: bytes) -> None:
    assert [problem.code for problem in scanned(tmp_path, data).problems] == ["empty_file"]


def test_number_of_lines(tmp_path: Path) -> None:
    data = b"\n".join(line(f"{i}") for i in range(lines_module.MAX_LINES))
    assert scanned(tmp_path, data).problems == []
    found = scanned(tmp_path, data + b"\n" + line("one more"))
    assert [(problem.code, problem.line) for problem in found.problems] == [("too_many_requests", 50_001)]


def test_problems_are_listed_within_a_bound(tmp_path: Path) -> None:
    found = scanned(tmp_path, b"nonsense\n" * 1000)
    assert len(found.problems) == lines_module.MAX_PROBLEMS == found.total


def test_stops_when_it_is_told_to(tmp_path: Path) -> None:
    data = b"\n".join(line(f"{i}") for i in range(1000))
    assert scanned(tmp_path, data, stopped=True).total == lines_module.CHECK_STOP_EVERY


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2, 3, 300])
def test_length_of_a_line(tmp_path: Path, excess: int, end: bytes) -> None:
    first = line("a")
    filler = line("b", body=chat_body("x" * (500 - len(line("b", body=chat_body(""))))))
    assert len(filler) == 500
    found = scanned(tmp_path, first + b"\n" + filler + end, most=500 - excess)
    expected = [("line_too_long", 2)] if excess > 0 else []
    assert [(problem.code, problem.line) for problem in found.problems] == expected


def test_a_long_line_is_not_read_to_its_end() -> None:
    stream = io.BytesIO(b"x" * 1_000_000)
    with pytest.raises(LineTooLongError):
        list(read_lines(stream, 1000))
    assert stream.tell() == 1002
