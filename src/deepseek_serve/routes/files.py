"""``/v1/files``: upload, list, look at, read and delete files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import BinaryIO
from urllib.parse import quote

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.files import (
    MAX_LIFETIME,
    MIN_LIFETIME,
    PURPOSES,
    Deleted,
    FileObject,
    ObjectList,
    file_object,
    lifetime,
    object_list,
    page,
    plain_name,
    purpose_of,
)
from deepseek_serve.reference.described import PAGE_QUERY, STORE_PROBLEMS, described
from deepseek_serve.state import state_of
from deepseek_serve.store.contents import CHUNK
from deepseek_serve.store.files import FileStore
from deepseek_serve.uploads import receive

router = APIRouter()
MAX_PAGE = 10_000
UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_LIFETIME, "maximum": MAX_LIFETIME},
    },
    "required": ["file", "purpose"],
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}


@router.post("/v1/files")
@described(tag="Files", form=UPLOAD, answer=FileObject, errors=(*STORE_PROBLEMS, 408, 413))
async def upload_file(request: Request) -> Response:
    """Keep a file; its bytes go to the disk as they come."""
    state = state_of(request)
    files, tenant = state.store.files, request.state.tenant
    room = await files.room(tenant)
    with await files.new_content() as content:
        form = await receive(request, files, content, tenant=tenant, limit=state.config.max_file_bytes, room=room)
        purpose, seconds = purpose_of(form.fields), lifetime(form.fields)
        known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
        if unknown := sorted(form.fields.keys() - known):
            name = unknown[0][:100]
            raise InvalidRequestError(
                f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
            )
        if form.filename is None:
            raise InvalidRequestError(
                "Missing required parameter: 'file'.", param="file", code="missing_required_parameter"
            )
        if not content.size:
            raise InvalidRequestError("The file is empty.", param="file", code="empty_file")
        record = await files.add(tenant, content, filename=plain_name(form.filename), purpose=purpose, lifetime=seconds)
    return _json(file_object(record))


@router.get("/v1/files")
@described(
    tag="Files",
    query={
        **PAGE_QUERY,
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        "purpose": {"type": "string", "enum": [*PURPOSES, "batch_output"]},
    },
    answer=ObjectList,
    items=FileObject,
    errors=STORE_PROBLEMS,
)
async def list_files(request: Request) -> Response:
    """The key's files, newest first."""
    query = request.query_params
    wanted, purpose = page(query, default=MAX_PAGE, most=MAX_PAGE), query.get("purpose")
    if purpose is not None and purpose not in (*PURPOSES, "batch_output"):
        raise InvalidFieldError("purpose", f"there is none of the name {purpose[:40]!r}")
    records, more = await state_of(request).store.files.listed(request.state.tenant, wanted, purpose)
    return _json(object_list([file_object(record) for record in records], more))


@router.get("/v1/files/{file_id}")
@described(tag="Files", answer=FileObject, errors=STORE_PROBLEMS)
async def retrieve_file(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    return _json(file_object(await state_of(request).store.files.get(request.state.tenant, file_id)))


@router.get("/v1/files/{file_id}/content")
@described(tag="Files", media_type="application/octet-stream", errors=STORE_PROBLEMS)
async def file_content(request: Request, file_id: str) -> Response:
    """The bytes of a file, to be saved and never shown as a page."""
    files = state_of(request).store.files
    record = await files.get(request.state.tenant, file_id)
    stream = await files.open(record)
    headers = {
        "content-length": str(record.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(record.filename, safe='')}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_content(files, stream), 200, headers, "application/octet-stream")


@router.delete("/v1/files/{file_id}")
@described(tag="Files", answer=Deleted, errors=(*STORE_PROBLEMS, 409))
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file, unless a batch is reading it."""
    await state_of(request).store.files.delete(request.state.tenant, file_id)
    return _json(Deleted(file_id, "file"))


async def _content(files: FileStore, stream: BinaryIO) -> AsyncIterator[bytes]:
    with stream:
        while part := await files.on_disk(lambda: stream.read(CHUNK)):
            yield part


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
