"""The parts of an answer, and the answer they make. Contracts only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import msgspec

from deepseek.engine.events import FinishReason
from deepseek.runtime.output import LogprobEntry

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
