"""``/v1/responses``: answers that the server keeps, continues, and computes in the background."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.answers import admit
from deepseek_serve.entry import BatchEntry, Entry
from deepseek_serve.errors import ApiError
from deepseek_serve.limits import read_body
from deepseek_serve.prompt import prompt_length
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.files import Deleted, ObjectList, page, whole_number
from deepseek_serve.protocol.responses_api.objects import Event, InputTokens, ResponseObject
from deepseek_serve.protocol.responses_api.request import InputRequest, ResponseRequest
from deepseek_serve.reference.described import PAGE_QUERY, PROBLEMS, STORE_PROBLEMS, described
from deepseek_serve.responses.conversation import chat_request, earlier_items, errors_in_own_words, input_items
from deepseek_serve.responses.run import ResponseRun
from deepseek_serve.responses.truncation import shortened
from deepseek_serve.state import ServerState, state_of
from deepseek_serve.store.responses import UNFINISHED
from deepseek_serve.streaming import EventStream, Wire, whole_answer

router = APIRouter()
MAX_PAGE = 100
MAX_EVENT = 10**12


@router.post("/v1/responses")
@described(
    tag="Responses",
    body=ResponseRequest,
    answer=ResponseObject,
    stream=Event,
    errors=(*PROBLEMS, 404, 409, 507),
    example={"model": "deepseek-v2.1", "input": "Name a river.", "max_output_tokens": 40},
)
async def create_response(request: Request) -> Response:
    """Answer a conversation, and keep both unless the client says otherwise."""
    state = state_of(request)
    body = ResponseRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    with ExitStack() as resources:
        chat = await _chat(state, request.state.tenant, body)
        entry = Entry(state, request, resources, user_id=body.user_id, service_tier=body.service_tier)
        run = await _begin(state, request.state.tenant, body, chat, entry, resources)
        entry.record.stream = bool(body.stream)
        wire = Wire(event=bytes, failure=run.error_event, end=b"")
        if body.background:
            beginning = run.response
            live, streamed = state.responses, bool(body.stream)
            running = live.begin(beginning.id, run.written(), resources.pop_all(), streamed=streamed)
            if not streamed:
                return _json(beginning)
            return EventStream(running.follow(-1), ExitStack(), state.config.keep_alive_interval, wire)
        if body.stream:
            return EventStream(run.written(), resources.pop_all(), state.config.keep_alive_interval, wire)
        return await whole_answer(request, run.whole(), resources, state.config.padding)


@router.post("/v1/responses/input_tokens")
@described(tag="Responses", body=InputRequest, answer=InputTokens, errors=(*PROBLEMS, 404, 409, 507))
async def count_input_tokens(request: Request) -> Response:
    """How long a prompt would be."""
    state = state_of(request)
    body = InputRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    chat = await _chat(state, request.state.tenant, body)
    with ExitStack() as resources, errors_in_own_words():
        Entry(state, request, resources).take(1)  # chats wait for the same threads
        return _json(InputTokens(await prompt_length(state, chat)))


@router.get("/v1/responses/{response_id}")
@described(
    tag="Responses",
    query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0, "maximum": MAX_EVENT}},
    answer=ResponseObject,
    stream=Event,
    errors=STORE_PROBLEMS,
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    """A response as far as it is; with ``stream=true`` its events, of one that was begun so in the background."""
    state, query = state_of(request), request.query_params
    streamed = query.get("stream", "false")
    if streamed not in ("true", "false"):
        raise InvalidFieldError("stream", "it must be 'true' or 'false'")
    if streamed == "false" and "starting_after" in query:
        raise InvalidFieldError("starting_after", "only allowed when 'stream' is true")
    record = await state.store.responses.get(request.state.tenant, response_id)
    if streamed == "false":
        return Response(record.body, media_type="application/json")
    after = whole_number(query, "starting_after", default=-1, least=0, most=MAX_EVENT)
    running = state.responses.find(response_id)
    if running is None or not running.streamed:
        raise InvalidFieldError(
            "stream",
            "only a response that was created with 'background' and 'stream' has events to be read again, through the "
            "server that computes it and until a minute after its end; retrieve it without 'stream'",
        )
    wire = Wire(event=bytes, end=b"")
    return EventStream(running.follow(after), ExitStack(), state.config.keep_alive_interval, wire)


@router.delete("/v1/responses/{response_id}")
@described(tag="Responses", answer=Deleted, errors=STORE_PROBLEMS)
async def delete_response(request: Request, response_id: str) -> Response:
    """Delete a response; one in the background ends."""
    state = state_of(request)
    await state.store.responses.delete(request.state.tenant, response_id)
    running = state.responses.find(response_id)
    if running is not None:
        await running.cancel()
    return _json(Deleted(response_id, "response"))


@router.post("/v1/responses/{response_id}/cancel")
@described(tag="Responses", answer=ResponseObject, errors=STORE_PROBLEMS)
async def cancel_response(request: Request, response_id: str) -> Response:
    """End a response in the background; one that has ended stays as it is."""
    state, tenant = state_of(request), request.state.tenant
    record = await state.store.responses.get(tenant, response_id)
    if not msgspec.json.decode(record.body)["background"]:
        raise ApiError(
            400,
            "Only a response in the background can be cancelled. Close the connection of any other.",
            param="response_id",
            code="response_not_cancellable",
        )
    running = state.responses.find(response_id)
    if running is not None:
        await running.cancel()
        await state.responses.saved(response_id)
    elif record.status in UNFINISHED:  # another process is at work on it, and will notice
        text = msgspec.json.encode(msgspec.json.decode(record.body) | {"status": "cancelled"}).decode()
        await state.store.responses.update(tenant, response_id, status="cancelled", body=text)
    record = await state.store.responses.get(tenant, response_id)
    return Response(record.body, media_type="application/json")


@router.get("/v1/responses/{response_id}/input_items")
@described(tag="Responses", query=PAGE_QUERY, answer=ObjectList, errors=STORE_PROBLEMS)
async def list_input_items(request: Request, response_id: str) -> Response:
    """What the request of a response brought; what it continued is its predecessor's."""
    wanted = page(request.query_params, default=20, most=MAX_PAGE)
    record = await state_of(request).store.responses.get(request.state.tenant, response_id)
    items = msgspec.json.decode(record.input_items)
    if wanted.order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if wanted.after is not None and wanted.after not in ids:
        raise InvalidFieldError("after", f"there is no item {wanted.after[:100]!r}")
    begin = 0 if wanted.after is None else ids.index(wanted.after) + 1
    end = begin + wanted.limit
    shown = ids[begin:end]
    first, last = (shown[0], shown[-1]) if shown else (None, None)
    return _json(ObjectList(items[begin:end], end < len(items), first, last))


async def complete(state: ServerState, tenant: str, body: ResponseRequest) -> ResponseObject:
    """The response to a line of a batch, which takes no room from live requests."""
    with ExitStack() as resources:
        chat = await _chat(state, tenant, body)
        entry = BatchEntry(state, tenant, resources, user_id=body.user_id)
        return await (await _begin(state, tenant, body, chat, entry, resources)).whole()


async def _chat(state: ServerState, tenant: str, body: InputRequest) -> ChatRequest:
    """The chat that the body asks for, with all that it continues."""
    earlier = await earlier_items(state.store.responses, tenant, body.previous_response_id)
    with errors_in_own_words():
        chat = chat_request(body, earlier)
        return await shortened(state, chat) if body.truncation == "auto" else chat


async def _begin(
    state: ServerState, tenant: str, body: ResponseRequest, chat: ChatRequest, entry: Entry, resources: ExitStack
) -> ResponseRun:
    """A response that has its place, and its beginning in the store; it has an end when ``resources`` are closed."""
    with errors_in_own_words():
        job = await admit(state, chat, entry, prefix="resp_")
    run = ResponseRun(state, job, body, tenant)
    await run.keep(input_items(body))
    resources.callback(run.close)
    return run


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
