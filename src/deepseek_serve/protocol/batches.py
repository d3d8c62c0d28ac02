"""``/v1/batches``: the request and the object."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import Field, StringConstraints

from deepseek_serve.protocol.common import Strict
from deepseek_serve.protocol.files import MAX_LIFETIME, MIN_LIFETIME
from deepseek_serve.store.batches import BatchProblem, BatchRecord

Name = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiresAfter(Strict):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_LIFETIME, le=MAX_LIFETIME)


class BatchRequest(Strict):
    """Body of ``POST /v1/batches``."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Name, Value], Field(max_length=16)] | None = None
    output_expires_after: OutputExpiresAfter | None = None


class RequestCounts(msgspec.Struct):
    total: int
    completed: int
    failed: int


class Problems(msgspec.Struct):
    data: list[BatchProblem]
    object: str = "list"


class InputDetails(msgspec.Struct):
    cached_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(msgspec.Struct, kw_only=True):
    id: str
    object: str = "batch"
    endpoint: str
    model: str | None
    errors: Problems | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


def batch_object(record: BatchRecord) -> BatchObject:
    same = {
        name: getattr(record, name)
        for name in BatchObject.__struct_fields__
        if name in BatchRecord.__struct_fields__ and name != "errors"
    }
    return BatchObject(
        **same,
        errors=None if record.errors is None else Problems(record.errors),
        request_counts=RequestCounts(record.total, record.completed, record.failed),
        usage=BatchUsage(
            record.prompt_tokens,
            InputDetails(record.cached_tokens),
            record.completion_tokens,
            OutputDetails(record.reasoning_tokens),
            record.prompt_tokens + record.completion_tokens,
        ),
    )
