"""From a chat request to the parts of its answers, for every endpoint that chats.

``/v1/chat/completions``, ``/v1/responses`` and ``/v1/messages`` say the same things in different words: each makes a
:class:`ChatRequest` of its body, and writes what :func:`pieces` yields in its own form.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from deepseek_serve.entry import Entry
from deepseek_serve.generation import Choice, Job, check_prompts, check_reading, off_loop
from deepseek_serve.parsing.pieces import Answer, AnswerEnd, AnswerPiece, Call, CallPiece
from deepseek_serve.prompt import check_form, prompt_of
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.state import ServerState

__all__ = ["Answer", "AnswerEnd", "AnswerPiece", "Call", "CallPiece", "admit", "collect", "pieces"]


async def admit(state: ServerState, body: ChatRequest, entry: Entry, *, prefix: str = "chatcmpl-") -> Job:
    """Check everything that can be checked, and take room for the answers, before the first byte.

    Args:
        prefix: of the response's id.

    Raises :class:`InvalidRequestError`, :class:`ApiError`, :class:`EngineOverloadedError`.
    """
    model = state.model(body.model)
    info, tokenizer = model.generating()
    max_tokens = body.token_limit()
    params = body.sampling(max_tokens=max_tokens, logprobs=body.logprob_count(), vocab_size=info.vocab_size)
    check_reading(body, info)
    tools = body.tooling()
    body.conversation()  # what is wrong with a request is said before what it has to wait for
    body.template_kwargs()
    entry.take(params.n)
    prompt = await off_loop(state, lambda: prompt_of(state.config, model, tokenizer, body, tools))
    params = msgspec.structs.replace(params, constraint=prompt.constraint(body, tools))
    await check_form(state, body, tools, params)
    check_prompts([prompt.tokens], info, max_tokens=max_tokens, param="messages")
    await entry.take_tokens([prompt.tokens], answers=params.n, max_tokens=max_tokens, max_context=info.max_context)
    return Job(
        state,
        model,
        f"{prefix}{uuid.uuid4().hex}",
        [prompt.tokens],
        params,
        entry=entry,
        continues_text=prompt.continues,
        shown=prompt.shown,
        attention=body.attention,
        attention_error=body.attention_error,
        parser=prompt.parser,
    )


async def pieces(job: Job) -> AsyncGenerator[tuple[Choice, AnswerPiece], None]:
    """The pieces of all answers as they come; close it if it is left early. Raises what the engine failed with."""
    parsers = [job.parser() for _ in job.choices]
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            parser = parsers[choice.index]
            piece = parser.push(delta)
            choice.reasoning_tokens = parser.reasoning_tokens
            yield choice, piece


async def collect(job: Job) -> list[Answer]:
    """All answers, whole, in the order of their choices. Raises what the engine failed with."""
    parts: list[list[AnswerPiece]] = [[] for _ in job.choices]
    async with aclosing(pieces(job)) as found:
        async for choice, piece in found:
            parts[choice.index].append(piece)
    return [Answer.of(of_choice) for of_choice in parts]
