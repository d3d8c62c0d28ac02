"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``: Anthropic's API, also under DeepSeek's path for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.answers import AnswerEnd, AnswerPiece, admit, pieces
from deepseek_serve.entry import Entry
from deepseek_serve.errors import error_body
from deepseek_serve.generation import Job
from deepseek_serve.limits import read_body
from deepseek_serve.prompt import prompt_length
from deepseek_serve.protocol.anthropic.blocks import BlockWriter, content_of
from deepseek_serve.protocol.anthropic.chat import Translation
from deepseek_serve.protocol.anthropic.request import CountRequest, MessagesRequest
from deepseek_serve.protocol.anthropic.response import (
    BlockEvent,
    Content,
    Event,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputTokensDetails,
    Ping,
    Stop,
    TokenCount,
)
from deepseek_serve.reference.described import PROBLEMS, described
from deepseek_serve.state import state_of
from deepseek_serve.streaming import EventStream, Wire, named_event, whole_answer

router = APIRouter()
encode = msgspec.json.Encoder().encode

STOP_REASONS: dict[AnswerEnd, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post("/v1/messages")
@router.post("/anthropic/v1/messages")
@described(
    tag="Anthropic",
    body=MessagesRequest,
    answer=Message,
    stream=Event,
    errors=(*PROBLEMS, 404, 529),
    example={"model": "deepseek-v2.1", "max_tokens": 40, "messages": [{"role": "user", "content": "Name a river."}]},
)
async def create_message(request: Request) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    body = MessagesRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    translation = Translation(body)
    chat = translation.chat
    with ExitStack() as resources:
        entry = Entry(state, request, resources, user_id=chat.user_id, service_tier=chat.service_tier)
        with translation.errors():
            job = await admit(state, chat, entry, prefix="msg_")
        entry.record.stream = bool(body.stream)
        answer = MessageWriter(job, body)
        if body.stream:
            return EventStream(answer.events(), resources.pop_all(), state.config.keep_alive_interval, _wire(request))
        return await whole_answer(request, answer.whole(), resources, state.config.padding)


@router.post("/v1/messages/count_tokens")
@router.post("/anthropic/v1/messages/count_tokens")
@described(tag="Anthropic", body=CountRequest, answer=TokenCount, errors=(*PROBLEMS, 404, 529))
async def count_tokens(request: Request) -> Response:
    """How long a prompt would be."""
    state = state_of(request)
    body = CountRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    translation = Translation(body)
    with ExitStack() as resources, translation.errors():
        Entry(state, request, resources).take(1)  # chats wait for the same threads
        length = await prompt_length(state, translation.chat)
    return Response(encode(TokenCount(length)), media_type="application/json")


def _wire(request: Request) -> Wire:
    """How a stream is written: events have names, an error has its request's id, and the last event is the end."""
    return Wire(
        event=bytes,
        failure=lambda error: named_event("error", error_body(error, request.scope)),
        end=b"",
        silence=_event(Ping()),
    )


def _event(event: Event) -> bytes:
    return named_event(str(event.__struct_config__.tag), encode(event))


class MessageWriter:
    """Writes the one answer of a job as a message, whole or in events."""

    def __init__(self, job: Job, body: MessagesRequest) -> None:
        self._job = job
        self._model = body.model
        self._blocks = BlockWriter(show_thinking=body.thinking is None or body.thinking.display != "omitted")

    async def whole(self) -> Message:
        """The message. Raises what the engine failed with."""
        events: list[BlockEvent] = []
        last = AnswerPiece()
        async with aclosing(pieces(self._job)) as found:
            async for _, last in found:
                events += self._blocks.push(last)
        events += self._blocks.end()
        stop = _stop(last)
        return self._message(content_of(events), stop.stop_reason, stop.stop_sequence)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream, encoded. It begins with the answer: only then is it known what of the prompt was cached."""
        last: AnswerPiece | None = None
        async with aclosing(pieces(self._job)) as found:
            async for _, piece in found:
                if last is None:
                    yield _event(MessageStart(self._message([])))
                last = piece
                for event in self._blocks.push(piece):
                    yield _event(event)
        for event in self._blocks.end():
            yield _event(event)
        assert last is not None, "every answer has an end"
        yield _event(MessageDelta(_stop(last), self._usage()))
        yield _event(MessageStop())

    def _message(self, content: list[Content], reason: str | None = None, sequence: str | None = None) -> Message:
        return Message(self._job.name, self._model, content, self._usage(), reason, sequence)

    def _usage(self) -> MessageUsage:
        usage, tier = self._job.usage(), self._job.service_tier
        return MessageUsage(
            usage.prompt_cache_miss_tokens,
            usage.prompt_cache_hit_tokens,
            usage.completion_tokens,
            OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
            service_tier=UNSET if isinstance(tier, UnsetType) else "standard",
        )


def _stop(piece: AnswerPiece) -> Stop:
    """Why an answer ended, of its last piece."""
    if piece.stop_string is not None:
        return Stop("stop_sequence", piece.stop_string)
    assert piece.finish_reason in STOP_REASONS, "others are raised"
    return Stop(STOP_REASONS[piece.finish_reason], None)
