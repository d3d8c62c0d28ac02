"""``POST /v1/completions``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.entry import BatchEntry, Entry
from deepseek_serve.generation import Job, check_constraint, check_prompts, check_reading, off_loop
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.completions import CompletionRequest
from deepseek_serve.protocol.logprobs import TextLogprobsBuilder
from deepseek_serve.protocol.responses import TextChoice, TextCompletion, Usage
from deepseek_serve.state import ServerState, state_of
from deepseek_serve.streaming import EventStream, whole_answer

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_serve.reference.described import PROBLEMS, described

router = APIRouter()
encode = msgspec.json.Encoder().encode


@router.post("/v1/completions")
@router.post("/completions")
@described(
    tag="Completions",
    body=CompletionRequest,
    answer=TextCompletion,
    stream=TextCompletion,
    errors=(*PROBLEMS, 404),
    example={"model": "deepseek-v2.1", "prompt": "The capital of France is", "max_tokens": 8},
)
async def create_completion(request: Request) -> Response:
    """Continue one or several texts."""
    state = state_of(request)
    body = CompletionRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    with ExitStack() as resources:
        entry = Entry(state, request, resources, user_id=body.user_id, service_tier=body.service_tier)
        job, echoes = await _admit(state, body, entry)
        entry.record.stream = bool(body.stream)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(job, body.model, echoes, include_usage)
            return EventStream(events, resources.pop_all(), state.config.keep_alive_interval)
        return await whole_answer(request, _whole(job, body.model, echoes), resources, state.config.padding)


async def complete(state: ServerState, tenant: str, body: CompletionRequest) -> TextCompletion:
    """The whole answer to a line of a batch, which takes no room from live requests."""
    with ExitStack() as resources:
        entry = BatchEntry(state, tenant, resources, user_id=body.user_id)
        job, echoes = await _admit(state, body, entry)
        return await _whole(job, body.model, echoes)


async def _admit(state: ServerState, body: CompletionRequest, entry: Entry) -> tuple[Job, list[str]]:
    """Check everything that can be checked, and take room for the answers. Returns the echo of each choice too."""
    model = state.model(body.model)
    info, tokenizer = model.generating()
    body.check()
    max_tokens = body.token_limit()
    params = body.sampling(max_tokens=max_tokens, logprobs=body.logprobs, vocab_size=info.vocab_size)
    if body.suffix and not params.ignore_eos:
        params = msgspec.structs.replace(params, stop_token_ids=(*params.stop_token_ids, *tokenizer.fim_end_ids))
    check_reading(body, info)
    given = body.prompts()
    entry.take(len(given) * params.n)
    prompts = await off_loop(state, lambda: [_tokens(tokenizer, prompt, body.suffix) for prompt in given])
    await check_constraint(state, body, params)
    check_prompts(prompts, info, max_tokens=max_tokens, param="prompt")
    await entry.take_tokens(prompts, answers=params.n, max_tokens=max_tokens, max_context=info.max_context)
    job = Job(
        state,
        model,
        f"cmpl-{uuid.uuid4().hex}",
        prompts,
        params,
        entry=entry,
        continues_text=True,
        attention=body.attention,
        attention_error=body.attention_error,
    )
    if not body.echo:
        return job, [""] * len(job.choices)
    texts = [p if isinstance(p, str) else tokenizer.decode(p, skip_special_tokens=False) for p in given]
    return job, [text for text in texts for _ in range(params.n)]


def _tokens(tokenizer: Tokenizer, prompt: str | list[int], suffix: str | None) -> list[int]:
    """A raw prompt may spell special tokens: this endpoint is for who writes the template by hand. With a suffix the
    template is the model's, and both texts are a user's."""
    if suffix:
        return tokenizer.encode_fim(prompt, suffix)
    return tokenizer.encode(prompt, parse_special=True) if isinstance(prompt, str) else prompt


async def _whole(job: Job, model: str, echoes: list[str]) -> TextCompletion:
    choices = [TextChoice(choice.index, "") for choice in job.choices]
    texts = [[echo] for echo in echoes]
    builders = _builders(job)
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            answer = choices[choice.index]
            if builders is not None:
                builders[choice.index].add(delta)
                answer.logprobs = builders[choice.index].total
            texts[choice.index].append(delta.text)
            answer.finish_reason = delta.finish_reason or answer.finish_reason
    for answer, parts in zip(choices, texts, strict=True):
        answer.text = "".join(parts)
    shared = (job.fingerprint, job.usage(), job.service_tier)
    return TextCompletion(job.name, job.created, model, choices, *shared)


async def _events(job: Job, model: str, echoes: list[str], include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The chunks of a stream; the prompt's echo comes with a choice's first one."""
    usage: Usage | UnsetType | None = None if include_usage else UNSET

    def chunk(*choices: TextChoice) -> bytes:
        shared = (job.fingerprint, usage, job.service_tier)
        return encode(TextCompletion(job.name, job.created, model, list(choices), *shared))

    pending = list(echoes)
    builders = _builders(job)
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            index = choice.index
            text, pending[index] = pending[index] + delta.text, ""
            logprobs = builders[index].add(delta) if builders is not None else None
            if text or logprobs is not None or delta.finish_reason is not None:
                yield chunk(TextChoice(index, text, logprobs, delta.finish_reason))
    if include_usage:
        usage = job.usage()
        yield chunk()


def _builders(job: Job) -> list[TextLogprobsBuilder] | None:
    return [TextLogprobsBuilder() for _ in job.choices] if job.params.logprobs is not None else None
