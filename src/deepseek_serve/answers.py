"""From a chat request to the parts of its answers, for every endpoint that chats.

``/v1/chat/completions``, ``/v1/responses`` and ``/v1/messages`` say the same things in different words: each makes a
:class:`ChatRequest` of its body, and writes what :func:`pieces` yields in its own form.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from deepseek.engine.events import FinishReason
from deepseek.runtime.output import LogprobEntry, TextDelta
from deepseek_serve.entry import Entry
from deepseek_serve.generation import Choice, Job, check_constraint, check_prompts, off_loop
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.state import ServerState

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer

AnswerEnd = FinishReason | Literal["tool_calls"]


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of a tool call. Pieces of one call come together: the next call begins when it is whole.

    Attributes:
        index: which of the answer's calls, from 0.
        arguments: the next characters of the arguments, which joined are JSON text.
        id: of the call, in its first piece.
        name: the function's, in the call's first piece.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class AnswerPiece(msgspec.Struct, frozen=True):
    """The next piece of one answer.

    Attributes:
        reasoning: what the model thinks before it answers.
        content: what it says.
        calls: tool calls it makes.
        logprobs: of the tokens that end in this piece, reasoning and calls too.
        finish_reason: set once, in the answer's last piece.
        stop_string: the stop string that ended the answer, None if something else did.
    """

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallPiece, ...] = ()
    logprobs: tuple[LogprobEntry, ...] = ()
    finish_reason: AnswerEnd | None = None
    stop_string: str | None = None


class Call(msgspec.Struct, frozen=True):
    """A whole tool call; ``arguments`` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Answer(msgspec.Struct, frozen=True):
    """A whole answer: its pieces, joined."""

    reasoning: str
    content: str
    calls: list[Call]
    logprobs: list[LogprobEntry]
    finish_reason: AnswerEnd | None
    stop_string: str | None

    @classmethod
    def of(cls, parts: Sequence[AnswerPiece]) -> Self:
        """The answer of which these are all pieces."""
        calls: list[tuple[CallPiece, list[str]]] = []
        for piece in (call for part in parts for call in part.calls):
            if piece.index == len(calls):
                calls.append((piece, []))
            calls[piece.index][1].append(piece.arguments)
        last = parts[-1] if parts else AnswerPiece()
        return cls(
            "".join(part.reasoning for part in parts),
            "".join(part.content for part in parts),
            [Call(first.id or "", first.name or "", "".join(arguments)) for first, arguments in calls],
            [entry for part in parts for entry in part.logprobs],
            last.finish_reason,
            last.stop_string,
        )


def prompt_of(body: ChatRequest, tokenizer: Tokenizer) -> tuple[Callable[[], list[int]], bool]:
    """(what computes the prompt's tokens, whether its last message is continued).

    Raises :class:`InvalidRequestError`, when it is called or when the result is.
    """
    messages, add_prompt, continues = body.conversation()
    tools, kwargs = [function.described() for function in body.tooling().functions], body.template_kwargs()

    def encode() -> list[int]:
        return tokenizer.encode_chat(
            messages,
            add_generation_prompt=add_prompt,
            continue_final_message=continues,
            tools=tools,
            template_kwargs=kwargs,
        )

    return encode, continues


async def admit(state: ServerState, body: ChatRequest, entry: Entry, *, prefix: str = "chatcmpl-") -> Job:
    """Check everything that can be checked, and take room for the answers, before the first byte.

    Args:
        prefix: of the response's id.

    Raises :class:`InvalidRequestError`, :class:`ApiError`, :class:`EngineOverloadedError`.
    """
    model = state.model(body.model)
    info, tokenizer = model.running()
    max_tokens = body.token_limit()
    params = body.sampling(max_tokens=max_tokens, logprobs=body.logprob_count(), vocab_size=info.vocab_size)
    encode, continues = prompt_of(body, tokenizer)
    entry.take(params.n)
    prompt = await off_loop(state, encode)
    await check_constraint(state, body, params)
    check_prompts(
        [prompt], max_tokens=max_tokens, max_context=info.max_context, vocab_size=info.vocab_size, param="messages"
    )
    await entry.take_tokens([prompt], answers=params.n, max_tokens=max_tokens, max_context=info.max_context)
    return Job(state, model, f"{prefix}{uuid.uuid4().hex}", [prompt], params, entry=entry, continues_text=continues)


async def pieces(job: Job) -> AsyncGenerator[tuple[Choice, AnswerPiece], None]:
    """The pieces of all answers as they come; close it if it is left early. Raises what the engine failed with."""
    async with aclosing(job.deltas()) as deltas:
        async for choice, delta in deltas:
            yield choice, _plain(delta)


async def collect(job: Job) -> list[Answer]:
    """All answers, whole, in the order of their choices. Raises what the engine failed with."""
    parts: list[list[AnswerPiece]] = [[] for _ in job.choices]
    async with aclosing(pieces(job)) as found:
        async for choice, piece in found:
            parts[choice.index].append(piece)
    return [Answer.of(of_choice) for of_choice in parts]


def _plain(delta: TextDelta) -> AnswerPiece:
    return AnswerPiece(
        content=delta.text,
        logprobs=delta.logprobs,
        finish_reason=delta.finish_reason,
        stop_string=delta.stop_string,
    )
