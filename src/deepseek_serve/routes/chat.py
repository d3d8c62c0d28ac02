"""``POST /v1/chat/completions``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepseek.runtime.output import TextDelta
from deepseek_serve.entry import BatchEntry, Entry
from deepseek_serve.generation import Choice, Job, check_constraint, check_prompts, off_loop
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
    Usage,
)
from deepseek_serve.state import ServerState, state_of
from deepseek_serve.streaming import EventStream, whole_answer

router = APIRouter()
encode = msgspec.json.Encoder().encode


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    body = ChatRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    with ExitStack() as resources:
        entry = Entry(state, request, resources, user_id=body.user_id, service_tier=body.service_tier)
        job = await _admit(state, body, entry)
        entry.record.stream = bool(body.stream)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(job, body.model, include_usage)
            return EventStream(events, resources.pop_all(), state.config.keep_alive_interval)
        return await whole_answer(request, _whole(job, body.model), resources, state.config.padding)


async def complete(state: ServerState, tenant: str, body: ChatRequest) -> ChatCompletion:
    """The whole answer to a line of a batch, which takes no room from live requests."""
    with ExitStack() as resources:
        entry = BatchEntry(state, tenant, resources, user_id=body.user_id)
        return await _whole(await _admit(state, body, entry), body.model)


async def _admit(state: ServerState, body: ChatRequest, entry: Entry) -> Job:
    """Check everything that can be checked, and take room for the answers."""
    model = state.model(body.model)
    info, tokenizer = model.running()
    max_tokens = body.token_limit()
    params = body.sampling(max_tokens=max_tokens, logprobs=body.logprob_count(), vocab_size=info.vocab_size)
    messages, add_prompt, continues = body.conversation()
    entry.take(params.n)
    prompt = await off_loop(
        state,
        lambda: tokenizer.encode_chat(messages, add_generation_prompt=add_prompt, continue_final_message=continues),
    )
    await check_constraint(state, body, params)
    check_prompts(
        [prompt], max_tokens=max_tokens, max_context=info.max_context, vocab_size=info.vocab_size, param="messages"
    )
    await entry.take_tokens([prompt], answers=params.n, max_tokens=max_tokens, max_context=info.max_context)
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return Job(state, model, name, [prompt], params, entry=entry, continues_text=continues)


async def _whole(job: Job, model: str) -> ChatCompletion:
    choices = [ChatChoice(choice.index, ChatMessage(""), None, None) for choice in job.choices]
    texts: list[list[str]] = [[] for _ in choices]
    wants_logprobs = job.params.logprobs is not None
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            answer = choices[choice.index]
            texts[choice.index].append(delta.text)
            answer.finish_reason = delta.finish_reason or answer.finish_reason
            if wants_logprobs:
                answer.logprobs = answer.logprobs or ChatLogprobs([])
                answer.logprobs.content += chat_logprobs(delta)
    for answer, parts in zip(choices, texts, strict=True):
        answer.message.content = "".join(parts)
    return ChatCompletion(job.name, job.created, model, choices, job.usage(), job.fingerprint, job.service_tier)


async def _events(job: Job, model: str, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream: per choice the role, the text, the finish; at the end the usage if asked for."""
    usage: Usage | UnsetType | None = None if include_usage else UNSET

    def chunk(*choices: ChatChunkChoice) -> bytes:
        shared = (job.fingerprint, usage, job.service_tier)
        return encode(ChatChunk(job.name, job.created, model, list(choices), *shared))

    begun: set[int] = set()
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            if choice.index not in begun:
                begun.add(choice.index)
                yield chunk(ChatChunkChoice(choice.index, ChatDelta("assistant", "")))
            logprobs = _chunk_logprobs(job, choice, delta)
            if delta.text or logprobs is not None:
                yield chunk(ChatChunkChoice(choice.index, ChatDelta(content=delta.text), logprobs))
            if delta.finish_reason is not None:
                yield chunk(ChatChunkChoice(choice.index, ChatDelta(), None, delta.finish_reason))
    if include_usage:
        usage = job.usage()
        yield chunk()


def _chunk_logprobs(job: Job, choice: Choice, delta: TextDelta) -> ChatLogprobs | None:
    if job.params.logprobs is None:
        return None
    content = chat_logprobs(delta)
    return ChatLogprobs(content) if content else None
