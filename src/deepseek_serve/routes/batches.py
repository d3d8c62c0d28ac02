"""``/v1/batches``: many requests from a file, answered within a day."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.batches.endpoints import ENDPOINTS
from deepseek_serve.batches.runner import server_name
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.batches import BatchObject, BatchRequest, batch_object
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.files import ObjectList, object_list, page
from deepseek_serve.reference.described import PAGE_QUERY, STORE_PROBLEMS, described
from deepseek_serve.state import state_of
from deepseek_serve.store.batches import BatchRecord

router = APIRouter()
MAX_PAGE = 100


@router.post("/v1/batches")
@described(tag="Batches", body=BatchRequest, answer=BatchObject, errors=(*STORE_PROBLEMS, 408, 413))
async def create_batch(request: Request) -> Response:
    """Begin a batch: its file is validated first, in the background."""
    state = state_of(request)
    body = BatchRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    if body.endpoint not in ENDPOINTS:
        raise InvalidFieldError("endpoint", f"it must be one of {', '.join(map(repr, ENDPOINTS))}")
    expiry = body.output_expires_after
    record = await state.store.batches.create(
        request.state.tenant,
        server=server_name(state),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        metadata=body.metadata,
        output_expires_after=None if expiry is None else expiry.seconds,
    )
    state.batches_changed.set()
    return _json(record)


@router.get("/v1/batches")
@described(tag="Batches", query=PAGE_QUERY, answer=ObjectList, items=BatchObject, errors=STORE_PROBLEMS)
async def list_batches(request: Request) -> Response:
    """The key's batches, newest first."""
    wanted = page(request.query_params, default=20, most=MAX_PAGE)
    records, more = await state_of(request).store.batches.listed(request.state.tenant, wanted)
    body = object_list([batch_object(record) for record in records], more)
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.get("/v1/batches/{batch_id}")
@described(tag="Batches", answer=BatchObject, errors=STORE_PROBLEMS)
async def retrieve_batch(request: Request, batch_id: str) -> Response:
    """How far a batch is."""
    return _json(await state_of(request).store.batches.get(request.state.tenant, batch_id))


@router.post("/v1/batches/{batch_id}/cancel")
@described(tag="Batches", answer=BatchObject, errors=(*STORE_PROBLEMS, 409))
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """End a batch within seconds; what is done by then stays available."""
    state = state_of(request)
    record = await state.store.batches.cancel(request.state.tenant, batch_id)
    state.batches_changed.set()
    return _json(record)


def _json(record: BatchRecord) -> Response:
    return Response(msgspec.json.encode(batch_object(record)), media_type="application/json")
