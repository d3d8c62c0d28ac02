"""The lines of output and error files."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from deepseek_serve.errors import ApiError
from deepseek_serve.protocol.responses_api.objects import ResponseUsage
from deepseek_serve.store.batches import LineResult
from deepseek_serve.store.usage import Tokens


class Answer(msgspec.Struct):
    """``response`` of a line: what a live request would have got."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Problem(msgspec.Struct):
    """``error`` of a line that was not answered at all."""

    code: str
    message: str


class OutputLine(msgspec.Struct):
    id: str
    custom_id: str
    response: Answer | None
    error: Problem | None


NOT_RUN = {
    "expired": Problem("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": Problem("batch_cancelled", "This request was not executed because the batch was cancelled."),
    "failed": Problem("batch_failed", "This request was not executed because the batch failed."),
}


def answered(batch_id: str, line: int, custom_id: str, request_id: str, answer: msgspec.Struct) -> LineResult:
    """A line with its answer."""
    return _result(batch_id, line, custom_id, Answer(200, request_id, msgspec.Raw(msgspec.json.encode(answer))))


def refused(batch_id: str, line: int, custom_id: str, request_id: str, error: ApiError) -> LineResult:
    """A line that got an error as its answer."""
    answer = Answer(error.status, request_id, msgspec.Raw(error.encode()))
    return _result(batch_id, line, custom_id, answer)


def not_run(batch_id: str, line: int, custom_id: str, end: str) -> bytes:
    """The text of a line that was never answered, as the batch's ``end`` was cancelled or expired."""
    return msgspec.json.encode(OutputLine(_line_id(batch_id, line), custom_id, None, NOT_RUN[end]))


def tokens_of(answer: Any) -> Tokens:
    """Token counts of an answer that has a ``usage``, whichever of its fields there are."""
    usage = getattr(answer, "usage", None)
    if isinstance(usage, ResponseUsage):
        cached, reasoning = usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens
        return Tokens(usage.input_tokens, cached, usage.output_tokens, reasoning)
    prompt_details = getattr(usage, "prompt_tokens_details", None)
    completion_details = getattr(usage, "completion_tokens_details", None)
    return Tokens(
        getattr(usage, "prompt_tokens", 0),
        getattr(prompt_details, "cached_tokens", 0),
        getattr(usage, "completion_tokens", 0),
        getattr(completion_details, "reasoning_tokens", 0),
    )


def _result(batch_id: str, line: int, custom_id: str, answer: Answer) -> LineResult:
    text = msgspec.json.encode(OutputLine(_line_id(batch_id, line), custom_id, answer, None)).decode()
    return LineResult(line, answer.status_code == 200, text)


def _line_id(batch_id: str, line: int) -> str:
    """The same whenever the line is run."""
    return "batch_req_" + hashlib.sha256(f"{batch_id}/{line}".encode()).hexdigest()[:32]
