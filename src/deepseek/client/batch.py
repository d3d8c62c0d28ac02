"""Batches from a list of requests to a list of results, as steps of either client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import openai
from openai.types import Batch, Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from deepseek.client.errors import line_error
from deepseek.client.steps import Sleep, Steps
from deepseek.errors import BatchError, OverloadedError, RateLimitedError, RejectedError, RemoteError, UnreachableError

Body: TypeAlias = Mapping[str, Any]
Requests: TypeAlias = Iterable[Body] | Mapping[str, Body]
Progress: TypeAlias = Callable[[Batch], None]

ENDED = ("completed", "failed", "expired", "cancelled")
PATIENCE = 600.0  # seconds that a server may be away, while it restarts and loads its model
_ANSWERS: Mapping[str, type[openai.BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/responses": Response,
}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one request of a batch.

    Attributes:
        custom_id: the request's.
        answer: the SDK's object for the endpoint, such as a ChatCompletion; None if there is an error.
        error: None if there is an answer.
    """

    custom_id: str
    answer: Any | None
    error: RemoteError | None

    def unwrap(self) -> Any:
        """The answer. Raises the error if there is none."""
        if self.error is not None:
            raise self.error
        return self.answer


def submit(
    client: Any, requests: Requests, endpoint: str, metadata: Mapping[str, str] | None
) -> Steps[tuple[str, list[str]]]:
    """The batch's id, and the ids of its requests in order."""
    named = _named(requests)
    lines = [
        json.dumps({"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}, ensure_ascii=False)
        for custom_id, body in named.items()
    ]
    content = "\n".join(lines).encode()
    file = yield lambda: client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = yield from _create(client, file.id, endpoint, metadata)
    return batch.id, list(named)


def results(
    client: Any,
    batch_id: str,
    *,
    poll: float,
    timeout: float | None,
    progress: Progress | None,
    order: Sequence[str] | None = None,
) -> Steps[list[BatchResult]]:
    """Wait for the batch's end and collect its results, in the order of its requests."""
    batch = yield from _ended(client, batch_id, poll, timeout, progress)
    if batch.status == "failed":
        problems = batch.errors.data if batch.errors is not None and batch.errors.data else []
        told = "; ".join(f"line {problem.line}: {problem.message}" for problem in problems[:3])
        raise BatchError(f"The batch {batch_id} failed: {told or 'no reason is given'}", batch_id=batch_id)
    found: dict[str, BatchResult] = {}
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id is not None:
            for line in (yield from _lines(client, file_id)):
                result = _result(line, batch.endpoint)
                found[result.custom_id] = result
    if order is None:
        order = yield from _order(client, batch.input_file_id, found)
    # A batch that is cancelled while it is validated has no files.
    missing = {
        "code": f"batch_{batch.status}",
        "message": f"This request was not executed: the batch is {batch.status}.",
    }
    return [found.get(name) or BatchResult(name, None, line_error(None, missing, None)) for name in order]


def _named(requests: Requests) -> Mapping[str, Body]:
    if isinstance(requests, Mapping):
        return requests
    return {f"request-{index}": body for index, body in enumerate(requests)}


def _create(client: Any, file_id: str, endpoint: str, metadata: Mapping[str, str] | None) -> Steps[Batch]:
    """Begin one batch and not two: whether the server has begun it before the connection broke is looked up, by the
    file that is of this batch alone."""
    once = client.with_options(max_retries=0)
    given: dict[str, Any] = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
    if metadata is not None:
        given["metadata"] = dict(metadata)
    for attempt in range(client.max_retries + 1):
        try:
            batch: Batch = yield lambda: once.batches.create(**given)
        except (UnreachableError, OverloadedError, RateLimitedError) as error:
            never = isinstance(error, RateLimitedError) and error.retry_after is None
            if never or attempt == client.max_retries:
                raise
            yield Sleep(error.retry_after or 2.0**attempt / 2)
            page = yield lambda: client.batches.list(limit=100)
            for begun in page.data:
                if begun.input_file_id == file_id:
                    return begun  # type: ignore[no-any-return]
        else:
            return batch
    raise AssertionError("the last attempt returns or raises")


def _ended(client: Any, batch_id: str, poll: float, timeout: float | None, progress: Progress | None) -> Steps[Batch]:
    """The batch when it has ended. A server that restarts meanwhile is waited for."""
    once = client.with_options(max_retries=0)
    started = seen = time.monotonic()
    while True:
        try:
            batch: Batch = yield lambda: once.batches.retrieve(batch_id)
        except (UnreachableError, OverloadedError):
            if time.monotonic() - seen > PATIENCE:
                raise
        else:
            seen = time.monotonic()
            if progress is not None:
                progress(batch)
            if batch.status in ENDED:
                return batch
        if timeout is not None and time.monotonic() - started > timeout:
            raise BatchError(
                f"The batch {batch_id} has not ended after {timeout:g} s; batch_results({batch_id!r}) goes on waiting.",
                batch_id=batch_id,
            )
        yield Sleep(poll)


def _lines(client: Any, file_id: str) -> Steps[list[dict[str, Any]]]:
    content = yield lambda: client.files.content(file_id)
    return [json.loads(line) for line in content.content.splitlines() if line.strip()]


def _order(client: Any, input_file_id: str, found: Mapping[str, BatchResult]) -> Steps[list[str]]:
    """The ids of the batch's requests, from its input; as they come in the output if that has been deleted."""
    try:
        lines = yield from _lines(client, input_file_id)
    except RejectedError as error:
        if error.status_code != 404:
            raise
        return list(found)
    return [line["custom_id"] for line in lines]


def _result(line: Mapping[str, Any], endpoint: str) -> BatchResult:
    custom_id, response = str(line["custom_id"]), line.get("response")
    if response is None:
        return BatchResult(custom_id, None, line_error(None, line["error"], None))
    body = response["body"]
    if response["status_code"] != 200:
        told = body.get("error", {})
        return BatchResult(custom_id, None, line_error(response["status_code"], told, response.get("request_id")))
    kind = _ANSWERS.get(endpoint)
    return BatchResult(custom_id, body if kind is None else kind.construct(**body), None)
