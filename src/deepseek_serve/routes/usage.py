"""``GET /v1/usage``: what the caller's key has used."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.files import whole_number
from deepseek_serve.reference.described import STORE_PROBLEMS, described
from deepseek_serve.state import state_of
from deepseek_serve.store.usage import Spent

router = APIRouter()
WIDTHS = {"1h": 3600, "1d": 86_400}
MAX_BUCKETS = 750  # a month of hours
DEFAULT_BUCKETS = {"1h": 24, "1d": 30}
LATEST = 2**40  # Unix seconds
QUERY = {
    "start_time": {"type": "integer", "minimum": 0, "maximum": LATEST},
    "end_time": {"type": "integer", "minimum": 0, "maximum": LATEST},
    "bucket_width": {"type": "string", "enum": list(WIDTHS)},
    "group_by": {"type": "string", "enum": ["model"]},
}


class Result(msgspec.Struct, kw_only=True):
    """What was used in a bucket, of one model or (``model`` null) of all."""

    object: str = "usage.result"
    model: str | None
    requests: int
    errors: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Bucket(msgspec.Struct):
    start_time: int
    end_time: int
    results: list[Result]
    object: str = "bucket"


class Buckets(msgspec.Struct):
    data: list[Bucket]
    object: str = "list"


@router.get("/v1/usage")
@described(tag="Usage", query=QUERY, answer=Buckets, errors=STORE_PROBLEMS)
async def get_usage(request: Request) -> Response:
    """Buckets from ``start_time`` to ``end_time``, rounded outwards to whole ones (of UTC)."""
    query = request.query_params
    for name in query:
        if name not in QUERY:
            raise InvalidFieldError(name, "there is no such parameter")
    width_name = query.get("bucket_width", "1d")
    if width_name not in WIDTHS:
        raise InvalidFieldError("bucket_width", "it must be '1d' or '1h'")
    if query.get("group_by") not in (None, "model"):
        raise InvalidFieldError("group_by", "it must be 'model', or left out")
    width = WIDTHS[width_name]
    end = whole_number(query, "end_time", default=int(time.time()) + 1, least=0, most=LATEST)
    end = -(-end // width) * width
    default_start = max(end - DEFAULT_BUCKETS[width_name] * width, 0)
    start = whole_number(query, "start_time", default=default_start, least=0, most=LATEST) // width * width
    if end <= start:
        raise InvalidFieldError("end_time", "it must be later than 'start_time'")
    if (end - start) // width > MAX_BUCKETS:
        raise InvalidFieldError("start_time", f"at most {MAX_BUCKETS} buckets can be asked for at a time")
    by_model = query.get("group_by") == "model"
    rows = await state_of(request).store.usage.rows(
        start, end, tenant=request.state.tenant, bucket=width, by_model=by_model
    )
    buckets = {time: Bucket(time, time + width, []) for time in range(start, end, width)}
    for row in rows:
        buckets[row.start].results.append(_result(row.model if by_model else None, row.spent))
    return Response(msgspec.json.encode(Buckets(list(buckets.values()))), media_type="application/json")


def _result(model: str | None, spent: Spent) -> Result:
    return Result(model=model, **msgspec.structs.asdict(spent))
