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
from deepseek_serve.generation import Job, off_loop
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.anthropic.blocks import BlockWriter, content_of
from deepseek_serve.protocol.anthropic.chat import Translation
from deepseek_serve.protocol.anthropic.request import CountRequest, MessagesRequest
from deepseek_serve.protocol.anthropic.response import (
    BlockEvent,
    Content,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputTokensDetails,
    Stop,
    TokenCount,
)
from deepseek_serve.state import state_of
from deepseek_serve.streaming import EventStream, whole_answer

router = APIRouter()
encode = msgspec.json.Encoder().encode

STOP_REASONS: dict[AnswerEnd, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post("/v1/messages")
@router.post("/anthropic/v1/messages")
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
            return EventStream(answer.events(), resources.pop_all(), state.config.keep_alive_interval)
        return await whole_answer(request, answer.whole(), resources, state.config.padding)


@router.post("/v1/messages/count_tokens")
@router.post("/anthropic/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    """How long a prompt would be."""
    state = state_of(request)
    body = CountRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    translation = Translation(body)
    _, tokenizer = state.model(body.model).running()
    with translation.errors():
        messages, add_prompt, continues = translation.chat.conversation()
        ids = await off_loop(
            state,
            lambda: tokenizer.encode_chat(messages, add_generation_prompt=add_prompt, continue_final_message=continues),
        )
    return Response(encode(TokenCount(len(ids))), media_type="application/json")


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
                    yield encode(MessageStart(self._message([])))
                last = piece
                for event in self._blocks.push(piece):
                    yield encode(event)
        for event in self._blocks.end():
            yield encode(event)
        assert last is not None, "every answer has an end"
        yield encode(MessageDelta(_stop(last), self._usage()))
        yield encode(MessageStop())

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
