"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.answers import Answer, AnswerEnd, AnswerPiece, CallPiece, admit, collect, pieces
from deepseek_serve.entry import BatchEntry, Entry
from deepseek_serve.generation import Job
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.logprobs import chat_logprobs
from deepseek_serve.protocol.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from deepseek_serve.reference.described import PROBLEMS, described
from deepseek_serve.state import ServerState, state_of
from deepseek_serve.streaming import EventStream, whole_answer

router = APIRouter()
encode = msgspec.json.Encoder().encode


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
@described(
    tag="Chat",
    body=ChatRequest,
    answer=ChatCompletion,
    stream=ChatChunk,
    errors=(*PROBLEMS, 404),
    example={"model": "deepseek-v2.1", "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 40},
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    body = ChatRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    with ExitStack() as resources:
        entry = Entry(state, request, resources, user_id=body.user_id, service_tier=body.service_tier)
        job = await admit(state, body, entry)
        entry.record.stream = bool(body.stream)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(job, body, include_usage)
            return EventStream(events, resources.pop_all(), state.config.keep_alive_interval)
        return await whole_answer(request, _whole(job, body), resources, state.config.padding)


async def complete(state: ServerState, tenant: str, body: ChatRequest) -> ChatCompletion:
    """The whole answer to a line of a batch, which takes no room from live requests."""
    with ExitStack() as resources:
        entry = BatchEntry(state, tenant, resources, user_id=body.user_id)
        return await _whole(await admit(state, body, entry), body)


async def _whole(job: Job, body: ChatRequest) -> ChatCompletion:
    wants_logprobs, older = job.params.logprobs is not None, bool(body.functions)
    choices = [
        ChatChoice(
            index,
            _message(answer, older=older),
            ChatLogprobs(chat_logprobs(answer.logprobs)) if wants_logprobs else None,
            _reason(answer.finish_reason, older=older),
        )
        for index, answer in enumerate(await collect(job))
    ]
    return ChatCompletion(job.name, job.created, body.model, choices, job.usage(), job.fingerprint, job.service_tier)


def _message(answer: Answer, *, older: bool) -> ChatMessage:
    """``older``: the request had ``functions``, so its answer has a ``function_call``."""
    if older and answer.calls:
        call = answer.calls[0]
        return ChatMessage(
            answer.content or None,
            reasoning_content=answer.reasoning or UNSET,
            function_call=FunctionCall(call.name, call.arguments),
        )
    calls = [ToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in answer.calls]
    return ChatMessage(
        answer.content if answer.content or not calls else None,
        reasoning_content=answer.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _reason(reason: AnswerEnd | None, *, older: bool) -> str | None:
    return "function_call" if older and reason == "tool_calls" else reason


async def _events(job: Job, body: ChatRequest, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream: per choice the role, the answer, the finish; at the end the usage if asked for."""
    usage: Usage | UnsetType | None = None if include_usage else UNSET

    def chunk(*choices: ChatChunkChoice) -> bytes:
        shared = (job.fingerprint, usage, job.service_tier)
        return encode(ChatChunk(job.name, job.created, body.model, list(choices), *shared))

    begun: set[int] = set()
    older = bool(body.functions)
    async with aclosing(pieces(job)) as found:
        async for choice, piece in found:
            if choice.index not in begun:
                begun.add(choice.index)
                yield chunk(ChatChunkChoice(choice.index, ChatDelta("assistant", "")))
            delta = _delta(piece, older=older)
            if delta is not None or piece.logprobs:
                logprobs = ChatLogprobs(chat_logprobs(piece.logprobs)) if piece.logprobs else None
                yield chunk(ChatChunkChoice(choice.index, delta or ChatDelta(content=""), logprobs))
            if piece.finish_reason is not None:
                yield chunk(ChatChunkChoice(choice.index, ChatDelta(), None, _reason(piece.finish_reason, older=older)))
    if include_usage:
        usage = job.usage()
        yield chunk()


def _delta(piece: AnswerPiece, *, older: bool) -> ChatDelta | None:
    if not (piece.content or piece.reasoning or piece.calls):
        return None
    if older:
        calls = [FunctionDelta(call.arguments, call.name or UNSET) for call in piece.calls if call.index == 0]
        return ChatDelta(
            content=piece.content or UNSET,
            reasoning_content=piece.reasoning or UNSET,
            function_call=calls[0] if calls else UNSET,
        )
    return ChatDelta(
        content=piece.content or UNSET,
        reasoning_content=piece.reasoning or UNSET,
        tool_calls=[_call(call) for call in piece.calls] or UNSET,
    )


def _call(piece: CallPiece) -> ToolCallDelta:
    if piece.id is None:
        return ToolCallDelta(piece.index, FunctionDelta(piece.arguments))
    return ToolCallDelta(piece.index, FunctionDelta(piece.arguments, piece.name or UNSET), piece.id, "function")
